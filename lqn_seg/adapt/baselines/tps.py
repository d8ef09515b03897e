"""TPS: a shift of every class's prototype in feature space, one step on the marginal entropy.

Sui, Wang and Yeung-Levy, "Just Shift It: Test-Time Prototype Shifting for Zero-Shot Generalization
with Vision-Language Models" (WACV 2025). The text tower is never run again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features, marginal_entropy, select_confident


@dataclass(frozen=True)
class Tps(Baseline):
    """Attributes:
    keep: share of the views whose marginal entropy is lowered, the most confident ones.
    learning_rate, steps: of AdamW; shift and optimiser start afresh for every image.
    """

    keep: float = 0.1
    learning_rate: float = 5e-3
    steps: int = 1

    def __call__(self, features: Features) -> Tensor:
        """(B, C): what view 0 is classified as by the shifted prototypes."""
        text, scale = features.text, features.scale
        count = len(features.views)
        with torch.enable_grad():
            shift = torch.zeros(count, *text.shape, device=text.device, requires_grad=True)
            optimizer = torch.optim.AdamW([shift], lr=self.learning_rate)
            # Which views are confident is settled before the first step.
            confident = select_confident(features.logits(), self.keep, features.views)
            for _ in range(self.steps):
                prototypes = F.normalize(text + shift, dim=-1)
                loss = marginal_entropy(scale * confident @ prototypes.mT)
                (shift.grad,) = torch.autograd.grad(loss.sum(), shift)
                optimizer.step()
        prototypes = F.normalize(text + shift.detach(), dim=-1)
        logits = scale * features.views[:, :1] @ prototypes.mT
        return logits.squeeze(1).softmax(-1)

"""GS-Bias: two biases on the class logits, learned from views and from patches.

Huang et al., "GS-Bias: Global-Spatial Bias Learner for Single-Image Test-Time Adaptation of
Vision-Language Models" (ICML 2025). Both gradients have a closed form, so nothing is
back-propagated; rates and the number of steps are those published for ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lqn_seg.adapt.baselines.features import (
    Baseline,
    Features,
    marginal_entropy,
    marginal_entropy_gradient,
    select_confident,
)


@dataclass(frozen=True)
class GsBias(Baseline):
    """Attributes:
    keep: share of the views that the global bias looks at, the most confident ones.
    patches: how many of view 0's patches the spatial bias looks at.
    global_rate, spatial_rate, steps: of plain gradient steps on the marginal entropies.
    momentum: weight of a new bias against the one before.
    most_change: the steps end when the global loss has moved by more than this share.
    """

    keep: float = 0.1
    patches: int = 16
    global_rate: float = 10.0
    spatial_rate: float = 1.0
    steps: int = 1
    momentum: float = 0.9
    most_change: float = 0.25

    def __call__(self, features: Features) -> Tensor:
        """(B, C): view 0's logits plus both biases."""
        views = features.logits()
        spatial = features.scale * features.patches @ features.text.T  # (B, N, C)
        new = mixed = views.new_zeros(2, len(views), views.shape[-1])  # global, spatial
        rates = views.new_tensor([self.global_rate, self.spatial_rate]).view(2, 1, 1)
        moving = torch.ones_like(views[:, :1, 0], dtype=torch.bool)  # (B, 1)
        first_loss = None
        for step in range(self.steps):
            current = self._mix(new, mixed)
            confident = select_confident(views + current[0][:, None], self.keep)
            loss = marginal_entropy(confident)[:, None]
            first_loss = loss if first_loss is None else first_loss
            moving = moving & ((loss - first_loss).abs() <= self.most_change * first_loss)
            biased = spatial + current[1][:, None]
            gradient = torch.stack(
                [
                    marginal_entropy_gradient(confident),
                    marginal_entropy_gradient(self._best_patches(biased)),
                ]
            )
            # In the first step the bias before is the bias itself; later ones only have their own
            # weight in the mixture.
            gradient = gradient * (1.0 if step == 0 else self.momentum)
            new = torch.where(moving, new - rates * gradient, new)
            mixed = torch.where(moving, current, mixed)
        total = self._mix(new, mixed).sum(0)
        return (views[:, 0] + total).softmax(-1)

    def _mix(self, new: Tensor, before: Tensor) -> Tensor:
        return self.momentum * new + (1 - self.momentum) * before

    def _best_patches(self, logits: Tensor) -> Tensor:
        """(B, K, C) of (B, N, C): the patches that stand out most, over all classes together."""
        score = logits.softmax(1).sum(-1)
        best = score.topk(min(self.patches, logits.shape[1]), dim=1).indices[..., None]
        return logits.gather(1, best.expand(-1, -1, logits.shape[-1]))

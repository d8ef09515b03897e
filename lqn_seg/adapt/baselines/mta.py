"""MTA: mean-shift over the features of the views, with an inlierness score for each.

Zanella and Ben Ayed, "On the Test-Time Zero-Shot Generalization of Vision-Language Models: Do We
Really Need Prompt Learning?" (CVPR 2024). No gradients; the answer is the mode's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features


@dataclass(frozen=True)
class Mta(Baseline):
    """Attributes:
    neighbours: share of the other views that a view's bandwidth is measured on.
    affinity_weight: lambda of the affinity between views' predictions.
    entropy_weight: lambda of the inlierness scores' entropy, their softmax's temperature.
    rounds, iterations: outer rounds, and at most so many updates of scores and of mode in each.
    tolerance: an update smaller than this is the last.
    """

    neighbours: float = 0.3
    affinity_weight: float = 4.0
    entropy_weight: float = 0.2
    rounds: int = 5
    iterations: int = 5
    tolerance: float = 1e-6

    def __call__(self, features: Features) -> Tensor:
        """(B, C): what the mode of the views' features is classified as."""
        mode = self.mode(features)
        return (features.scale * mode @ features.text.T).softmax(-1)

    def mode(self, features: Features) -> Tensor:
        """(B, E) unit vector, the mode of each image's views."""
        f = features.views
        width = self._bandwidth(f)
        p = features.logits().softmax(-1)
        affinity = p @ p.mT  # (B, V, V)
        y = torch.full_like(width, 1 / width.shape[1])  # (B, V) inlierness
        mode = f[:, 0]
        for _ in range(self.rounds):
            kernel = self._kernel(f, mode, width)
            y = self._until_still(y, partial(self._inlierness, kernel, affinity))
            mode = self._until_still(mode, partial(self._shift, f, width, y))
        return mode

    def _bandwidth(self, f: Tensor) -> Tensor:
        """(B, V): h^2 is half the mean squared distance to the nearest other views."""
        distance = (f[:, :, None] - f[:, None]).square().sum(-1).sort(-1).values
        count = max(1, int(self.neighbours * (f.shape[1] - 1)))
        # A view has at least one neighbour, itself if there is no other.
        nearest = distance[..., 1 : count + 1] if f.shape[1] > 1 else distance
        return (0.5 * nearest.mean(-1)).clamp(min=1e-12)

    @staticmethod
    def _kernel(f: Tensor, mode: Tensor, width: Tensor) -> Tensor:
        """(B, V) Gaussian kernel of each view at the mode, with its own h^2."""
        return (-(f - mode[:, None]).square().sum(-1) / (2 * width)).exp()

    def _inlierness(self, kernel: Tensor, affinity: Tensor, y: Tensor) -> Tensor:
        support = kernel + self.affinity_weight * (affinity @ y[..., None]).squeeze(-1)
        return (support / self.entropy_weight).softmax(-1)

    def _shift(self, f: Tensor, width: Tensor, y: Tensor, mode: Tensor) -> Tensor:
        weight = y * self._kernel(f, mode, width)
        # The sum of the weights would cancel in the normalisation.
        return F.normalize((weight[..., None] * f).sum(1), dim=-1)

    def _until_still(self, value: Tensor, update: Callable[[Tensor], Tensor]) -> Tensor:
        """Update until an image's value moves less than the tolerance; the others go on."""
        moving = torch.ones(len(value), 1, dtype=torch.bool, device=value.device)
        for _ in range(self.iterations):
            changed = torch.where(moving, update(value), value)
            moving = moving & ((changed - value).norm(dim=-1, keepdim=True) >= self.tolerance)
            value = changed
        return value

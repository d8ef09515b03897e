"""Closed-form fields in the student's place: what a student has to beat.

Both predict a position's last-layer token from the other positions' by how alike they look at the
guiding layer and how near they lie, with the same kernel; neither learns anything by steps.

Shapes: B images, L x H x W grid, D features, N = H W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lqn_seg.core.fit import Grid, LQNConfig
from lqn_seg.core.kernel import guided_kernel, guiding_tokens
from lqn_seg.core.random import RandomKey

# Of the kernel's own diagonal.
RIDGE = 0.3


@dataclass(frozen=True)
class FittedField:
    """The last layer of B fields, smoothed.

    Attributes:
        tokens: (B, H, W, D).
        finite: (B,) bool on the CPU.
    """

    tokens: Tensor
    finite: Tensor

    def query_layer(self, layer: float) -> Tensor:
        """(B, H, W, D) tokens of the last layer, the only one there is."""
        return self.tokens


class ClosedFormField:
    """A kernel smoother ("kernel") or kernel ridge regression ("ridge") over one layer's tokens."""

    precision = "float32"

    def __init__(
        self, config: LQNConfig, grid: Grid, feature_dim: int, device: torch.device | str
    ) -> None:
        self.config = config

    def fit(self, images: Tensor, fields: Tensor, keys: Sequence[RandomKey]) -> FittedField:
        """Smooth (B, L, H, W, D) fields; images and keys are the student's and not read."""
        last = fields[:, -1].flatten(1, 2).float()
        kernel = guided_kernel(guiding_tokens(fields, self.config.student.guide))
        if self.config.fit.variant == "kernel":
            smoothed = kernel / kernel.sum(-1, keepdim=True) @ last
        else:
            mean = last.mean(1, keepdim=True)
            ridge = RIDGE * torch.eye(kernel.shape[-1], device=kernel.device)
            smoothed = kernel @ torch.linalg.solve(kernel + ridge, last - mean) + mean
        finite = smoothed.isfinite().flatten(1).all(1).cpu()
        return FittedField(smoothed.view(fields[:, -1].shape), finite)

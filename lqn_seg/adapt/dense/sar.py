"""SAR: entropy of the sure pixels alone, lowered where its surroundings are flat.

Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World" (ICLR 2023). For a ViT the
norms of the last quarter of the layers stay. Pixels take the place of a batch's images. The
release's recovery, which starts again once the loss has got too small, is left out: by default
every image starts afresh anyway.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lqn_seg.adapt.baselines.features import entropy
from lqn_seg.adapt.dense.encoder import OneImage, OnSteps, norms
from lqn_seg.adapt.dense.settings import Sar
from lqn_seg.teachers.base import Teacher


class OnSar(OnSteps[Sar]):
    def parameters(self, teacher: Teacher[Any]) -> list[nn.Parameter]:
        blocks = list(teacher.blocks)
        return norms(blocks[: len(blocks) - int(self.settings.frozen * len(blocks))])

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.chosen, lr=self.settings.learning_rate, momentum=0.9)

    def step(self, image: OneImage, optimizer: torch.optim.Optimizer) -> None:
        """The gradient where the loss is worst near the weights, applied to the weights. Without a
        pixel that is sure in both places nothing changes."""
        here = self._sure_loss(image)
        if here is None:
            return
        climb = self._climb(torch.autograd.grad(here[0], self.chosen))
        optimizer.zero_grad()
        self._move(climb, 1)
        there = self._sure_loss(image, here[1])
        if there is not None:
            there[0].backward()
        self._move(climb, -1)
        if there is not None:
            optimizer.step()

    def _sure_loss(
        self, image: OneImage, among: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Mean entropy of the pixels that are sure, and which they are, bool; None where
        there are none."""
        log_p = image.log_p(image.see())
        entropies = entropy(log_p)
        sure = entropies < self.settings.margin * math.log(log_p.shape[-1])
        sure = sure if among is None else sure & among
        return (entropies[sure].mean(), sure) if sure.any() else None

    def _climb(self, gradients: tuple[Tensor, ...]) -> list[Tensor]:
        """The step of length `radius` along the gradients."""
        length = torch.stack([g.norm() for g in gradients]).norm() + 1e-12
        return [self.settings.radius * g / length for g in gradients]

    @torch.no_grad()
    def _move(self, step: list[Tensor], sign: int) -> None:
        for parameter, by in zip(self.chosen, step):
            parameter.add_(by, alpha=sign)

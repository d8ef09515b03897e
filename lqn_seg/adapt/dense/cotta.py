"""CoTTA, afresh for every image: an averaged teacher labels the image at many scales.

Wang et al., "Continual Test-Time Domain Adaptation" (CVPR 2022), its recipe for SegFormer on ACDC.
Where the source is sure of a pixel, the averaged teacher's own answer is the label, elsewhere its
mean over scales and mirror images. A student learns the labels, the teacher follows it slowly, and
some weights return to the source's. The paper hands out the labels; here the student answers, as in
an image's few steps the teacher hardly moves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lqn_seg.adapt.dense.encoder import OneImage, OnWeights, Seen, all_weights, log_p
from lqn_seg.adapt.dense.settings import Cotta
from lqn_seg.core.random import Stream, image_seed
from lqn_seg.teachers.base import Teacher

Weights = list[Tensor]


class OnCotta(OnWeights[Cotta]):
    def __init__(self, settings: Cotta, teacher: Teacher[Any]) -> None:
        super().__init__(settings, teacher)
        self.scaled = [teacher.at_scale(scale) for scale in settings.scales]
        self.teachers += self.scaled

    def parameters(self, teacher: Teacher[Any]) -> list[nn.Parameter]:
        return all_weights(teacher)

    def reset(self) -> None:
        super().reset()
        self.average: Weights | None = None

    def learn(self, image: OneImage) -> Seen:
        settings, random = self.settings, torch.Generator(image.pixels.device)
        random.manual_seed(image_seed(image.key, Stream.VIEW))
        average = self.average or [parameter.detach().clone() for parameter in self.chosen]
        with torch.no_grad(), self.weights(self.source):
            unsure = image.log_p(image.see()).exp().amax(-1) <= settings.confidence
        optimizer = torch.optim.Adam(self.chosen, lr=settings.learning_rate)
        for _ in range(settings.steps):
            with torch.no_grad(), self.weights(average):
                labels = self._labels(image, unsure)
            optimizer.zero_grad()
            answer = image.log_p(image.see())
            F.nll_loss(answer.flatten(0, -2), labels.flatten()).backward()
            optimizer.step()
            self._follow(average, random)
        self.average = average if self.history else None
        with torch.no_grad():
            return image.see()

    def _labels(self, image: OneImage, unsure: Tensor) -> Tensor:
        """(1, h, w) classes: those of all scales together where the source is `unsure`."""
        own = image.log_p(image.see()).exp()
        total = torch.zeros_like(own)
        for teacher in self.scaled:
            for flip in (False, True):
                total += self._at_scale(teacher, image, flip, own.shape[1:3])
        return torch.where(unsure, total.argmax(-1), own.argmax(-1))

    def _at_scale(
        self, teacher: Teacher[Any], image: OneImage, flip: bool, size: tuple[int, ...]
    ) -> Tensor:
        """(1, *size, C) probabilities of another size's pass, of the mirrored image if `flip`."""
        pixels = image.pixels.flip(-1) if flip else image.pixels
        pixels = F.interpolate(pixels, teacher.image_size, mode="bilinear", antialias=True)
        field, context = teacher.forward(image.images.inputs(pixels))
        p = log_p(image.task, field[:, -1], context).exp().movedim(-1, 1)
        p = F.interpolate(p.flip(-1) if flip else p, tuple(size), mode="bilinear")
        return p.movedim(1, -1)

    @torch.no_grad()
    def _follow(self, average: Weights, random: torch.Generator) -> None:
        """The averaged teacher follows the student, some of whose weights become the source's."""
        for parameter, mean, source in zip(self.chosen, average, self.source):
            mean.lerp_(parameter, 1 - self.settings.momentum)
            drawn = torch.rand(parameter.shape, generator=random, device=parameter.device)
            parameter.copy_(torch.where(drawn < self.settings.restored, source, parameter))

"""MEMO: the encoder learns to answer the same for augmented copies of the image.

Zhang, Levine and Finn, "MEMO: Test Time Robustness via Adaptation and Augmentation" (NeurIPS 2022):
the entropy of the copies' mean answer, here of each pixel's. A pixel must stay where it is, so of
AugMix (Hendrycks et al., ICLR 2020) only the operations on colours are drawn; half of the copies
are mirrored, and their tokens turned back. All weights of the layers are learnt.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision.transforms.functional as V
from torch import Tensor, nn

from lqn_seg.adapt.baselines.features import entropy, log_mean
from lqn_seg.adapt.dense.encoder import OneImage, OnSteps, all_weights
from lqn_seg.adapt.dense.settings import Memo
from lqn_seg.core.random import RandomKey, Stream, image_seed
from lqn_seg.teachers.base import Teacher

CHAINS, DEPTH = 3, 3  # of AugMix: chains that are mixed, operations of each at most


class OnMemo(OnSteps[Memo]):
    def parameters(self, teacher: Teacher[Any]) -> list[nn.Parameter]:
        return all_weights(teacher)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.chosen, lr=self.settings.learning_rate)

    def loss(self, image: OneImage) -> Tensor:
        pixels, mirrored = copies(image.pixels[0], image.key, self.settings.copies)
        log_p = image.log_p(image.see(pixels), mirrored)
        return entropy(log_mean(log_p.movedim(0, -2))).mean()


def copies(pixels: Tensor, key: RandomKey, count: int) -> tuple[Tensor, Tensor]:
    """(3, h, w) pixels in 0..1 to so many augmented copies (count, 3, h, w), and which of them are
    mirrored, (count,) bool: every second one."""
    random = torch.Generator().manual_seed(image_seed(key, Stream.VIEW))
    made = torch.stack([augmix(pixels, random) for _ in range(count)])
    mirrored = torch.arange(count, device=pixels.device) % 2 == 1
    return torch.where(mirrored[:, None, None, None], made.flip(-1), made), mirrored


def augmix(pixels: Tensor, random: torch.Generator) -> Tensor:
    """(3, h, w) pixels in 0..1 mixed with chains of operations on their colours, likewise."""
    weights = torch.rand(CHAINS, generator=random).log()
    weights /= weights.sum()  # Dirichlet's, with all of its parameters 1
    kept = float(torch.rand((), generator=random))  # Beta's, likewise
    mixed = torch.zeros_like(pixels)
    for weight in weights.tolist():
        chain = (255 * pixels).round().byte()
        for _ in range(1 + _drawn(DEPTH, random)):
            chain = _operation(chain, random)
        mixed += weight * chain / 255
    return kept * pixels + (1 - kept) * mixed


def _operation(image: Tensor, random: torch.Generator) -> Tensor:
    """(3, h, w) uint8 after one of AugMix's operations on colours, mildly."""
    strength = 0.1 + 0.2 * float(torch.rand((), generator=random))
    which = _drawn(4, random)
    if which == 0:
        return V.autocontrast(image)
    if which == 1:
        return V.equalize(image)
    if which == 2:
        return V.posterize(image, 4 - round(4 * strength))
    return V.solarize(image, 256 - 256 * strength)


def _drawn(count: int, random: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=random))

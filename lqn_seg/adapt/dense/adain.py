"""AdaIN: mean and deviation of the first layers' tokens become those of clean images.

Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization"
(ICCV 2017), with clean images' averages in the place of a style image. The channels are the
strongest directions of clean tokens, all that a calibration knows. Where `core.alignment` removes
what augmentations explain, this replaces all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lqn_seg.adapt.dense.settings import AdaIn
from lqn_seg.adapt.dense.statistics import OnStatistics, clean_average
from lqn_seg.core.alignment import Calibration
from lqn_seg.teachers.base import Teacher


class OnAdaIn(OnStatistics):
    def __init__(self, settings: AdaIn, teacher: Teacher[Any]) -> None:
        super().__init__(teacher)
        self.last = round(settings.layers * teacher.num_layers)

    def replace(self, layer: int, tokens: Tensor, calibration: Calibration) -> Tensor:
        clean = calibration.layers.get(layer)
        if clean is None or layer > self.last:
            return tokens
        parts, mean, deviation = clean.components(tokens)
        wanted, size = clean_average(clean)
        # A direction without signal would have its rounding enlarged.
        change = torch.where(clean.signal, size - deviation, 0.0)
        return clean.restated(tokens, parts, mean, wanted, change)

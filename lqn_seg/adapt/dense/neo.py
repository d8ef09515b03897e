"""NEO: the mean token of an image becomes that of clean images.

Murphy et al., "NEO: No-Optimization Test-Time Adaptation through Latent Re-Centering" (ICLR 2026).
NEO moves the mean of all test images' last features to the origin; of one image alone that would
leave nothing of it. So the mean here is over an image's tokens, it moves to clean images' mean,
and at the last layer that a calibration knows: what an image shows is in the last layer's mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lqn_seg.adapt.dense.settings import Neo
from lqn_seg.adapt.dense.statistics import OnStatistics, clean_average
from lqn_seg.core.alignment import Calibration
from lqn_seg.teachers.base import Teacher


class OnNeo(OnStatistics):
    def __init__(self, settings: Neo, teacher: Teacher[Any]) -> None:
        super().__init__(teacher)
        self.share = settings.share

    def replace(self, layer: int, tokens: Tensor, calibration: Calibration) -> Tensor:
        if layer != max(calibration.layers):
            return tokens
        clean = calibration.layers[layer]
        parts, mean, _ = clean.components(tokens)
        wanted, _ = clean_average(clean)
        target = mean + self.share * (wanted - mean)
        return clean.restated(tokens, parts, mean, target, torch.zeros_like(mean))

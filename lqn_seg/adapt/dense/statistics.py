"""The teacher with statistics of its tokens replaced by those of clean images, on the way."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lqn_seg.adapt.ineffective import CALIBRATE
from lqn_seg.adapt.journey import Images, Method, Pass
from lqn_seg.adapt.timing import Clock
from lqn_seg.core.alignment import Calibration, LayerRange


class OnStatistics(Method):
    """A sub-class says what becomes of a layer's tokens."""

    @abstractmethod
    def replace(self, layer: int, tokens: Tensor, calibration: Calibration) -> Tensor:
        """(B, H, W, D) tokens of a layer, 0 being the embedding."""

    def encode(self, images: Images) -> Pass:
        calibration = images.calibration
        if calibration is None:
            return images.encode()
        clock = Clock(images.teacher.device)
        tokens, context = images.teacher.encode(
            images.inputs(images.pixels),
            lambda layer, tokens: self.replace(layer, tokens, calibration),
            images.last_alone,
        )
        return Pass(tokens, context, clock.lap())

    def ineffective(self, name: str, calibrated: bool) -> str:
        if calibrated:
            return ""
        return (
            f"method {name} predicts the same as its teacher: without a calibration it replaces no "
            f"statistic; {CALIBRATE}"
        )


def clean_average(clean: LayerRange) -> tuple[Tensor, Tensor]:
    """(R,) mean and log deviation of clean images in each direction; the middle of their range
    where no style is known."""
    if clean.style is None:
        return clean.mean.mean(0), clean.deviation.mean(0)
    mean, deviation = clean.style.middle.chunk(2)
    return mean, deviation

"""How training images are varied; `engine.training.training_images.augment` does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lqn_seg.errors import InputError


@dataclass(frozen=True)
class AugmentationConfig:
    """How a training image is varied; the defaults flip it and change nothing else.

    crop: resize at random and crop a square of the teacher's size; without it every image must
        have that size already.
    scale: (least, most) of the random resize; at 1 the image's short side is the crop's side,
        which is how ``INFERENCE: windows`` shows it to the teacher.
    flip: probability of mirroring left and right, 0 .. 1.
    brightness, contrast, saturation: x draws a factor from [max(1 - x, 0), 1 + x]; 0 is off.
    hue: x draws a shift from [-x, x] turns of the colour circle, at most 0.5; 0 is off.
    """

    crop: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        where = "MODEL.LQN.TRAIN"
        numbers = len(self.scale) == 2 and all(isinstance(s, int | float) for s in self.scale)
        if not numbers or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise InputError(
                f"{where}.SCALE must be (least, most) with 0 < least <= most, not {self.scale}"
            )
        if tuple(self.scale) != (1, 1) and not self.crop:
            raise InputError(f"{where}.SCALE {self.scale} needs {where}.CROP True")
        limits = {"flip": 1.0, "hue": 0.5}
        for name in ("flip", "brightness", "contrast", "saturation", "hue"):
            value, most = getattr(self, name), limits.get(name, math.inf)
            if not 0 <= value <= most or math.isinf(value):
                upto = f" and at most {most}" if name in limits else ""
                raise InputError(f"{where}.{name.upper()} must be at least 0{upto}, not {value}")

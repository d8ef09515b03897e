"""Random crops, mirroring and colours for training, by torchvision's transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from lqn_seg.errors import InputError

UNLABELLED = 0


@dataclass(frozen=True)
class AugmentationConfig:
    """How a training image is varied; the defaults flip it and change nothing else.

    Attributes:
        crop: resize at random and crop a square of the teacher's size; without it every image must
            have that size already.
        scale: (least, most) of the random resize; at 1 the image's short side is the crop's side,
            which is how ``INFERENCE: windows`` shows it to the teacher.
        flip: probability of mirroring left and right, 0 .. 1.
        brightness, contrast, saturation: x draws a factor from [max(1 - x, 0), 1 + x]; 0 is off.
        hue: x draws a shift from [-x, x] turns of the colour circle, at most 0.5; 0 is off.

    Raises:
        InputError: a value is out of range.
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


def augment(
    image: NDArray[np.uint8],
    index_map: NDArray[np.integer],
    config: AugmentationConfig,
    side: int,
    seed: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Vary an image and its index map alike; all that is drawn follows from ``seed`` alone.

    Where the resized image is smaller than the crop it lies at random inside it; the rest is black
    and ``UNLABELLED``.

    Args:
        image: (H, W, 3) RGB.
        index_map: (H, W) of integers, ``UNLABELLED`` where nothing is.
        side: of the crop.

    Returns:
        (3, h, w) uint8 and (h, w) int32.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).movedim(2, 0)
    labels = torch.from_numpy(index_map.astype(np.int32))[None]
    colors = config.brightness, config.contrast, config.saturation, config.hue
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(config.flip)]
    if any(colors):
        steps.append(v2.ColorJitter(*colors))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        if config.crop:
            factor = torch.empty(()).uniform_(*config.scale).item()
            pixels = v2.functional.resize(pixels, [max(round(factor * side), 1)])
            # Not as a Mask: torchvision would take the nearest pixel's corner, not its centre.
            exact = InterpolationMode.NEAREST_EXACT
            labels = v2.functional.resize(labels, list(pixels.shape[1:]), exact)
            steps.insert(0, v2.RandomCrop(side, pad_if_needed=True))
        varied = v2.Compose(steps)(tv_tensors.Image(pixels), tv_tensors.Mask(labels))
    return varied[0].as_subclass(Tensor), varied[1][0].as_subclass(Tensor)

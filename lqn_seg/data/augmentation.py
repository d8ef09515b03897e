"""Random crops and colours for training; every draw comes from the generator that is handed in.

Shapes: images (H, W, 3) uint8 RGB, index maps (H, W) of integers with ``UNLABELLED`` where nothing
is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lqn_seg.errors import InputError

UNLABELLED = 0
# ITU-R BT.601 luma, Pillow's and torchvision's grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Pixels = NDArray[np.uint8]
Indices = NDArray[np.integer]


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
        for name, most in (
            ("flip", 1.0),
            ("brightness", math.inf),
            ("contrast", math.inf),
            ("saturation", math.inf),
            ("hue", 0.5),
        ):
            value = getattr(self, name)
            if not 0 <= value <= most or math.isinf(value):
                upto = f" and at most {most}" if most < math.inf else ""
                raise InputError(f"{where}.{name.upper()} must be at least 0{upto}, not {value}")


def random_crop(
    image: Pixels,
    index_map: Indices,
    side: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Pixels, Indices]:
    """Resize by a random factor and cut a random square of ``side`` pixels, image and map alike.

    Where the resized image is smaller than the square it is placed at random inside it; the rest is
    black and unlabelled.

    Args:
        scale: (least, most) of the factor; 1 maps the short side to ``side``.

    Returns:
        Image (side, side, 3) and map (side, side). The image is resized bilinearly with
        antialiasing, the map by nearest neighbour.
    """
    factor = rng.uniform(*scale) * side / min(image.shape[:2])
    height, width = (max(round(length * factor), 1) for length in image.shape[:2])
    rows, top = _place(height, side, rng)
    columns, left = _place(width, side, rng)
    pixels = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    numbers = index_map.astype(np.int32)  # of the modes that Pillow has, the one that fits any
    labels = Image.fromarray(numbers).resize((width, height), Image.Resampling.NEAREST)
    cropped = np.zeros((side, side, 3), np.uint8)
    cropped_map = np.full((side, side), UNLABELLED, np.int32)
    part = np.asarray(pixels)[rows, columns]
    inside = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
    cropped[inside] = part
    cropped_map[inside] = np.asarray(labels)[rows, columns]
    return cropped, cropped_map


def _place(length: int, side: int, rng: np.random.Generator) -> tuple[slice, int]:
    """What to cut out along one axis, and where in the crop it begins."""
    offset = int(rng.integers(abs(length - side) + 1))
    return (slice(offset, offset + side), 0) if length >= side else (slice(0, length), offset)


def jitter_colors(image: Pixels, config: AugmentationConfig, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation and hue, in this order, each as torchvision means it.

    Returns:
        (H, W, 3) uint8; ``image`` itself where all four are off.
    """
    if not (config.brightness or config.contrast or config.saturation or config.hue):
        return image
    # All four are drawn even where one is off: switching one does not change the others' draws.
    brightness, contrast, saturation = (
        np.float32(rng.uniform(max(1 - x, 0), 1 + x))
        for x in (config.brightness, config.contrast, config.saturation)
    )
    hue = rng.uniform(-config.hue, config.hue)
    pixels = np.clip(image.astype(np.float32) * brightness, 0, 255)
    mean = (pixels @ _LUMA).mean()
    pixels = np.clip(mean + contrast * (pixels - mean), 0, 255)
    grey = (pixels @ _LUMA)[..., None]
    pixels = np.clip(grey + saturation * (pixels - grey), 0, 255)
    return _shift_hue(np.rint(pixels).astype(np.uint8), hue)


def _shift_hue(image: Pixels, turns: float) -> Pixels:
    steps = round(turns * 256)  # Pillow's hue is a byte
    if steps % 256 == 0:
        return image
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + steps) % 256
    return np.array(Image.fromarray(hsv, "HSV").convert("RGB"))

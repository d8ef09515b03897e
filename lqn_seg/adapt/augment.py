"""Augmented views of a test image, for the ablation that fits a student to several of them.

The paper's own method looks at the image alone; methods with prompts (TPT) look at 63 more. A view
is what it is there: a random part of the image, resized to the whole's size, mirrored half the
time (torchvision's RandomResizedCrop and RandomHorizontalFlip at their defaults, except that a part
too long for the image is cut at its border instead of drawn again).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lqn_seg.core.random import CounterRandom, RandomKey
from lqn_seg.core.sampling import Draw

LEAST_AREA = 0.08  # of the image's
LONGEST = 4 / 3  # width over height, and height over width


def augmented_views(images: Tensor, keys: Sequence[RandomKey], count: int) -> Tensor:
    """(B, C, h, w) images to (B, count, C, h, w): each itself, and count - 1 views of it."""
    numbers = CounterRandom(keys).uniform((5,), torch.arange(1, count), Draw.VIEW).tolist()
    return torch.stack(
        [
            torch.stack([image, *(_view(image, *five) for five in of_image)])
            for image, of_image in zip(images, numbers)
        ]
    )


def _view(
    image: Tensor, area: float, shape: float, top: float, left: float, mirror: float
) -> Tensor:
    """One view of a (C, h, w) image, from five numbers in [0, 1)."""
    y, x, height, width = crop_box((image.shape[1], image.shape[2]), area, shape, top, left)
    part = image[:, y : y + height, x : x + width]
    view = F.interpolate(part[None], image.shape[1:], mode="bilinear", antialias=True)[0]
    return view.flip(-1) if mirror < 0.5 else view


def crop_box(
    size: tuple[int, int], area: float, shape: float, top: float, left: float
) -> tuple[int, int, int, int]:
    """(y, x, height, width) of a part of an image, from four numbers in [0, 1)."""
    pixels = (LEAST_AREA + (1 - LEAST_AREA) * area) * size[0] * size[1]
    ratio = LONGEST ** (2 * shape - 1)
    height = min(max(round(math.sqrt(pixels / ratio)), 1), size[0])
    width = min(max(round(math.sqrt(pixels * ratio)), 1), size[1])
    return int(top * (size[0] - height + 1)), int(left * (size[1] - width + 1)), height, width

"""How an image meets a CLIP: as the model's own preprocessing has it, and as crops of it.

View 0 is resized and cropped in the middle, or padded, as the checkpoint says. The baselines'
others are torchvision's RandomResizedCrop with its defaults (area 8-100%, aspect 3/4-4/3, bilinear)
and a mirror image half of the time, the recipe that the test-time methods share. Random numbers
depend on the image's pixels and the seed alone. The students' others are view 0's mirror image and
its corners, both ways round: the ten views of Krizhevsky et al. (NIPS 2012), nothing random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as V
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from lqn_seg.core.random import RandomKey, Stream, image_seed
from lqn_seg.teachers.clip import ClipTeacher

CORNER_SIDE = 0.85  # of the view's side, of a crop in a corner


def centre_view(image: NDArray[np.uint8], teacher: ClipTeacher) -> Tensor:
    """(H, W, 3) uint8 RGB to (3, S, S) uint8, as open_clip does before it normalises."""
    height, width = teacher.image_size
    picture = Image.fromarray(image)
    mode = InterpolationMode(teacher.preprocessing.interpolation)
    if teacher.resize_mode == "squash":
        return _to_tensor(V.resize(picture, [height, width], mode))
    if teacher.resize_mode == "longest":
        picture = V.resize(picture, _scaled(picture, teacher.image_size, max), mode)
        missing = [max(wanted - side, 0) for wanted, side in zip((width, height), picture.size)]
        before, after = [n // 2 for n in missing], [(n + 1) // 2 for n in missing]
        padded = V.pad(picture, [*before, *after], fill=teacher.fill_color)
        return _to_tensor(V.center_crop(padded, [height, width]))
    if height == width:
        resized = V.resize(picture, [height], mode)
    else:  # open_clip's is bicubic there, whatever the configuration says
        size = _scaled(picture, teacher.image_size, min)
        resized = V.resize(picture, size, InterpolationMode.BICUBIC)
    return _to_tensor(V.center_crop(resized, [height, width]))


def _scaled(
    picture: Image.Image, size: tuple[int, int], which: Callable[[list[float]], float]
) -> list[int]:
    """[height, width] of a picture, by the larger or the smaller ratio of its sides to ``size``."""
    sides = picture.size[::-1]
    ratio = which([side / wanted for side, wanted in zip(sides, size)])
    return [max(round(side / ratio), 1) for side in sides]


def random_views(
    image: NDArray[np.uint8], teacher: ClipTeacher, count: int, key: RandomKey
) -> Tensor:
    """(H, W, 3) uint8 RGB to (count, 3, S, S) uint8 random crops, some of them mirrored."""
    picture, size = Image.fromarray(image), list(teacher.image_size)
    cut = transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(image_seed(key, Stream.VIEW))
        views = [_to_tensor(cut(picture)) for _ in range(count)]
    return torch.stack(views) if views else torch.empty(0, 3, *size, dtype=torch.uint8)


def corner_view(pixels: Tensor, number: int) -> Tensor:
    """One of the `CORNER_VIEWS` views of (B, 3, S, S) floating-point pixels, of the same shape.

    0 is the image, 1 its mirror image, 2 to 5 its corners, those on the right mirrored, and 6 to 9
    the same corners the other way round: any first few of them are of both ways and many places.
    """
    mirror = number == 1
    if number >= 2:
        down, right = divmod((number - 2) % 4, 2)
        mirror = bool(right) != (number >= 6)
        size = pixels.shape[-2:]
        h, w = (round(CORNER_SIDE * side) for side in size)
        rows, columns = (slice(-n, None) if far else slice(n) for n, far in ((h, down), (w, right)))
        pixels = F.interpolate(pixels[..., rows, columns], size, mode="bilinear")
    return pixels.flip(-1) if mirror else pixels


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).movedim(2, 0)

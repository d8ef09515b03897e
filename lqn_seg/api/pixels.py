"""One image convention for every model: what a user hands over, as (H, W, 3) uint8 RGB pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lqn_seg.data.images import pixels_of, read_image
from lqn_seg.data.shipped import find_local
from lqn_seg.errors import InputError

Pixels = NDArray[np.uint8]
ImageLike = str | os.PathLike[str] | Image.Image | Pixels | Tensor


class Picture(NamedTuple):
    """An image that was read.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        file: what it is called in files of results: its file's name, or "image-0.png" and so on.
    """

    pixels: Pixels
    file: str


def read_picture(image: ImageLike, number: int = 0) -> Picture:
    """Read an image of any kind; an `InputError` where it is none.

    Args:
        number: names what comes without a file.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(find_local(os.fspath(image)))
        if path.is_dir():
            raise InputError(f"image {image} is a folder: pass a list of its files")
        return Picture(read_image(path), path.name)
    unnamed = f"image-{number}.png"
    if isinstance(image, Image.Image):
        return Picture(pixels_of(image), unnamed)
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray):
        kinds = "a path, a PIL image, an array or a tensor"
        raise InputError(f"an image must be {kinds}, not {type(image).__name__}")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        hint = ""
        if array.ndim == 3 and array.shape[0] == 3:
            move = "permute(1, 2, 0)" if isinstance(image, Tensor) else "transpose(1, 2, 0)"
            hint = f"; channels come last: .{move}"
        raise InputError(
            f"an image must be (height, width, 3) uint8 RGB, got {array.dtype} {array.shape}{hint}"
        )
    return Picture(np.ascontiguousarray(array), unnamed)


def is_many(images: Any) -> bool:
    """Whether a list of images was handed over, and not one."""
    return isinstance(images, Sequence) and not isinstance(images, str)

"""A teacher's token field as feature maps of an image of any multiple of the teacher's size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Teacher


def feature_maps(teacher: Teacher[Any], pixels: Tensor) -> Tensor:
    """Block outputs of every layer, without gradients.

    An image larger than the teacher's S x S pixels is cut into S x S tiles, which do not see each
    other, and their maps are put together again.

    Args:
        teacher: frozen, L layers, D features, patches of p x p pixels.
        pixels: (B, 3, h, w) RGB in 0..255, h and w multiples of S.

    Returns:
        (L, B, D, h / p, w / p).

    Raises:
        InputError: h or w is no multiple of S.
    """
    (height, width), (rows, columns) = pixels.shape[-2:], teacher.image_size
    if height % rows or width % columns:
        raise InputError(
            f"the teacher takes images padded to multiples of {rows} x {columns} pixels, not "
            f"{height} x {width}"
        )
    mean, std = (
        pixels.new_tensor(values).view(3, 1, 1)
        for values in (teacher.pixel_mean, teacher.pixel_std)
    )
    tiles = (pixels / 255 - mean) / std
    tiles = tiles.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))  # (B, 3, down, S, across, S)
    field, _ = teacher.encode(tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
    field = field.unflatten(0, (-1, height // rows, width // columns))
    # (B, down, across, L, H, W, D) -> (L, B, D, down * H, across * W)
    return field.permute(3, 0, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4)

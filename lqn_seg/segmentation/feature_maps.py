"""A teacher's token field as feature maps of an image of any size."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lqn_seg.teachers.base import Teacher, normalise


def feature_maps(
    teacher: Teacher[Any], images: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0
) -> Tensor:
    """Block outputs of every layer, without gradients.

    An image is padded at the bottom and right to multiples of the teacher's S x S pixels, as by
    Detectron2's `ImageList` (with zeros, the mean colour of a normalised image), and cut into
    S x S tiles, which do not see each other. Their maps are put together again, and what lies
    wholly in the padding is cut off.

    Args:
        teacher: frozen, L layers, D features, patches of p x p pixels. S need not be square.
        images: (B, 3, h, w) RGB, (pixels in 0..255 - mean) / std.
        mean, std: of ``images``, (3, 1, 1) each; by default the pixels themselves.

    Returns:
        (L, B, D, ceil(h / p), ceil(w / p)).
    """
    # Whole numbers where a tracer has tensors: the tiles of a traced model are those of its image.
    (height, width), (rows, columns) = map(int, images.shape[-2:]), teacher.image_size
    padded = F.pad(images, (0, -width % columns, 0, -height % rows))
    # (B, 3, down, S, across, S)
    tiles = padded.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
    down, across = tiles.shape[2], tiles.shape[4]
    pixels = (tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2) * std + mean) / 255
    field, _ = teacher.encode(normalise(pixels, teacher.pixel_mean, teacher.pixel_std))
    field = field.unflatten(0, (-1, down, across))
    # (B, down, across, L, H, W, D) -> (L, B, D, down * H, across * W)
    maps = field.permute(3, 0, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4)
    patch = rows // teacher.grid[0]
    return maps[..., : -(-height // patch), : -(-width // patch)]

"""A teacher's token field as feature maps of an image of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lqn_seg.errors import InputError
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


class FeatureMaps(nn.Module):
    """Block outputs of a frozen teacher as ``layer1`` ... ``layerL``, at the stride of its patches.

    Args:
        teacher: frozen.
        out_features: names of the maps to give out; all where empty.
        pixel_mean, pixel_std: what the images are normalised with, which is taken back first: the
            teacher has its own normalisation.
        input_format: channel order of the images, ``RGB`` or ``BGR``.

    Raises:
        InputError: a name is no layer of the teacher, or the format is another.
    """

    normalisation: Tensor  # (2, 3, 1, 1), mean and standard deviation

    def __init__(
        self,
        teacher: Teacher[Any],
        out_features: Sequence[str] = (),
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        input_format: str = "BGR",
    ) -> None:
        super().__init__()
        if len(pixel_mean) != 3 or input_format not in ("RGB", "BGR"):
            raise InputError(f"INPUT.FORMAT must be RGB or BGR, not {input_format!r}")
        layers = {f"layer{index + 1}": index for index in range(teacher.num_layers)}
        if unknown := [name for name in out_features if name not in layers]:
            raise InputError(
                f"MODEL.LQN.BACKBONE.OUT_FEATURES: there is no map {unknown[0]!r}, the teacher has "
                f"layer1 to layer{teacher.num_layers}"
            )
        self.teacher, self.flip = teacher, input_format == "BGR"
        self.teacher_model = teacher.model  # so that .to() and state_dict() see it
        self.layers = {name: layers[name] for name in out_features or layers}
        self.stride = teacher.image_size[0] // teacher.grid[0]  # side of a patch, in pixels
        values = torch.tensor([list(pixel_mean), list(pixel_std)], device=teacher.device)
        normalisation = (values.flip(1) if self.flip else values)[..., None, None]
        self.register_buffer("normalisation", normalisation, persistent=False)

    def train(self, mode: bool = True) -> FeatureMaps:
        """Changes nothing: the teacher is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (B, D, ceil(h / stride), ceil(w / stride)) of normalised images (B, 3, h, w)."""
        rgb = images.flip(1) if self.flip else images
        maps = feature_maps(self.teacher, rgb, self.normalisation[0], self.normalisation[1])
        return {name: maps[index] for name, index in self.layers.items()}

"""transformers' EoMT classes, for images that are not square and for other sizes too. Position
embeddings are resampled as the original does it (timm's ``resample_abs_pos_embed``, bicubic with
antialiasing); with DINOv3 they are rotary, and any size will do."""

from typing import Any

import torch
import transformers
from timm.layers import resample_abs_pos_embed
from torch import nn
from transformers import EomtConfig

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Size

# What an EoMT's parameters of its ViT begin with; the rest is queries and heads.
VIT_PARTS = ("embeddings.", "layers.", "layernorm.")


def image_size_of(config: Any) -> Size:
    """(height, width) of an EoMT's images; an `InputError` where they are no whole numbers."""
    size = config.image_size
    height, width = (size, size) if not isinstance(size, list | tuple) else (*size, None, None)[:2]
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise InputError(
            f"image_size of a config.json must be one whole number or (height, width), not {size!r}"
        )
    return height, width


class _AnySize:
    """Comes before a transformers EoMT: builds it for the sides of ``config.image_size``."""

    def __init__(self, config: Any) -> None:
        size = image_size_of(config)
        config.image_size = max(size)  # transformers divides it by the patch size: one number
        super().__init__(config)  # type: ignore[call-arg]
        if size[0] != size[1]:
            set_image_size(self, size)


class EomtForUniversalSegmentation(_AnySize, transformers.EomtForUniversalSegmentation):
    """transformers' EoMT (DINOv2), under its own name, for it is written into saved models."""


if hasattr(transformers, "EomtDinov3ForUniversalSegmentation"):

    class EomtDinov3ForUniversalSegmentation(
        _AnySize, transformers.EomtDinov3ForUniversalSegmentation
    ):
        """transformers' EoMT on DINOv3 (transformers 5), likewise."""


def eomt_classes(model_type: str) -> tuple[type, type]:
    """Configuration and model class of a ``model_type``; an `InputError` where it is neither
    ``eomt`` nor ``eomt_dinov3``, or this transformers does not have it."""
    if model_type == "eomt":
        return EomtConfig, EomtForUniversalSegmentation
    if model_type != "eomt_dinov3":
        raise InputError(f"the teacher must be an eomt or eomt_dinov3, not {model_type!r}")
    if not hasattr(transformers, "EomtDinov3ForUniversalSegmentation"):
        raise InputError(
            f"EoMT on DINOv3 needs transformers 5 or later, this is {transformers.__version__}"
        )
    return transformers.EomtDinov3Config, EomtDinov3ForUniversalSegmentation


def build_eomt(config: Any) -> Any:
    """A model of a configuration, with transformers' random start; an `InputError` where its sides
    are no multiples of its patch size."""
    _grid(image_size_of(config), config.patch_size)
    return eomt_classes(config.model_type)[1](config)


@torch.no_grad()
def set_image_size(model: Any, size: Size) -> None:
    """Let a model take images of another (height, width), in place: position embeddings are
    resampled as EoMT's code does it when it starts from DINOv2. An `InputError` as of
    `build_eomt`."""
    grid = _grid(size, model.config.patch_size)
    embeddings = model.embeddings
    if model.config.model_type == "eomt" and grid != model.grid_size:
        old = embeddings.position_embeddings.weight
        if old.is_meta:  # being built to be loaded into: only the shape counts
            new = old.new_empty(grid[0] * grid[1], old.shape[1])
        else:
            new = resample_abs_pos_embed(
                old[None], list(grid), list(model.grid_size), num_prefix_tokens=0
            )[0]
        embeddings.position_embeddings = nn.Embedding(len(new), new.shape[1], _weight=new)
        embeddings.position_ids = nn.Buffer(
            # transformers 4 builds weights on the meta device, and buffers on the real one.
            torch.arange(len(new), device=embeddings.position_ids.device)[None],
            persistent=False,
        )
        embeddings.patch_embeddings.image_size = size
        embeddings.patch_embeddings.num_patches = len(new)
    model.grid_size = grid
    model.config.image_size = size[0] if size[0] == size[1] else list(size)


def _grid(size: Size, patch: int) -> Size:
    if any(side < patch or side % patch for side in size):
        raise InputError(
            f"an EoMT with patches of {patch} pixels cannot take images of {size[0]}x{size[1]}: "
            "both sides must be multiples of it"
        )
    return size[0] // patch, size[1] // patch

"""DINOv2 alone, without a mask head: timm's ViT as a frozen teacher, and as a start for an EoMT."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from lqn_seg.core.precision import resolve_precision
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import PrefixContext, Preprocessing, Size, Teacher
from lqn_seg.teachers.eomt_model import image_size_of
from lqn_seg.teachers.files import WEIGHT_FILES, find_file, named, read_json, read_weights
from lqn_seg.teachers.modules import accelerate, lower_weights
from lqn_seg.teachers.original_eomt import convert_timm, load_strictly
from lqn_seg.teachers.preprocessing import interpolation_of, timm_values

_KEY = "MODEL.LQN.TEACHER.WEIGHTS"


class Dinov2Teacher(Teacher[PrefixContext]):
    """A frozen ViT of timm's."""

    name = "DINOv2"

    def __init__(self, model: VisionTransformer, precision: str = "float32") -> None:
        grid, size = model.patch_embed.grid_size, model.patch_embed.img_size
        super().__init__(
            *(model, list(model.blocks), model.embed_dim, tuple(grid), tuple(size)),
            *(precision, preprocessing_of_timm(model)),
        )
        accelerate(model)

    def start(self, images: Tensor) -> tuple[Tensor, PrefixContext]:
        with self.products():
            state = self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(images)))
        count = self.model.num_prefix_tokens
        return state[:, count:].unflatten(1, self.grid), PrefixContext(state[:, None, :count])


def preprocessing_of_timm(model: VisionTransformer) -> Preprocessing:
    """What a timm model says of its input, but its crop: token fields are of all pixels."""
    about: Any = model.pretrained_cfg
    where = "timm's pretrained_cfg"
    filter_name = interpolation_of(about, where, "interpolation")
    mean, std = tuple(about["mean"]), tuple(about["std"])
    return Preprocessing(mean, std, filter_name, source=where)


def load_dinov2(
    weights: str,
    config: str = "",
    device: str | torch.device = "cpu",
    image_size: Size | None = None,
    precision: str = "float32",
) -> Dinov2Teacher:
    """Load a frozen DINOv2 teacher; an `InputError` where a file is missing or does not fit.

    Args:
        weights: a directory or hub id in timm's layout (``config.json`` with the ``architecture``
            beside the weights), such as ``timm/vit_large_patch14_reg4_dinov2.lvd142m``, or a file
            (timm's or Meta's own) with such a ``config.json`` beside it; empty for random weights.
        config: path of a JSON file in timm's form in place of that ``config.json``:
            ``{"architecture": ..., "model_args": {...}}``.
        image_size: (height, width) in pixels, multiples of the patch size; default: the
            architecture's. Position embeddings are resampled as timm does it.
        precision: of the matrix products, or "auto"; the weights are lowered to it.
    """
    model = build_dinov2(weights, config, image_size, None, _KEY).to(device)
    teacher = Dinov2Teacher(model, resolve_precision(precision, torch.device(device)))
    lower_weights(model, teacher.precision)
    return teacher


def build_dinov2(
    weights: str, config: str, image_size: Size | None, patch_size: int | None, key: str
) -> VisionTransformer:
    """timm's ViT with the weights of `load_dinov2`; its patches resampled to ``patch_size``."""
    path = Path(weights)
    folder = str(path.parent) if weights and path.is_file() else weights
    shape = Path(config) if config else find_file(folder, ("config.json",), key)
    if shape is None:
        raise InputError(
            f"{key}: {weights} has no config.json of timm's beside it, or could not be fetched"
        )
    content = read_json(shape, key)
    sizes = {"img_size": image_size, "patch_size": patch_size}
    arguments = {**content.get("model_args", {}), **{k: v for k, v in sizes.items() if v}}
    pretrained = timm_values(content, f"{key}: {shape}")
    with named(f"{key}: {shape} does not name a ViT of timm's that can be built"):
        model = timm.create_model(
            content["architecture"], num_classes=0, pretrained_cfg_overlay=pretrained, **arguments
        )
    if not isinstance(model, VisionTransformer) or model.cls_token is None:
        raise InputError(f"{key}: {content['architecture']} is no ViT with a CLS token")
    if not weights:
        return model
    file = path if path.is_file() else find_file(weights, WEIGHT_FILES, key)
    if file is None:
        raise InputError(f"{key}: {weights} holds no {' or '.join(WEIGHT_FILES)}")
    with named(f"{key}: {file} does not fit the model"):
        # Meta's names to timm's, and the size of patches and grid to the model's.
        state = checkpoint_filter_fn(read_weights(file, key), model)
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    load_strictly(model, state, f"{key}: {file}")
    return model


def start_from_dinov2(model: Any, weights: str) -> Preprocessing:
    """Give a new EoMT, in place, the ViT of a DINOv2, and return what that says of its input.

    Position embeddings are resampled to the EoMT's grid, the patch embedding to its patches;
    queries, mask head and class head keep their random start. An `InputError` where the ViTs differ
    in shape.
    """
    key, eomt = "MODEL.LQN.TRAIN.BACKBONE", model.config
    vit = build_dinov2(weights, "", image_size_of(eomt), eomt.patch_size, key)
    block: Any = vit.blocks[0]
    heads = block.attn.num_heads
    if heads != eomt.num_attention_heads:
        raise InputError(
            f"{key}: {weights} has {heads} attention heads, the EoMT {eomt.num_attention_heads}"
        )
    kept = ("query.", "class_predictor.", "mask_head.", "upscale_block.", "attn_mask_probs")
    rest = {name: value for name, value in model.state_dict().items() if name.startswith(kept)}
    load_strictly(model, {**convert_timm(vit.state_dict(), key), **rest}, f"{key}: {weights}")
    return preprocessing_of_timm(vit)

"""DINOv2, alone or with a linear head: timm's ViT as a frozen teacher, and as a start for an
EoMT."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from lqn_seg.core.precision import resolve_precision
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import PrefixContext, Preprocessing, Size, Teacher
from lqn_seg.teachers.eomt_model import VIT_PARTS, build_eomt, image_size_of
from lqn_seg.teachers.files import WEIGHT_FILES, find_file, named, read_json, read_weights
from lqn_seg.teachers.linear_head import attach, read_linear_head
from lqn_seg.teachers.modules import accelerate, attend, lower_weights
from lqn_seg.teachers.original_eomt import HEAD_WIDTH, convert_timm, load_strictly, rename
from lqn_seg.teachers.preprocessing import interpolation_of, timm_values

_KEY = "MODEL.LQN.TEACHER.WEIGHTS"
_PATCH = 14  # of timm's DINOv2 architectures

# transformers' Dinov2Model and Dinov2WithRegistersModel -> Meta's DINOv2
TRANSFORMERS_NAMES = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", r"patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.", r"blocks.\1.attn."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", r"norm."),
)


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
        for module in model.modules():
            if type(module) is Attention and _is_plain(module):
                module.__class__ = _Attention

    @property
    def has_head(self) -> bool:
        return isinstance(self.model.head, nn.Linear)

    def resized(self, size: Size) -> Dinov2Teacher:
        shared = {id(x): x for x in (*self.model.parameters(), *self.model.buffers())}
        model = copy.deepcopy(self.model, shared)
        model.set_input_size(size)
        return Dinov2Teacher(model, self.precision)

    def start(self, images: Tensor) -> tuple[Tensor, PrefixContext]:
        with self.products():
            state = self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(images)))
        count = self.model.num_prefix_tokens
        return state[:, count:].unflatten(1, self.grid), PrefixContext(state[:, None, :count])


class _Attention(Attention):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)
        mixed = attend(self.q_norm(q), self.k_norm(k), v, attn_mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def _is_plain(attention: Any) -> bool:
    gate = getattr(attention, "gate", None)  # timm 1.0.24 and later
    return gate is None and isinstance(attention.norm, nn.Identity)


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
            beside the weights), such as ``timm/vit_large_patch14_reg4_dinov2.lvd142m``, or in
            transformers' (``facebook/dinov2-small``), or a file (timm's with such a ``config.json``
            beside it, or Meta's own); empty for random weights.
            A linear head in the directory becomes the model's (`linear_head`).
        config: path of a JSON file in timm's form in place of that ``config.json``:
            ``{"architecture": ..., "model_args": {...}}``.
        image_size: (height, width) in pixels, multiples of the patch size; default: what the head
            was trained at, or else the architecture's. Position embeddings are resampled as timm
            does it.
        precision: of the matrix products, or "auto"; the weights are lowered to it.
    """
    head = read_linear_head(weights, _KEY)
    size = image_size or (head.image_size if head else None)
    model = build_dinov2(weights, config, size, None, _KEY)
    if head:
        attach(head, model)
    model.to(device)
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
    content = read_json(shape, key) if shape else {}
    where = f"{key}: {shape or weights}"
    state = _read_state(weights, key) if weights else {}
    if "architecture" not in content and is_dinov2(state):
        content = {**described_by(state, content), **content}
    sizes = {"img_size": image_size, "patch_size": patch_size}
    arguments = {**content.get("model_args", {}), **{k: v for k, v in sizes.items() if v}}
    pretrained = timm_values(content, where)
    with named(f"{where} does not name a ViT of timm's that can be built"):
        model = timm.create_model(
            content["architecture"], num_classes=0, pretrained_cfg_overlay=pretrained, **arguments
        )
    if not isinstance(model, VisionTransformer) or model.cls_token is None:
        raise InputError(f"{key}: {content['architecture']} is not a ViT with a CLS token")
    (height, width), patch = model.patch_embed.img_size, model.patch_embed.patch_size
    if height % patch[0] or width % patch[1]:
        raise InputError(
            f"{where}: {height}x{width} pixels are not a whole number of patches of {patch[0]}"
        )
    if not weights:
        return model
    with named(f"{key}: {weights} does not fit the model"):
        # Meta's names to timm's, and the size of patches and grid to the model's.
        state = checkpoint_filter_fn(state, model)
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    load_strictly(model, state, f"{key}: {weights}")
    return model


def _read_state(weights: str, key: str) -> dict[str, Tensor]:
    """Tensors in timm's or Meta's names; those of transformers' become Meta's."""
    path = Path(weights)
    file = path if path.is_file() else find_file(weights, WEIGHT_FILES, key)
    if file is None:
        raise InputError(
            f"{key}: {weights} holds no {' or '.join(WEIGHT_FILES)}, or could not be fetched"
        )
    state = {name.removeprefix("dinov2."): x for name, x in read_weights(file, key).items()}
    if "embeddings.cls_token" not in state:
        return state
    state = {name: x for name, x in state.items() if not name.startswith("classifier.")}
    state = rename(state, TRANSFORMERS_NAMES, f"{key}: {file}")
    for name in [name for name in state if ".query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        state[name.replace(".query.", ".qkv.")] = torch.cat([state.pop(part) for part in parts])
    return state


def is_dinov2(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a DINOv2 in Meta's names, which alone say its shape."""
    return {"mask_token", "cls_token", "pos_embed", "blocks.0.ls1.gamma"} <= set(state)


def described_by(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's ``architecture`` and ``model_args`` of a DINOv2 in Meta's names. The number of heads,
    which no tensor has, is that of transformers' ``config``, or a head's width is 64."""
    width, patch = state["patch_embed.proj.weight"].shape[::3]
    swiglu = "blocks.0.mlp.w12.weight" in state
    kind = ("giant" if swiglu else "small") + f"_patch{_PATCH}"
    kind += "_reg4" if "register_tokens" in state else ""
    arguments = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        "num_heads": config.get("num_attention_heads", max(width // HEAD_WIDTH, 1)),
        "img_size": patch * math.isqrt(state["pos_embed"].shape[1] - 1),
    }
    if "register_tokens" in state:
        arguments["reg_tokens"] = state["register_tokens"].shape[1]
    return {"architecture": f"vit_{kind}_dinov2", "model_args": arguments}


def eomt_from_dinov2(config: Any, weights: str) -> tuple[Any, Preprocessing]:
    """A new EoMT of a configuration with the ViT of a DINOv2, and what that says of its input.

    Position embeddings are resampled to the EoMT's grid, the patch embedding to its patches; it has
    as many register tokens as the DINOv2. Queries, mask head and class head start at random. An
    `InputError` where the ViTs differ in shape.
    """
    key = "MODEL.LQN.TRAIN.BACKBONE"
    vit = build_dinov2(weights, "", image_size_of(config), config.patch_size, key)
    config.num_register_tokens = vit.num_reg_tokens
    model, block = build_eomt(config), cast(Any, vit.blocks[0])
    heads = block.attn.num_heads
    if heads != config.num_attention_heads:
        raise InputError(
            f"{key}: {weights} has {heads} attention heads, the EoMT {config.num_attention_heads}"
        )
    kept = (*VIT_PARTS, "criterion.")  # of the loss, which no file holds
    head = {name: x for name, x in model.state_dict().items() if not name.startswith(kept)}
    load_strictly(model, {**convert_timm(vit.state_dict(), key), **head}, f"{key}: {weights}")
    return model, preprocessing_of_timm(vit)

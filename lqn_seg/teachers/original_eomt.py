"""EoMT files in the layout of the original release, turned into transformers'.

The original (github.com/tue-mps/eomt) saves ``network.encoder.backbone.*`` in timm's names (DINOv2)
or transformers' (DINOv3), and the head beside it. In published DINOv3 files everything under
``encoder`` is the difference to Meta's own weights, which one has to ask for.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Size
from lqn_seg.teachers.eomt_model import build_eomt, eomt_classes
from lqn_seg.teachers.files import named

State = dict[str, Tensor]

_BACKBONE = "encoder.backbone."
_PIXELS = ("encoder.pixel_mean", "encoder.pixel_std")  # of the input, no part of the model
_DROPPED = (*_PIXELS, "criterion.empty_weight")
_POSITIONS = "embeddings.position_embeddings.weight"
_CLS, _REGISTERS = "embeddings.cls_token", "embeddings.register_tokens"
_DOWN = ".mlp.down_proj."  # of a SwiGLU
HEAD_WIDTH = 64  # of an attention head, in every DINOv2 and DINOv3

# timm's ViT -> transformers' EoMT
TIMM_NAMES = (
    (r"cls_token", r"embeddings.cls_token"),
    (r"reg_token", r"embeddings.register_tokens"),
    (r"pos_embed", _POSITIONS),
    (r"patch_embed\.proj\.", r"embeddings.patch_embeddings.projection."),
    (r"blocks\.(\d+)\.(norm[12])\.", r"layers.\1.\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.attention.qkv."),  # still to be split
    (r"blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.out_proj."),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"layers.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.", r"layers.\1.mlp."),
    (r"norm\.", r"layernorm."),
)
# transformers' DINOv3 -> transformers' EoMT; the original's names, then those of the base weights
DINOV3_NAMES = (
    (r"(?:patch_embed|embeddings)\.(cls_token|register_tokens)", r"embeddings.\1"),
    (r"(?:patch_embed|embeddings)\.patch_embeddings\.", r"embeddings.patch_embeddings."),
    (r"(?:blocks|layer|model\.layer)\.(\d+)\.", r"layers.\1."),
    (r"norm\.", r"layernorm."),
)
HEAD_NAMES = (
    (r"q\.weight", r"query.weight"),
    (r"class_head\.", r"class_predictor."),
    (r"mask_head\.0\.", r"mask_head.fc1."),
    (r"mask_head\.2\.", r"mask_head.fc2."),
    (r"mask_head\.4\.", r"mask_head.fc3."),
    (r"upscale\.(\d+)\.(conv[12])\.", r"upscale_block.block.\1.\2."),
    (r"upscale\.(\d+)\.norm\.", r"upscale_block.block.\1.layernorm2d."),
    (r"attn_mask_probs", r"attn_mask_probs"),
)


def is_original(state: Mapping[str, Tensor]) -> bool:
    return any(_BACKBONE in name for name in state)


def pixel_tensors(state: Mapping[str, Tensor]) -> State:
    """Mean and deviation of the input that an original file holds, by their last two names."""
    return {key: value for key, value in _short_names(state).items() if key in _PIXELS}


def _short_names(state: Mapping[str, Tensor]) -> State:
    return {re.sub(r"^network\.|_orig_mod\.", "", name): value for name, value in state.items()}


def convert_original(
    state: Mapping[str, Tensor],
    key: str,
    *,
    image_size: Size | None = None,
    overrides: Mapping[str, Any] | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> Any:
    """A transformers EoMT from the tensors of an original file, loaded strictly.

    Args:
        key: where the file comes from, for messages.
        image_size: (height, width) in pixels, wherever the file's position embeddings do not say
            it: DINOv3 has none, and DINOv2's may be no square.
        overrides: values of the ``EomtConfig`` in place of what the tensors' shapes say.
        base: for delta weights, those of DINOv3 that they are the difference to.
    """
    short = {n: value for n, value in _short_names(state).items() if n not in _DROPPED}
    inside = {n: value for n, value in short.items() if n.startswith(_BACKBONE)}
    backbone = {n.removeprefix(_BACKBONE): value for n, value in inside.items()}
    head = rename({n: x for n, x in short.items() if n not in inside}, HEAD_NAMES, key)
    # Off is off, whatever a difference to a start value of one has made of it.
    if "attn_mask_probs" in head:
        head["attn_mask_probs"] = head["attn_mask_probs"].clamp(0, 1)
    if "pos_embed" in backbone:
        vit, kind = convert_timm(backbone, key), "eomt"
    else:
        vit, kind = rename(backbone, DINOV3_NAMES, key), "eomt_dinov3"
    if base is not None:
        vit = _add_base(vit, base, key)
    converted = {**vit, **head}
    with named(f"{key}: the file does not hold an EoMT"):
        model = build_eomt(_config(converted, kind, key, image_size, overrides or {}))
    load_strictly(model, converted, key)
    return model


def rename(state: Mapping[str, Tensor], names: tuple[tuple[str, str], ...], key: str) -> State:
    """Every name by the first pattern of a table that it begins with; an `InputError` without
    one."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in names:
            if re.match(pattern, name):
                renamed[re.sub(f"^{pattern}", replacement, name)] = value
                break
        else:
            raise InputError(f"{key}: the file has the unexpected key {name}")
    return renamed


def convert_timm(state: Mapping[str, Tensor], key: str) -> State:
    """A timm ViT's tensors under the names of transformers' EoMT, q, k and v apart, and so gate and
    value of a SwiGLU, as transformers has them from 5.18 on."""
    renamed = rename(state, TIMM_NAMES, key)
    first, second = (renamed.get(f"layers.0.mlp.fc{k}.weight") for k in (1, 2))
    parts: dict[str, tuple[str, ...]] = {}
    parts[".attention.qkv."] = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")
    if first is not None and second is not None and len(first) == 2 * second.shape[1]:
        parts |= {".mlp.fc1.": (".mlp.gate_proj.", ".mlp.up_proj."), ".mlp.fc2.": (_DOWN,)}
    converted = {}
    for name, value in renamed.items():
        whole = next((part for part in parts if part in name), "")
        pieces = parts.get(whole, ("",))
        for piece, tensor in zip(pieces, value.chunk(len(pieces))):
            converted[name.replace(whole, piece)] = tensor
    if _POSITIONS in converted:
        positions = converted[_POSITIONS].squeeze(0)
        if _REGISTERS not in converted:  # then the first position is the CLS token's
            converted[_CLS] = converted[_CLS] + positions[0]
            converted[_REGISTERS] = positions.new_zeros(1, 0, positions.shape[1])
            positions = positions[1:]
        converted[_POSITIONS] = positions
    return converted


def _fuse_swiglu(state: Mapping[str, Tensor]) -> State:
    """Gate and value in one matrix again, which transformers before 5.18 has."""
    fused = {}
    for name, value in state.items():
        if ".mlp.gate_proj." in name:
            other = state[name.replace("gate_proj", "up_proj")]
            fused[name.replace("gate_proj", "weights_in")] = torch.cat([value, other])
        elif ".mlp.up_proj." not in name:
            fused[name.replace(_DOWN, ".mlp.weights_out.")] = value
    return fused


def load_strictly(model: Any, state: Mapping[str, Tensor], key: str) -> None:
    """Copy tensors into a model; all of them, and all that it has but the loss's class weights. An
    `InputError` names the first three that are missing, unexpected or of another shape."""
    expected = {n: x for n, x in model.state_dict().items() if not n.startswith("criter")}
    if "layers.0.mlp.weights_in.weight" in expected:
        state = _fuse_swiglu(state)
    problems = {
        "missing": sorted(set(expected) - set(state)),
        "unexpected": sorted(set(state) - set(expected)),
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    parts = "; ".join(f"{k}: {', '.join(names[:3])}" for k, names in problems.items() if names)
    if parts:
        raise InputError(f"{key}: the file does not fit the model ({parts})")
    model.load_state_dict(dict(state), strict=False)


def _add_base(delta: State, base: Mapping[str, Tensor], key: str) -> State:
    """Delta weights and what they are the difference to, added up in float32."""
    known = {name: value for name, value in base.items() if not name.endswith("mask_token")}
    renamed = rename(known, DINOV3_NAMES, f"{key}, its base")
    problem = ""
    if wrong := sorted(set(delta) ^ set(renamed)):
        problem = f"{wrong[0]} is in {'the delta' if wrong[0] in delta else 'the base'} alone"
    elif wrong := [name for name in delta if delta[name].shape != renamed[name].shape]:
        shapes = (tuple(tensors[wrong[0]].shape) for tensors in (delta, renamed))
        problem = f"{wrong[0]} is {' and '.join(map(str, shapes))}"
    if problem:
        raise InputError(f"{key}: the delta weights and their base do not fit together: {problem}")
    return {name: value.float() + renamed[name].float() for name, value in delta.items()}


def _config(
    state: State, kind: str, key: str, image_size: Size | None, overrides: Mapping[str, Any]
) -> Any:
    """The configuration that a converted file's shapes say, and ``overrides``."""
    width, positions = state["layernorm.weight"].shape[0], state.get(_POSITIONS)
    patches = r"embeddings\.patch_.*weight"
    patch = next(x.shape[-1] for name, x in state.items() if re.match(patches, name))
    gated = "layers.0.mlp.gate_proj.weight" in state
    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": _count(state, r"layers\.(\d+)\."),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "patch_size": patch,
        "num_queries": state["query.weight"].shape[0],
        "num_labels": state["class_predictor.weight"].shape[0] - 1,
        "num_blocks": state["attn_mask_probs"].numel(),
        "num_upscale_blocks": _count(state, r"upscale_block\.block\.(\d+)\."),
        "num_register_tokens": state["embeddings.register_tokens"].shape[1],
        "image_size": list(image_size) if image_size else None,
    }
    if positions is not None:
        shape["use_swiglu_ffn"] = gated
        count = len(positions)
        side = math.isqrt(count)
        if image_size is None or (image_size[0] // patch) * (image_size[1] // patch) != count:
            shape["image_size"] = side * patch if side * side == count else None
        problem = f"of {count} position embeddings cannot be told, for they are no square: give it"
    else:
        shape |= {
            "intermediate_size": state["layers.0.mlp.up_proj.weight"].shape[0],
            "use_gated_mlp": gated,
            "layer_norm_eps": 1e-5,
        }
        for word in ("query", "key", "value"):
            shape[f"{word}_bias"] = f"layers.0.attention.{word[0]}_proj.bias" in state
        problem = "is in no tensor of a DINOv3, whose positions are rotary: give the image size"
    shape |= overrides
    if shape["image_size"] is None:
        raise InputError(f"{key}: the image size {problem}")
    return eomt_classes(kind)[0](**shape)


def _count(state: State, pattern: str) -> int:
    return 1 + max(int(m[1]) for name in state if (m := re.match(pattern, name)))

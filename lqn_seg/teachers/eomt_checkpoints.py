"""Checkpoints of an EoMT: transformers' layout, the original release's, Detectron2's training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Preprocessing, Size
from lqn_seg.teachers.eomt_model import build_eomt, eomt_classes, image_size_of, set_image_size
from lqn_seg.teachers.files import WEIGHT_FILES, find_file, named, read_json, read_weights
from lqn_seg.teachers.original_eomt import (
    convert_original,
    is_original,
    load_strictly,
    pixel_tensors,
)
from lqn_seg.teachers.preprocessing import (
    FILE_NAME,
    of_original,
    preprocessing_of,
    read_preprocessor,
    window_of,
)

ABSOLUTE = "absolute"  # in place of a base: the file is no difference to anything
_CONFIG, _BASE = "MODEL.LQN.TEACHER.CONFIG", "MODEL.LQN.TEACHER.BASE"
_WEIGHTS = "MODEL.LQN.TEACHER.WEIGHTS"
_NAMES = " or ".join(WEIGHT_FILES)
Read = tuple[Any, Preprocessing | None]  # a model in float32, and what is known of its input


def read_eomt(weights: str, config: str, image_size: Size | None, base: str) -> Read:
    """A model and its input; arguments and errors are those of `load_eomt`."""
    model, preprocessing = _read(weights, config, image_size, base)
    if image_size is not None:
        set_image_size(model, image_size)
    return model, preprocessing


def _read(weights: str, config: str, image_size: Size | None, base: str) -> Read:
    if not weights:
        with named(f"{_CONFIG}: no EoMT has the shape of {config}"):
            model = build_eomt(read_eomt_config(config))
        nn.init.zeros_(model.attn_mask_probs)  # transformers starts it at 1: masked attention on
        return model, None
    path = Path(weights)
    if not path.is_file():
        file = find_file(weights, ("config.json", *WEIGHT_FILES), _WEIGHTS)
        if path.is_dir() and file is None:
            raise InputError(f"{_WEIGHTS}: {weights} holds no config.json and no {_NAMES}")
        has_config = file is not None and file.name == "config.json"
        # The original's repositories may hold some config.json of their own.
        if file is None or (has_config and "model_type" in read_json(file, _WEIGHTS)):
            return _transformers(weights, image_size is None)
        if has_config:
            file = find_file(weights, WEIGHT_FILES[::-1], _WEIGHTS)
        if file is None:
            raise InputError(f"{_WEIGHTS}: {weights} holds no {_NAMES}")
        path = file
    state, key = read_weights(path, _WEIGHTS), f"{_WEIGHTS}: {path}"
    if is_original(state):
        return _original(state, path, key, config, image_size, base)
    return _trained(state, key, config)


def _transformers(weights: str, as_stated: bool) -> Read:
    """From transformers' layout, for images of the stated size if that is asked for."""
    model, preprocessing = _from_pretrained(weights), None
    if processor := read_preprocessor(weights, _WEIGHTS):
        content, where = processor[0], f"{_WEIGHTS}: {processor[1]}"
        preprocessing, window = preprocessing_of(content, where), window_of(content, where)
        size = image_size_of(model.config)
        if as_stated and window is not None and window != size:
            if model.config.model_type == "eomt":  # positions were learned at one size
                raise InputError(
                    f"{where}: size is {window[0]}x{window[1]}, but config.json's image_size is "
                    f"{size[0]}x{size[1]}; choose one with MODEL.LQN.TEACHER.IMAGE_SIZE"
                )
            set_image_size(model, window)
    return model, preprocessing


def _from_pretrained(weights: str) -> Any:
    how = "its config.json or weights are damaged or not those of an EoMT"
    if not Path(weights).is_dir():
        how = (
            "it is not in the model hub's cache and could not be fetched; download it on a "
            f"machine with internet access by `hf download {weights}` and give the directory"
        )
    with named(f"{_WEIGHTS}: {weights} could not be loaded: {how}"):
        file = find_file(weights, ("config.json",), _WEIGHTS)
        kind = read_json(file, _WEIGHTS).get("model_type", "") if file else "eomt"
        model, report = eomt_classes(kind)[1].from_pretrained(  # type: ignore[attr-defined]
            weights, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    bad = {key: sorted(map(str, report[key])) for key in report if key != "error_msgs"}
    parts = "; ".join(f"{key}: {', '.join(names[:3])}" for key, names in bad.items() if names)
    if parts:
        raise InputError(f"checkpoint {weights} does not fit its config.json ({parts})")
    return model


def _original(
    state: Mapping[str, Tensor],
    path: Path,
    key: str,
    config: str,
    image_size: Size | None,
    base: str,
) -> Read:
    overrides = read_json(Path(config), _CONFIG) if config else {}
    difference_to = None
    if any("pos_embed" in name for name in state):
        if base:
            raise InputError(f"{_BASE}: {path} is on DINOv2 and not a difference to {base}")
    else:
        difference_to, shape = _read_base(path, base)
        overrides = {**shape, **overrides}
    model = convert_original(
        state, key, image_size=image_size, overrides=overrides, base=difference_to
    )
    preprocessing = of_original(pixel_tensors(state), key, delta=difference_to is not None)
    for folder, at in ((str(path.parent), _WEIGHTS), (base, _BASE)):
        is_there = preprocessing is None and Path(folder, FILE_NAME).is_file()
        if is_there and (processor := read_preprocessor(folder, at)):
            preprocessing = preprocessing_of(processor[0], f"{at}: {processor[1]}")
    return model, preprocessing


def _trained(state: Mapping[str, Tensor], key: str, config: str) -> Read:
    inside = [name for name in state if name.endswith("attn_mask_probs")]
    if not inside:
        raise InputError(
            f"{key} could not be loaded: it does not have the original release's keys, and "
            "transformers' layout is a directory with a config.json that names its model_type"
        )
    if not config:
        raise InputError(
            f"{key} could not be loaded: it holds only tensors; set {_CONFIG} to the model's "
            "description, as in its training"
        )
    prefix = inside[0].removesuffix("attn_mask_probs")
    eomt = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
    shape = read_eomt_config(config)
    shape.num_labels = len(eomt.get("class_predictor.bias", [0, 0])) - 1
    model = build_eomt(shape)
    load_strictly(model, {n: x for n, x in eomt.items() if not n.startswith("criter")}, key)
    pixels = {f"encoder.{n}": state[n] for n in ("pixel_mean", "pixel_std") if n in state}
    return model, of_original(pixels, key, delta=False)


def _read_base(path: Path, base: str) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """Base weights of a delta checkpoint, and what their config.json says that tensors do not."""
    if base == ABSOLUTE:
        return None, {}
    if not base:
        raise InputError(
            f"{_BASE}: {path} is on DINOv3, whose published EoMT files are differences to "
            "Meta's weights: name their directory, file or hub id (such as "
            f"facebook/dinov3-vitl16-pretrain-lvd1689m), or '{ABSOLUTE}' for one that is not"
        )
    if Path(base).is_file():
        return read_weights(Path(base), _BASE), {}
    file = find_file(base, WEIGHT_FILES, _BASE)
    if file is None:
        raise InputError(f"{_BASE}: {base} holds no {_NAMES}, or could not be fetched")
    beside = find_file(base, ("config.json",), _BASE)
    content = read_json(beside, _BASE) if beside else {}
    known = ("num_attention_heads", "hidden_act", "layer_norm_eps")
    shape = {name: content[name] for name in known if name in content}
    if "rope_theta" in content:
        shape["rope_parameters"] = {"rope_type": "default", "rope_theta": content["rope_theta"]}
    return read_weights(file, _BASE), shape


def read_eomt_config(path: str) -> Any:
    """An ``EomtConfig`` (or ``EomtDinov3Config``) from a JSON file; an `InputError` where it is
    missing, is not JSON, or has an unknown key."""
    if not Path(path).is_file():
        raise InputError(f"{_CONFIG}: file {path or '(empty)'} does not exist")
    content = read_json(Path(path), _CONFIG)
    with named(f"{_CONFIG}: {path} is not an EomtConfig"):
        kind = eomt_classes(content.get("model_type", "eomt"))[0]
        unknown = sorted(set(content) - {*kind().to_dict(), "num_labels"})
        if unknown:
            raise InputError(f"{_CONFIG}: {path} has the unknown key {unknown[0]!r}")
        return kind(**content)

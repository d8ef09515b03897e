"""What a checkpoint says of its pixels: read from the files beside its weights, and checked.

transformers keeps it in ``preprocessor_config.json``, timm in ``config.json``, open_clip in
``open_clip_config.json``, the original release of EoMT in two tensors among the weights. Whatever
is done to pixels before a network sees them is folded into one mean and one deviation of pixels in
0..1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from lqn_seg.teachers.files import find_file, read_json

FILE_NAME = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"  # transformers 5 may keep an image processor in there
# Pillow's filters by number, as `resample` has them.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_SIDES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
# Of OpenAI's CLIPs, open_clip's default.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_PLAIN = 0.12  # smallest mean or deviation that is one itself, and no difference to ImageNet's
Size = tuple[int, int]


def read_preprocessor(weights: str, key: str) -> tuple[dict[str, Any], str] | None:
    """A transformers checkpoint's ``preprocessor_config.json`` and its path; None without one.

    Args:
        weights: a directory or hub id.
        key: the configuration key that ``weights`` comes from, for messages.

    Raises:
        InputError: the file is no JSON object.
    """
    found = find_file(weights, (FILE_NAME, _PROCESSOR), key)
    if found is None:
        return None
    content = read_json(found, key)
    if found.name == _PROCESSOR:
        content = content.get("image_processor", {})
        if not isinstance(content, dict):
            raise InputError(f"{key}: {found}: image_processor must be an object")
    return (content, str(found)) if content else None


def preprocessing_of(content: Mapping[str, Any], where: str) -> Preprocessing:
    """What a ``preprocessor_config.json`` says to a transformers image processor.

    Args:
        where: file that the content is from, for messages.

    Raises:
        InputError: a value is malformed; file and key are named.
    """
    mean, std = normalisation_of(content, where)
    size = size_of(content, where)
    split, pad = (flag(content, name, False, where) for name in ("do_split_image", "do_pad"))
    resize: Literal["keep", "stretch", "none"] = "stretch" if "height" in size else "keep"
    if not flag(content, "do_resize", True, where):
        resize = "none"
    inference: Literal["", "pad", "windows"] = "windows" if split else "pad" if pad else ""
    return Preprocessing(
        mean, std, interpolation_of(content, where), resize, inference, Path(where).name
    )


def normalisation_of(
    content: Mapping[str, Any], where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, for pixels in 0..1, of what an image processor does to 0..255.

    It multiplies by ``rescale_factor`` (1/255), subtracts ``image_mean`` and divides by
    ``image_std``, each of which may be switched off.

    Raises:
        InputError: a value is malformed; file and key are named.
    """
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if flag(content, "do_normalize", True, where):
        mean = channels(content, "image_mean", IMAGENET_MEAN, where)
        std = channels(content, "image_std", IMAGENET_STD, where, positive=True)
    factor = 1.0
    if flag(content, "do_rescale", True, where):
        factor = _number(content, "rescale_factor", 1 / 255, where)
    scale = 255 * factor  # of pixels in 0..1
    if math.isclose(scale, 1, rel_tol=1e-6):
        return mean, std
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def channels(
    content: Mapping[str, Any],
    name: str,
    default: tuple[float, ...],
    where: str,
    positive: bool = False,
) -> tuple[float, ...]:
    """Three finite numbers, or one for all three channels; the default where it is missing.

    Raises:
        InputError: it is something else; file and key are named.
    """
    value = content.get(name)
    if value is None:
        return default
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) == 3 and all(_is_number(v) and (v > 0 or not positive) for v in values):
        return tuple(float(v) for v in values)
    kind = "positive numbers" if positive else "numbers"
    raise InputError(f"{where}: {name} must be three {kind}, not {_shown(value)}")


def flag(content: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    """True or false; the default where it is missing.

    Raises:
        InputError: it is something else; file and key are named.
    """
    value = content.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name} must be true or false, not {_shown(value)}")
    return value


def interpolation_of(content: Mapping[str, Any], where: str, name: str = "resample") -> str:
    """Pillow's name of a filter that is given by number or name; bilinear where it is missing.

    Raises:
        InputError: there is no such filter; file and key are named.
    """
    value = content.get(name)
    if value is None:
        return "bilinear"
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(FILTERS):
        return FILTERS[value]
    if isinstance(value, str) and value.lower() in FILTERS:
        return value.lower()
    raise InputError(
        f"{where}: {name} must be one of Pillow's filters, 0 to {len(FILTERS) - 1} "
        f"({', '.join(FILTERS)}), not {_shown(value)}"
    )


def size_of(content: Mapping[str, Any], where: str) -> dict[str, int]:
    """``size`` by edge; an int is the shortest edge. Edges that are null are left out.

    Raises:
        InputError: an edge is unknown or no positive whole number; file and key are named.
    """
    value = content.get("size")
    if value is None:
        return {}
    edges = value if isinstance(value, dict) else {"shortest_edge": value}
    edges = {edge: length for edge, length in edges.items() if length is not None}
    for edge, length in edges.items():
        if edge not in _SIDES or not _is_whole(length):
            raise InputError(
                f"{where}: size must hold whole numbers of pixels, not {_shown(value)}"
            )
    if ("height" in edges) != ("width" in edges):
        raise InputError(f"{where}: size must have a height and a width, not {_shown(value)}")
    return edges


def window_of(content: Mapping[str, Any], where: str) -> Size | None:
    """(height, width) of the input that an EoMT's processor makes; None where nothing says so.

    Raises:
        InputError: ``size`` is malformed; file and key are named.
    """
    size = size_of(content, where)
    if "height" in size:
        return size["height"], size["width"]
    short = size.get("shortest_edge")
    return None if short is None else (short, size.get("longest_edge", short))


def of_original(state: Mapping[str, Tensor], where: str, delta: bool) -> Preprocessing | None:
    """Of the tensors ``encoder.pixel_mean`` and ``.pixel_std``; None without them.

    Args:
        delta: they are differences to the ImageNet values that the original code starts with.

    Raises:
        InputError: one is not three numbers, or the deviation is not positive.
    """
    start = {"encoder.pixel_mean": IMAGENET_MEAN, "encoder.pixel_std": IMAGENET_STD}
    held = {name: state[name].flatten().tolist() for name in start if name in state}
    if not held:
        return None
    # A file of differences may hold these as they are: no photographs' differ from ImageNet's so.
    delta = delta and min((v for values in held.values() for v in values), default=0) < _PLAIN
    found = {}
    for name, usual in start.items():
        values = held.get(name, usual)
        if delta and name in held:
            values = [value + before for value, before in zip(values, usual)]
        found[name] = channels({name: values}, name, usual, where, name.endswith("std"))
    mean, std = found.values()
    return Preprocessing(mean, std, source="encoder.pixel_mean and encoder.pixel_std")


def timm_values(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What timm's ``config.json`` says in its ``pretrained_cfg`` of a model's input, checked.

    Raises:
        InputError: a value is malformed; file and key are named.
    """
    about = content.get("pretrained_cfg") or content  # timm before 0.9 kept all in one
    if not isinstance(about, dict):
        raise InputError(f"{where}: pretrained_cfg must be an object, not {_shown(about)}")
    names = ("mean", "std", "interpolation", "input_size")
    said: dict[str, Any] = {name: about[name] for name in names if about.get(name) is not None}
    if "mean" in said:
        said["mean"] = channels(said, "mean", (), where)
    if "std" in said:
        said["std"] = channels(said, "std", (), where, positive=True)
    if "interpolation" in said:
        said["interpolation"] = interpolation_of(said, where, "interpolation")
    if "input_size" in said:
        size = said["input_size"]
        if not isinstance(size, list) or len(size) != 3 or not all(map(_is_whole, size)):
            raise InputError(f"{where}: input_size must be three whole numbers, not {_shown(size)}")
        said["input_size"] = tuple(size)
    return said


def clip_values(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What open_clip's ``preprocess_cfg`` says, checked: mean, std, interpolation, resize_mode and
    fill_color. What it does not say is open_clip's default.

    Raises:
        InputError: a value is malformed; file and key are named.
    """
    at = f"{where}: preprocess_cfg"
    usual = {"interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB"}
    said: dict[str, Any] = {name: content.get(name) or default for name, default in usual.items()}
    known = {
        "interpolation": ("bicubic", "bilinear", "random"),
        "resize_mode": ("shortest", "longest", "squash"),
        "mode": ("RGB",),
    }
    for name, values in known.items():
        if said[name] not in values:
            raise InputError(f"{at}: {name} must be {_either(values)}, not {_shown(said[name])}")
    if said["interpolation"] == "random":  # while training; open_clip evaluates by bicubic
        said["interpolation"] = "bicubic"
    fill = content.get("fill_color") or 0
    if not (fill == 0 or (_is_whole(fill) and fill <= 255)):
        raise InputError(f"{at}: fill_color must be a whole number in 0..255, not {_shown(fill)}")
    pixels = {name: content.get(name) or None for name in ("mean", "std")}  # as open_clip does
    mean = channels(pixels, "mean", OPENAI_MEAN, at)
    std = channels(pixels, "std", OPENAI_STD, at, positive=True)
    return {**said, "fill_color": int(fill), "mean": mean, "std": std}


def write_preprocessor(folder: Path, preprocessing: Preprocessing, size: Size) -> None:
    """Write `FILE_NAME` for transformers' ``EomtImageProcessor``.

    Args:
        size: (height, width) of the teacher's input.
    """
    height, width = size
    windows = preprocessing.inference == "windows"
    edges: dict[str, int | None] = {"shortest_edge": height, "longest_edge": width}
    if preprocessing.resize == "stretch":
        edges = {"height": height, "width": width}
    elif windows and height == width:
        edges["longest_edge"] = None  # it is as long as the image makes it
    content = {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": preprocessing.resize != "none",
        "size": edges,
        "resample": FILTERS.index(preprocessing.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_pad": preprocessing.inference == "pad",
        "do_split_image": windows,
    }
    (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n")


def described(preprocessing: Preprocessing, size: Size) -> str:
    """What is done to pixels, in words for the log."""
    mean, std = (" ".join(f"{v:.4g}" for v in x) for x in (preprocessing.mean, preprocessing.std))
    how = {"keep": "", "stretch": ", stretched", "none": ", never resized"}[preprocessing.resize]
    return (
        f"pixels: {size[0]} x {size[1]}, {preprocessing.interpolation}{how}, mean {mean}, "
        f"std {std} ({preprocessing.source or 'no file says; the defaults'})"
    )


def whole(content: Mapping[str, Any], name: str, default: int, where: str) -> int:
    """A whole number of at least 0; the default where it is missing.

    Raises:
        InputError: it is something else; file and key are named.
    """
    value = content.get(name)
    if value is None:
        return default
    if not (_is_whole(value) or (value == 0 and not isinstance(value, bool))):
        raise InputError(f"{where}: {name} must be a whole number, not {_shown(value)}")
    return int(value)


def _number(content: Mapping[str, Any], name: str, default: float, where: str) -> float:
    value = content.get(name)
    if value is None:
        return default
    if not _is_number(value) or value <= 0:
        raise InputError(f"{where}: {name} must be a positive number, not {_shown(value)}")
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _either(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" or " if len(words) > 1 else "") + words[-1]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""What a checkpoint says of its pixels: read from the files beside its weights, and checked.

Whatever is done to pixels before a network sees them is folded into one mean and one deviation of
pixels in 0..1. Every reader takes a default for what is missing or null, and raises `InputError`
with ``where`` (the file) and the key for what is malformed.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Size
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
Content = Mapping[str, Any]
Channels = tuple[float, ...]


def read_preprocessor(weights: str, key: str) -> tuple[dict[str, Any], str] | None:
    """A transformers checkpoint's ``preprocessor_config.json`` and its path; None without one."""
    file = find_file(weights, (FILE_NAME, _PROCESSOR), key)
    if file is None:
        return None
    content = read_json(file, key)
    if file.name == _PROCESSOR:
        content = _checked(content, "image_processor", {}, f"{key}: {file}", "an object", _is_dict)
    return (content, str(file)) if content else None


def preprocessing_of(content: Content, where: str) -> Preprocessing:
    mean, std = normalisation_of(content, where)
    is_stretched = "height" in size_of(content, where)
    resize: Literal["keep", "stretch", "none"] = "stretch" if is_stretched else "keep"
    if not flag(content, "do_resize", True, where):
        resize = "none"
    pads, splits = (flag(content, key, False, where) for key in ("do_pad", "do_split_image"))
    inference: Literal["", "pad", "windows"] = "windows" if splits else "pad" if pads else ""
    filter_name = interpolation_of(content, where)
    return Preprocessing(mean, std, filter_name, resize, inference, Path(where).name)


def normalisation_of(content: Content, where: str) -> tuple[Channels, Channels]:
    """Mean and deviation, for pixels in 0..1, of what an image processor does to 0..255: it
    multiplies by ``rescale_factor`` (1/255) and takes ``image_mean`` and ``image_std``, if switched
    on."""
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    if flag(content, "do_normalize", True, where):
        mean = channels(content, "image_mean", IMAGENET_MEAN, where)
        std = channels(content, "image_std", IMAGENET_STD, where)
    scale = 255.0  # of pixels in 0..1
    if flag(content, "do_rescale", True, where):
        kind = "a positive number"
        scale *= _checked(content, "rescale_factor", 1 / 255, where, kind, _is_positive)
    if math.isclose(scale, 1, rel_tol=1e-6):
        return mean, std
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def channels(content: Content, name: str, default: Channels, where: str) -> Channels:
    """Three numbers, or one for all three channels; positive ones where the name ends in "std"."""
    fits, kind = _is_number, "three numbers"
    if name.endswith("std"):
        fits, kind = _is_positive, "three positive numbers"

    def three(value: Any) -> list[Any]:
        return list(value) if isinstance(value, list | tuple) else [value] * 3

    def are_three(value: Any) -> bool:
        return len(three(value)) == 3 and all(map(fits, three(value)))

    value = _checked(content, name, default, where, kind, are_three)
    return tuple(map(float, three(value)))


def flag(content: Content, name: str, default: bool, where: str) -> bool:
    return _checked(content, name, default, where, "true or false", _is_bool)


def whole(content: Content, name: str, default: int, where: str) -> int:
    return _checked(content, name, default, where, "a whole number", _is_whole)


def interpolation_of(content: Content, where: str, name: str = "resample") -> str:
    """Pillow's name of a filter that is given by number or name; bilinear where it is missing."""
    kind = f"one of Pillow's filters, 0 to {len(FILTERS) - 1} ({', '.join(FILTERS)})"
    value = _checked(content, name, "bilinear", where, kind, _is_filter)
    return FILTERS[value] if isinstance(value, int) else value.lower()


def size_of(content: Content, where: str) -> dict[str, int]:
    """``size`` by edge; an int is the shortest edge. Edges that are null are left out."""
    kind = "whole numbers of pixels"

    def is_size(value: Any) -> bool:
        edges = value if isinstance(value, dict) else {"shortest_edge": value}
        return all(
            edge in _SIDES and (length is None or _is_positive_whole(length))
            for edge, length in edges.items()
        )

    value = _checked(content, "size", {}, where, kind, is_size, "hold")
    edges = value if isinstance(value, dict) else {"shortest_edge": value}
    edges = {edge: length for edge, length in edges.items() if length is not None}
    if ("height" in edges) != ("width" in edges):
        raise InputError(f"{where}: size must have a height and a width, not {_shown(value)}")
    return edges


def window_of(content: Content, where: str) -> Size | None:
    """(height, width) of the input that an EoMT's processor makes; None where nothing says so."""
    size = size_of(content, where)
    if "height" in size:
        return size["height"], size["width"]
    short = size.get("shortest_edge")
    return None if short is None else (short, size.get("longest_edge", short))


def of_original(state: Mapping[str, Tensor], where: str, delta: bool) -> Preprocessing | None:
    """Of the tensors ``encoder.pixel_mean`` and ``.pixel_std``, which as a ``delta`` are
    differences to the ImageNet values that the original code starts with; None without them."""
    start = {"encoder.pixel_mean": IMAGENET_MEAN, "encoder.pixel_std": IMAGENET_STD}
    values = {name: state[name].flatten().tolist() for name in start if name in state}
    if not values:
        return None
    # A file of differences may hold these as they are: no photographs' differ from ImageNet's so.
    if delta and min((v for three in values.values() for v in three), default=0) < _PLAIN:
        for name in values:
            values[name] = [v + before for v, before in zip(values[name], start[name])]
    mean, std = (channels(values, name, usual, where) for name, usual in start.items())
    return Preprocessing(mean, std, source="encoder.pixel_mean and encoder.pixel_std")


def timm_values(content: Content, where: str) -> dict[str, Any]:
    """What timm's ``config.json`` says in its ``pretrained_cfg`` of a model's input, no more."""
    # timm before 0.9 kept all in one
    about = _checked(content, "pretrained_cfg", {}, where, "an object", _is_dict) or content
    values: dict[str, Any] = {}
    for name in ("mean", "std"):
        if about.get(name) is not None:
            values[name] = channels(about, name, (), where)
    if about.get("interpolation") is not None:
        values["interpolation"] = interpolation_of(about, where, "interpolation")
    size = _checked(about, "input_size", [], where, "three whole numbers", _is_image_shape)
    return {**values, "input_size": tuple(size)} if size else values


def clip_values(content: Content, where: str) -> dict[str, Any]:
    """What open_clip's ``preprocess_cfg`` says: mean, std, interpolation, resize_mode and
    fill_color; open_clip's default where it says nothing."""
    at = f"{where}: preprocess_cfg"
    content = {name: value or None for name, value in content.items()}  # as open_clip does
    values: dict[str, Any] = {}
    for name, known in (
        ("interpolation", ("bicubic", "bilinear", "random")),
        ("resize_mode", ("shortest", "longest", "squash")),
        ("mode", ("RGB",)),
    ):
        kind = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        values[name] = _checked(content, name, known[0], at, kind, known.__contains__)
    if values["interpolation"] == "random":  # while training; open_clip evaluates by bicubic
        values["interpolation"] = "bicubic"
    kind = "a whole number in 0..255"
    values["fill_color"] = _checked(content, "fill_color", 0, at, kind, _is_byte)
    mean, std = channels(content, "mean", OPENAI_MEAN, at), channels(content, "std", OPENAI_STD, at)
    return {**values, "mean": mean, "std": std}


def write_preprocessor(folder: Path, preprocessing: Preprocessing, size: Size) -> None:
    """Write `FILE_NAME` for transformers' ``EomtImageProcessor`` and an input of (height,
    width)."""
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
    mean, std = (" ".join(f"{v:.4g}" for v in x) for x in (preprocessing.mean, preprocessing.std))
    how = {"keep": "", "stretch": ", stretched", "none": ", never resized"}[preprocessing.resize]
    return (
        f"pixels: {size[0]} x {size[1]}, {preprocessing.interpolation}{how}, mean {mean}, "
        f"std {std} ({preprocessing.source or 'no file says; the defaults'})"
    )


def _checked(
    content: Content,
    name: str,
    default: Any,
    where: str,
    kind: str,
    fits: Callable[[Any], bool],
    verb: str = "be",
) -> Any:
    """The value under a key, which must fit; the default where it is missing or null."""
    value = content.get(name)
    if value is None:
        return default
    if not fits(value):
        raise InputError(f"{where}: {name} must {verb} {kind}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _within(kind: Any, least: float, most: float = sys.float_info.max) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not _is_bool(value) and least <= value <= most


_is_number = _within(int | float, -sys.float_info.max)
_is_positive = _within(int | float, sys.float_info.min)
_is_whole = _within(int, 0)
_is_positive_whole = _within(int, 1)
_is_byte = _within(int, 0, 255)


def _is_image_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_positive_whole, value))


def _is_filter(value: Any) -> bool:
    if isinstance(value, str):
        return value.lower() in FILTERS
    return _is_whole(value) and value < len(FILTERS)

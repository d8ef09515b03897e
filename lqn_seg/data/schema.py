"""What JSON files from outside must look like, and one sentence where they do not.

Types are strict: `"7"`, `7.0` and `true` are no whole numbers. Keys that are not listed are passed
over.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from lqn_seg.errors import InputError

Id = int | str
Side = Annotated[int, Meta(ge=1, le=1_000_000)]  # pixels
# What pycocotools' 32 bits hold.
RunLength = Annotated[int, Meta(ge=0, lt=2**32)]
NotNegative = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]
Box = tuple[int | float, int | float, NotNegative, NotNegative]  # x, y, width, height
# 0 or 1; null counts as 0.
Flag = Annotated[int, Meta(ge=0, le=1)] | bool | None
Polygons = list[list[float]]  # [x, y, x, y, ...] each


class RunLengths(Struct):
    """A mask as COCO's run lengths, down the columns, zeros first."""

    size: tuple[Side, Side]  # height, width
    counts: list[RunLength] | str  # str: COCO's compressed form


Segmentation = Polygons | RunLengths


class Image(Struct):
    """An entry of `images`."""

    id: Id
    height: Side
    width: Side
    file_name: str | UnsetType = UNSET  # a file of ground truth alone needs none

    def __post_init__(self) -> None:
        if isinstance(self.file_name, str):
            check_file_name(self.file_name)
        if self.height * self.width >= 2**32:
            raise ValueError(f" is {self.height} x {self.width} pixels, too many for a mask")


class CategoryEntry(Struct):
    """An entry of `categories`."""

    id: int
    name: Annotated[str, Meta(min_length=1)]
    color: list[Any] | str | None = None
    isthing: bool | Annotated[int, Meta(ge=0, le=1)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        parse_color(self.color)
        if not self.name.strip():
            raise ValueError(f".name {self.name!r} is blank")


class Segment(Struct):
    """An entry of `segments_info`."""

    id: Annotated[int, Meta(ge=1, lt=2**24)]  # R + 256 G + 65536 B; 0 is void
    category_id: int
    iscrowd: Flag = 0
    area: NotNegative | UnsetType = UNSET
    bbox: Box | UnsetType = UNSET


class PanopticAnnotation(Struct):
    """An entry of a panoptic file's `annotations`."""

    image_id: Id
    file_name: str
    segments_info: list[Segment]

    def __post_init__(self) -> None:
        check_file_name(self.file_name)


class InstanceAnnotation(Struct):
    """An entry of an instances file's `annotations`."""

    image_id: Id
    category_id: int
    segmentation: Raw  # a `Segmentation`; decoded one by one, for lists of floats fill the memory
    area: NotNegative
    bbox: Box
    iscrowd: Flag = 0
    id: Id | UnsetType = UNSET


class PanopticFile(Struct):
    """COCO's panoptic layout."""

    images: list[Image]
    annotations: Annotated[list[PanopticAnnotation], Meta(min_length=1)]
    categories: Annotated[list[CategoryEntry], Meta(min_length=1)]


class InstancesFile(Struct):
    """COCO's instances layout."""

    images: list[Image]
    annotations: Annotated[list[InstanceAnnotation], Meta(min_length=1)]
    categories: Annotated[list[CategoryEntry], Meta(min_length=1)]


Row = tuple[str, Annotated[int, Meta(ge=0)], str]  # path, label, class name


class SplitFile(Struct):
    """CoOp's lists."""

    train: list[Row]
    val: list[Row]
    test: list[Row]

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            for i, (path, _, _) in enumerate(getattr(self, split)):
                check_file_name(path, f"{split}[{i}][0]")


T = TypeVar("T")


def read_json(path: Path, kind: type[T], what: str = "annotation file") -> T:
    """Read a JSON file that must look like `kind`.

    Args:
        what: what to call the file in the sentence.

    Raises:
        InputError: it is missing, is no JSON, or a value is not as `kind` says. The sentence names
            the file, the record and the key.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror})") from None
    return parse(data, msgspec.json.Decoder(kind), f"{what} {path}")


def parse(data: bytes | Raw, decoder: msgspec.json.Decoder[T], file: str, inside: str = "") -> T:
    """Decode JSON.

    Args:
        file: what to call the file in the sentence.
        inside: where in the file the JSON stands ("annotations[3].segmentation"); "" is all of it.

    Raises:
        InputError: as `read_json`.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InputError(f"{file}{explain(error, bytes(data), inside)}") from None
    except RecursionError:
        raise InputError(f"{file} is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        where = f": {inside}" if inside else ""
        raise InputError(f"{file}{where} is not valid JSON ({error})") from None


def explain(error: msgspec.ValidationError, data: bytes, inside: str = "") -> str:
    """A library's complaint as the end of a sentence that begins with the file's name.

    Args:
        error: what the library says: "Expected `int`, got `str` - at `$.annotations[3].image_id`".
        data: the JSON that was read; the value is quoted from it.
        inside: where in the file that JSON stands, "annotations[3].segmentation".
    """
    complaint, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`")
    where = (inside + place).lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", complaint):
        if not where:
            return f" has no list under the key {missing[1]!r}"
        return f": {where} has no key {missing[1]!r}"
    if complaint == "Expected `array` of length >= 1":
        return f" lists nothing under the key {where!r}"
    if not complaint.startswith(("Expected", "Number", "Integer", "Invalid")):  # `__post_init__`
        return f": {where}{complaint}"
    if not where:
        return f" must hold {_words(complaint)}{_quote(data, place)}"
    return f": {where} must be {_words(complaint)}{_quote(data, place)}"


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true, false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def _words(complaint: str) -> str:
    """What was expected, without the library's names of types."""
    expected, _, bounds = (
        complaint.removeprefix("Expected ").partition("`, got ")[0].partition("` ")
    )
    types = re.findall(r"\w+", expected)
    if not complaint.startswith("Expected") or not set(types) <= set(_TYPES):
        return "within the range of numbers"
    if "bool" in types:
        return "0 or 1"
    if {"int", "float"} <= set(types):
        types.remove("int")
    return f"{' or '.join(_TYPES[name] for name in types)} {bounds}".rstrip()


def _quote(data: bytes, place: str, most: int = 40) -> str:
    """The value at `place` (".annotations[3].image_id") in words; "" where JSON ends before."""
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # further on in the file
        return ""
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", place):
        value = value[key] if key else value[int(index)]
    text = msgspec.json.encode(value).decode()
    return f", not {text if len(text) <= most else f'{text[:most]} ...'}"


def check_file_name(name: str, where: str = ".file_name") -> None:
    """Raises:
    ValueError: a name that leads out of its folder, or that no file can have.
    """
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where} must be a relative path without '..', not {name!r}")
    if any(character < " " or "\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"{where} {name!r} holds a character that no file name may have")
    if max(len(part.encode()) for part in path.parts) > 255 or len(name) > 1000:
        raise ValueError(f"{where} {name[:40]!r} ... is too long for a file")


def parse_color(color: list[Any] | str | None) -> tuple[int, int, int] | None:
    """[r, g, b] or "#rrggbb" as RGB 0 .. 255.

    Raises:
        ValueError: it is neither.
    """
    if color is None:
        return None
    if isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color):
        red, green, blue = bytes.fromhex(color[1:])
        return red, green, blue
    if (
        isinstance(color, list)
        and len(color) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in color)
    ):
        return color[0], color[1], color[2]
    raise ValueError(f".color must be three whole numbers 0 .. 255 or '#rrggbb', not {color!r:.40}")

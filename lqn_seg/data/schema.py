"""What JSON files from outside must look like, and one sentence where they do not.

Types are strict: `"7"`, `7.0` and `true` are no whole numbers. Other keys are ignored.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from lqn_seg.errors import InputError

T = TypeVar("T")
Id = int | str
Side = Annotated[int, Meta(ge=1, le=1_000_000)]  # pixels
RunLength = Annotated[int, Meta(ge=0, lt=2**32)]  # what pycocotools' 32 bits hold
NotNegative = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]
Box = tuple[int | float, int | float, NotNegative, NotNegative]  # x, y, width, height
ZeroOrOne = Annotated[int, Meta(ge=0, le=1)] | bool
Polygons = Sequence[Sequence[float]]  # [x, y, x, y, ...] each


@dataclass(frozen=True)
class Category:
    """One row of a data set's table."""

    id: int  # the data set's own, not necessarily contiguous
    name: str
    isthing: bool  # whether instances of it are counted one by one
    color: tuple[int, int, int] | None = None  # RGB 0 .. 255


class RunLengths(Struct):
    """A mask as COCO's run lengths, down the columns, zeros first."""

    size: tuple[Side, Side]  # height, width
    counts: list[RunLength] | str  # str: COCO's compressed form


Segmentation = Polygons | RunLengths


class Image(Struct, kw_only=True):
    """An entry of `images`; a file of ground truth alone needs no file names."""

    id: Id
    height: Side
    width: Side
    file_name: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if isinstance(self.file_name, str):
            check_file_name(self.file_name)
        if self.height * self.width >= 2**32:
            raise ValueError(f" is {self.height} x {self.width} pixels, too many for a mask")


class NamedImage(Image, kw_only=True):
    file_name: str


class CategoryEntry(Struct, kw_only=True):
    id: int
    name: Annotated[str, Meta(min_length=1)]
    color: list[Any] | str | None = None
    isthing: ZeroOrOne = 1

    def __post_init__(self) -> None:
        parse_color(self.color)
        if not self.name.strip():
            raise ValueError(f".name {self.name!r} is blank")


class PanopticCategory(CategoryEntry, kw_only=True):
    isthing: ZeroOrOne


class Annotation(Struct, kw_only=True):
    image_id: Id


class Segment(Struct):
    id: Annotated[int, Meta(ge=1, lt=2**24)]  # R + 256 G + 65536 B; 0 is void
    category_id: int
    iscrowd: ZeroOrOne | None = 0
    area: NotNegative | UnsetType = UNSET
    bbox: Box | UnsetType = UNSET


class PanopticAnnotation(Annotation, kw_only=True):
    file_name: str
    segments_info: list[Segment]

    def __post_init__(self) -> None:
        check_file_name(self.file_name)
        check_unique((segment.id for segment in self.segments_info), ".segments_info[].id")


class InstanceAnnotation(Annotation, kw_only=True):
    category_id: int
    segmentation: Segmentation
    area: NotNegative
    bbox: Box
    iscrowd: ZeroOrOne | None = 0
    id: Id | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not isinstance(self.segmentation, RunLengths):  # lists of floats would fill the memory
            self.segmentation = [array("d", polygon) for polygon in self.segmentation]


class CocoFile(Struct, kw_only=True):
    """What COCO's layouts have in common."""

    images: Sequence[Image]
    annotations: Annotated[Sequence[Annotation], Meta(min_length=1)]
    categories: Annotated[Sequence[CategoryEntry], Meta(min_length=1)]

    def __post_init__(self) -> None:
        check_unique((image.id for image in self.images), "images[].id")
        check_unique((category.id for category in self.categories), "categories[].id")
        check_unique((category.name for category in self.categories), "categories[].name")
        kind = type(self.images[0].id if self.images else self.annotations[0].image_id)
        for i, image in enumerate(self.images):
            if type(image.id) is not kind:
                raise ValueError(
                    f"images[{i}].id is {image.id!r} and images[0].id is {self.images[0].id!r}: "
                    "ids must be all numbers or all text"
                )
        for i, annotation in enumerate(self.annotations):
            if type(annotation.image_id) is not kind:
                raise ValueError(
                    f"annotations[{i}].image_id is {annotation.image_id!r}, but the ids of "
                    f"'images' are {'numbers' if kind is int else 'text'}"
                )

    def table(self) -> tuple[Category, ...]:
        """The categories sorted by id, as Detectron2 sorts them: a contiguous id is an index. All
        that are not a panoptic file's are things."""
        of_panoptic = isinstance(self, PanopticFile)
        return tuple(
            Category(c.id, c.name, not of_panoptic or c.isthing == 1, parse_color(c.color))
            for c in sorted(self.categories, key=lambda category: category.id)
        )

    def without_image(self, path: Path) -> dict[int, str]:
        """A sentence for every annotation whose image is not listed, by its index."""
        image_ids = {image.id for image in self.images}
        return {
            i: f"annotation file {path}: annotations[{i}] has image_id {annotation.image_id!r}, "
            "which no entry of 'images' has"
            for i, annotation in enumerate(self.annotations)
            if annotation.image_id not in image_ids
        }


class PanopticFile(CocoFile, kw_only=True):
    images: Sequence[NamedImage]
    annotations: Annotated[Sequence[PanopticAnnotation], Meta(min_length=1)]
    categories: Annotated[Sequence[PanopticCategory], Meta(min_length=1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unique((a.image_id for a in self.annotations), "annotations[].image_id")
        table = {category.id for category in self.categories}
        for i, annotation in enumerate(self.annotations):
            for j, segment in enumerate(annotation.segments_info):
                if segment.category_id not in table:
                    where = f"annotations[{i}].segments_info[{j}].category_id"
                    missing = f"{segment.category_id} is not among the ids of 'categories'"
                    raise ValueError(f"{where} {missing}")


class InstancesFile(CocoFile, kw_only=True):
    """COCO's instances layout, as ground truth."""

    annotations: Annotated[Sequence[InstanceAnnotation], Meta(min_length=1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        ids = (annotation.id for annotation in self.annotations if annotation.id is not UNSET)
        check_unique(ids, "annotations[].id")


class InstancesDatasetFile(InstancesFile, kw_only=True):
    """COCO's instances layout, as a data set of its own."""

    images: Sequence[NamedImage]


Row = tuple[str, Annotated[int, Meta(ge=0)], str]  # path, label, class name


class SplitFile(Struct):
    """CoOp's lists."""

    train: list[Row]
    val: list[Row]
    test: list[Row]

    def __post_init__(self) -> None:
        names: dict[int, str] = {}
        for split, rows in msgspec.structs.asdict(self).items():
            for i, (path, label, text) in enumerate(rows):
                check_file_name(path, f"{split}[{i}][0]")
                if (first := names.setdefault(label, text)) != text:
                    both = f"{text!r}, an earlier entry calls it {first!r}"
                    raise ValueError(f"{split}[{i}] calls label {label} {both}")


def read_json(path: Path, kind: type[T], what: str = "annotation file") -> T:
    """Read a JSON file that must look like `kind`; InputError, which calls the file `what` and
    names record and key, where it is missing, no JSON, or a value is not as `kind` says."""
    try:
        data = path.read_bytes()
        return msgspec.json.decode(data, type=kind)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror})") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{what} {path}{_explain(error, data)}") from None
    except RecursionError:
        raise InputError(f"{what} {path} is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {path} is not valid JSON ({error})") from None


def _explain(error: msgspec.ValidationError, data: bytes) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.images[3].id`" as the end of a sentence."""
    complaint, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`")
    where = place.lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", complaint):
        if not where:
            return f" has no list under the key {missing[1]!r}"
        return f": {where} has no key {missing[1]!r}"
    if complaint == "Expected `array` of length >= 1":
        return f" lists nothing under the key {where!r}"
    if not complaint.startswith(("Expected", "Number", "Integer", "Invalid")):  # `__post_init__`
        return f": {where}{complaint}"
    subject = f": {where} must be" if where else " must hold"
    return f"{subject} {_expected(complaint)}{_quote(data, place)}"


_TYPES = {
    **{"int": "a whole number", "float": "a number", "str": "text", "bool": "true, false"},
    **{"null": "null", "array": "a list", "object": "an object"},
}


def _expected(complaint: str) -> str:
    """What was expected, without msgspec's names of types."""
    match = re.fullmatch(r"Expected `([\w |]+)`(?: (.*?))?(?:, got .*)?", complaint)
    types = match[1].split(" | ") if match else []
    if match is None or not set(types) <= set(_TYPES):
        return "within the range of numbers"
    if "bool" in types:
        return "0 or 1"
    if "float" in types and "int" in types:
        types.remove("int")
    return f"{' or '.join(_TYPES[name] for name in types)} {match[2] or ''}".rstrip()


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


def check_unique(values: Iterable[Any], what: str) -> None:
    """Raise a ValueError where a value occurs twice."""
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{what} {twice[0]!r} occurs twice")


def check_file_name(name: str, where: str = ".file_name") -> None:
    """Raise a ValueError for a name that leads out of its folder, or that no file can have."""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where} must be a relative path without '..', not {name!r}")
    if any(character < " " or "\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"{where} {name!r} holds a character that is not allowed in file names")
    if max(len(part.encode()) for part in path.parts) > 255 or len(name) > 1000:
        raise ValueError(f"{where} {name[:40]!r} ... is too long for a file")


def parse_color(color: list[Any] | str | None) -> tuple[int, int, int] | None:
    """[r, g, b] or "#rrggbb" as RGB 0 .. 255; a ValueError where it is neither."""
    if color is None:
        return None
    values: Sequence[Any] = color
    if isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color):
        values = bytes.fromhex(color[1:])
    if len(values) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in values):
        what = "three whole numbers 0 .. 255 or '#rrggbb'"
        raise ValueError(f".color must be {what}, not {color!r:.40}")
    return values[0], values[1], values[2]

"""What COCO's JSON files have in common: images by id, the table of categories, instances."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lqn_seg.data.image_files import enumeration
from lqn_seg.data.masks import area, check, compress
from lqn_seg.data.schema import (
    UNSET,
    CategoryEntry,
    Id,
    Image,
    InstanceAnnotation,
    InstancesFile,
    Raw,
    Segmentation,
    parse,
    parse_color,
    read_json,
)
from lqn_seg.errors import InputError


@dataclass(frozen=True)
class Category:
    """One row of a data set's table.

    Attributes:
        id: the data set's own id, not necessarily contiguous.
        name: readable name.
        isthing: whether instances of it are counted one by one.
        color: RGB 0 .. 255, or None where the data set gives none.
    """

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int] | None = None


def read_categories(
    entries: Sequence[CategoryEntry], path: Path, things_only: bool = False
) -> tuple[Category, ...]:
    """The table under `categories`, sorted by id: a contiguous id is an index into it.

    Detectron2 sorts too, whatever the file's order, and so do the tables that published weights
    were trained with. `isthing` is not looked at where every category is a thing.

    Raises:
        InputError: an entry lacks `isthing`, or an id or a name occurs twice.
    """
    categories = []
    for i, entry in enumerate(entries):
        if entry.isthing is UNSET and not things_only:
            raise InputError(f"annotation file {path}: categories[{i}] has no key 'isthing'")
        isthing = things_only or entry.isthing == 1
        categories.append(Category(entry.id, entry.name, isthing, parse_color(entry.color)))
    for field in ("id", "name"):
        check_unique(
            [getattr(category, field) for category in categories], f"categories[].{field}", path
        )
    return tuple(sorted(categories, key=lambda category: category.id))


def check_unique(values: Iterable[Any], what: str, path: Path) -> None:
    """Raises:
    InputError: a value occurs twice.
    """
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise InputError(f"annotation file {path}: {what} {value!r} occurs twice")
        seen.add(value)


def images_by_id(images: Sequence[Image], path: Path) -> dict[Id, Image]:
    """The entries of `images` by their id.

    Raises:
        InputError: two have the same id, or some ids are numbers and others text.
    """
    check_unique((image.id for image in images), "images[].id", path)
    for i, image in enumerate(images):
        if type(image.id) is not type(images[0].id):
            raise InputError(
                f"annotation file {path}: images[{i}].id is {image.id!r} and images[0].id is "
                f"{images[0].id!r}: ids must be all numbers or all text"
            )
    return {image.id: image for image in images}


def require_file_names(images: Sequence[Image], path: Path) -> None:
    """Raises:
    InputError: an entry of `images` has no `file_name`.
    """
    for i, image in enumerate(images):
        if image.file_name is UNSET:
            raise InputError(f"annotation file {path}: images[{i}] has no key 'file_name'")


def sharing_a_file(images: Sequence[Image], path: Path) -> dict[Id, str]:
    """A sentence for every image whose file another image has too, by its id.

    Which of them the annotations were made for cannot be told.
    """
    by_file: dict[str, list[Id]] = {}
    for image in images:
        by_file.setdefault(os.path.normpath(str(image.file_name)), []).append(image.id)
    return {
        image_id: f"annotation file {path}: images[].file_name {name!r} occurs twice (image ids "
        f"{enumeration([repr(other) for other in same])})"
        for name, same in by_file.items()
        if len(same) > 1
        for image_id in same
    }


def without_image(
    image_ids: Sequence[Id], images: Mapping[Id, Image], path: Path
) -> dict[int, str]:
    """A sentence for every annotation whose image is not listed, by its place.

    Raises:
        InputError: an image id is text where the images' ids are numbers, or the other way round.
    """
    kind = type(next(iter(images), image_ids[0]))
    found = {}
    for i, image_id in enumerate(image_ids):
        if type(image_id) is not kind:
            words = "numbers" if kind is int else "text"
            raise InputError(
                f"annotation file {path}: annotations[{i}].image_id is {image_id!r}, but the ids "
                f"of 'images' are {words}"
            )
        if image_id not in images:
            found[i] = (
                f"annotation file {path}: annotations[{i}] has image_id {image_id!r}, which no "
                "entry of 'images' has"
            )
    return found


@dataclass(frozen=True)
class Instances:
    """What a COCO instances file says, checked.

    Attributes:
        path: of the file.
        images: by id.
        annotations: by image id and place in the file.
        table: own id of a thing -> contiguous id.
        problems: a sentence for every annotation whose image is not listed.
    """

    path: Path
    images: Mapping[Id, Image]
    annotations: Mapping[Id, Mapping[int, InstanceAnnotation]]
    table: Mapping[int, int]
    problems: tuple[str, ...]

    def of_image(self, image_id: Id, height: int, width: int) -> list[dict[str, Any]]:
        """The annotations of an image.

        Returns:
            "category_id" (contiguous), "segmentation" (compressed RLE), "area" (pixels), "bbox" (x,
            y, width, height) and "iscrowd" of each.

        Raises:
            InputError: the file does not list the image, or with another size.

        Warns:
            UserWarning: a mask has no pixel in the image. It counts as missed, as in pycocotools.
        """
        image = self.images.get(image_id)
        if image is None:
            raise InputError(f"annotation file {self.path} lists no image with id {image_id!r}")
        if (image.height, image.width) != (height, width):
            raise InputError(
                f"annotation file {self.path}: image {image_id!r} is {image.height} x "
                f"{image.width} (height x width), its record says {height} x {width}"
            )
        return [
            self._checked(place, annotation, height, width)
            for place, annotation in self.annotations.get(image_id, {}).items()
        ]

    def _checked(
        self, place: int, annotation: InstanceAnnotation, height: int, width: int
    ) -> dict[str, Any]:
        segmentation = compress(_SEGMENTATION.decode(annotation.segmentation), height, width)
        if not area(segmentation):
            warnings.warn(
                f"annotation file {self.path}: annotations[{place}].segmentation has no pixel in "
                f"image {annotation.image_id!r}, and AP calls it missed",
                stacklevel=3,
            )
        return {
            "category_id": self.table[annotation.category_id],
            "segmentation": segmentation,
            "area": annotation.area,
            "bbox": list(annotation.bbox),
            "iscrowd": int(annotation.iscrowd or 0),
        }


def read_instances(
    path: str | os.PathLike[str], categories: Sequence[Category], name: str
) -> Instances:
    """Read a COCO instances file as ground truth of a data set.

    Args:
        categories: the data set's.
        name: the data set's, for the sentences.

    Raises:
        InputError: the file is missing or malformed, a mask is none of its image's size, or the
            categories are not the data set's.
    """
    path = Path(path)
    content = read_json(path, InstancesFile)
    _check_table(
        read_categories(content.categories, path, things_only=True), categories, path, name
    )
    return check_instances(content, path, categories, name)


def check_instances(
    content: InstancesFile, path: Path, categories: Sequence[Category], name: str
) -> Instances:
    """See `read_instances`."""
    table = {category.id: i for i, category in enumerate(categories) if category.isthing}
    images = images_by_id(content.images, path)
    ids = [annotation.id for annotation in content.annotations if annotation.id is not UNSET]
    check_unique(ids, "annotations[].id", path)
    image_ids = [annotation.image_id for annotation in content.annotations]
    problems = without_image(image_ids, images, path)
    by_image: dict[Id, dict[int, InstanceAnnotation]] = {}
    for i, annotation in enumerate(content.annotations):
        if annotation.category_id not in table:
            raise InputError(
                f"annotation file {path}: annotations[{i}].category_id {annotation.category_id} is "
                f"not among the things of {name}"
            )
        if i not in problems:
            image = images[annotation.image_id]
            _check_mask(annotation.segmentation, image, f"annotations[{i}].segmentation", path)
            if annotation.area > _MOST_AREA * image.height * image.width:
                raise InputError(
                    f"annotation file {path}: annotations[{i}].area is {annotation.area:g}, image "
                    f"{image.id!r} has {image.height * image.width} pixels"
                )
            by_image.setdefault(annotation.image_id, {})[i] = annotation
    return Instances(path, images, by_image, table, tuple(problems.values()))


# Areas are a polygon's, which reaches over the border now and then. AP passes over what is "larger"
# than 1e10 pixels.
_MOST_AREA = 2
_SEGMENTATION = msgspec.json.Decoder(Segmentation)


def _check_mask(segmentation: Raw, image: Image, where: str, path: Path) -> None:
    found = parse(segmentation, _SEGMENTATION, f"annotation file {path}", where)
    try:
        check(found, image.height, image.width)
    except ValueError as error:
        raise InputError(f"annotation file {path}: {where}{error}") from None


def _check_table(
    found: Sequence[Category], categories: Sequence[Category], path: Path, name: str
) -> None:
    """The categories of an instances file against those of the data set it belongs to."""
    names = {category.id: category.name for category in categories}
    for category in found:
        if names.get(category.id) != category.name:
            theirs = f"calls it {names[category.id]!r}" if category.id in names else "has none"
            raise InputError(
                f"annotation file {path}: the category with id {category.id} is "
                f"{category.name!r}, and {name} {theirs}"
            )

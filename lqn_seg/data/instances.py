"""Tables of categories, and a COCO instances file as ground truth."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqn_seg.data.masks import area, compress
from lqn_seg.data.schema import (
    CocoFile,
    Id,
    Image,
    InstancesFile,
    PanopticFile,
    parse_color,
    read_json,
)
from lqn_seg.errors import InputError


@dataclass(frozen=True)
class Category:
    """One row of a data set's table."""

    id: int  # the data set's own, not necessarily contiguous
    name: str
    isthing: bool  # whether instances of it are counted one by one
    color: tuple[int, int, int] | None = None  # RGB 0 .. 255


def table_of(content: CocoFile) -> tuple[Category, ...]:
    """A file's categories sorted by id, as Detectron2 sorts them: a contiguous id is an index. All
    that are not a panoptic file's are things."""
    is_panoptic = isinstance(content, PanopticFile)
    categories = [
        Category(c.id, c.name, not is_panoptic or c.isthing == 1, parse_color(c.color))
        for c in content.categories
    ]
    return tuple(sorted(categories, key=lambda category: category.id))


def without_image(content: CocoFile, path: Path) -> dict[int, str]:
    """A sentence for every annotation whose image is not listed, by its index."""
    image_ids = {image.id for image in content.images}
    return {
        i: f"annotation file {path}: annotations[{i}] has image_id {annotation.image_id!r}, which "
        "no entry of 'images' has"
        for i, annotation in enumerate(content.annotations)
        if annotation.image_id not in image_ids
    }


@dataclass(frozen=True)
class Instances:
    """What a COCO instances file says, checked."""

    path: Path
    images: Mapping[Id, Image]  # by id
    annotations: Mapping[Id, Mapping[int, dict[str, Any]]]  # by image id and index in the file
    problems: tuple[str, ...]  # a sentence for every annotation whose image is not listed

    def of_image(self, image_id: Id, height: int, width: int) -> list[dict[str, Any]]:
        """An image's annotations: "category_id" (contiguous), "segmentation" (compressed RLE),
        "area" (pixels), "bbox" (x, y, width, height) and "iscrowd" of each.

        Warns of a mask without a pixel in the image: it counts as missed, as in pycocotools.

        Raises:
            InputError: the file does not list the image, or with another size.
        """
        image = self.images.get(image_id)
        if image is None:
            raise InputError(f"annotation file {self.path} lists no image with id {image_id!r}")
        if (image.height, image.width) != (height, width):
            raise InputError(
                f"annotation file {self.path}: image {image_id!r} is {image.height} x "
                f"{image.width} (height x width), its record says {height} x {width}"
            )
        annotations = self.annotations.get(image_id, {})
        for i, annotation in annotations.items():
            if not area(annotation["segmentation"]):
                warnings.warn(
                    f"annotation file {self.path}: annotations[{i}].segmentation has no pixel in "
                    f"image {image_id!r}, and AP calls it missed",
                    stacklevel=2,
                )
        return [dict(annotation) for annotation in annotations.values()]


def read_instances(
    path: str | os.PathLike[str], categories: Sequence[Category], name: str
) -> Instances:
    """Read a COCO instances file as ground truth of the data set `name` with these categories.

    Raises:
        InputError: the file is missing or malformed, a mask is none of its image's size, or the
            categories are not the data set's.
    """
    path = Path(path)
    content = read_json(path, InstancesFile)
    names = {category.id: category.name for category in categories}
    for category in table_of(content):
        if names.get(category.id) != category.name:
            theirs = f"calls it {names[category.id]!r}" if category.id in names else "has none"
            raise InputError(
                f"annotation file {path}: the category with id {category.id} is "
                f"{category.name!r}, and {name} {theirs}"
            )
    return check_instances(content, path, categories, name)


# Areas are a polygon's, which crosses the border now and then; AP ignores what is "larger" than
# 1e10 pixels.
_MOST_AREA = 2


def check_instances(
    content: InstancesFile, path: Path, categories: Sequence[Category], name: str
) -> Instances:
    """See `read_instances`."""
    table = {category.id: i for i, category in enumerate(categories) if category.isthing}
    images = {image.id: image for image in content.images}
    problems = without_image(content, path)
    by_image: dict[Id, dict[int, dict[str, Any]]] = {}
    for i, annotation in enumerate(content.annotations):
        where = f"annotation file {path}: annotations[{i}]"
        if annotation.category_id not in table:
            raise InputError(
                f"{where}.category_id {annotation.category_id} is not among the things of {name}"
            )
        if i in problems:
            continue
        image = images[annotation.image_id]
        try:
            segmentation = compress(annotation.segmentation, image.height, image.width)
        except ValueError as error:
            raise InputError(f"{where}.segmentation{error}") from None
        if annotation.area > _MOST_AREA * image.height * image.width:
            raise InputError(
                f"{where}.area is {annotation.area:g}, image {image.id!r} has "
                f"{image.height * image.width} pixels"
            )
        by_image.setdefault(annotation.image_id, {})[i] = {
            "category_id": table[annotation.category_id],
            "segmentation": segmentation,
            "area": annotation.area,
            "bbox": list(annotation.bbox),
            "iscrowd": int(annotation.iscrowd or 0),
        }
    return Instances(path, images, by_image, tuple(problems.values()))

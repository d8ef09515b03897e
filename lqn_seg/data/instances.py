"""A COCO instances file as ground truth."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_api

from lqn_seg.data.masks import compress
from lqn_seg.data.schema import Category, Id, Image, InstancesFile, read_json
from lqn_seg.errors import InputError


@dataclass(frozen=True)
class Instances:
    """What a COCO instances file says, checked."""

    path: Path
    images: Mapping[Id, Image]  # by id
    annotations: Mapping[Id, Mapping[int, dict[str, Any]]]  # by image id and index in the file
    problems: tuple[str, ...]  # a sentence for every annotation whose image is not listed

    def of_image(self, image_id: Id, height: int, width: int) -> list[dict[str, Any]]:
        """An image's annotations: "category_id" (contiguous), "segmentation" (compressed RLE),
        "area" (pixels), "bbox" (x, y, width, height) and "iscrowd" of each; InputError where the
        file does not list the image, or with another size."""
        image = self.images.get(image_id)
        if image is None:
            raise InputError(f"annotation file {self.path} lists no image with id {image_id!r}")
        if (image.height, image.width) != (height, width):
            raise InputError(
                f"annotation file {self.path}: image {image_id!r} is {image.height} x "
                f"{image.width} (height x width), but its record says {height} x {width}"
            )
        annotations = self.annotations.get(image_id, {})
        for i, annotation in annotations.items():
            if not mask_api.area(annotation["segmentation"]):  # missed, as in pycocotools
                warnings.warn(
                    f"annotation file {self.path}: annotations[{i}].segmentation has no pixel in "
                    f"image {image_id!r}, so AP counts it as missed",
                    stacklevel=2,
                )
        return [dict(annotation) for annotation in annotations.values()]


def read_instances(
    path: str | os.PathLike[str], categories: Sequence[Category], name: str
) -> Instances:
    """Read a COCO instances file as ground truth of the data set `name` with these categories.

    InputError where it is malformed, a mask is none of its image's size, or the table is another.
    """
    path = Path(path)
    content = read_json(path, InstancesFile)
    names = {category.id: category.name for category in categories}
    for category in content.table():
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
    problems = content.without_image(path)
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

"""Reader of the COCO instances layout: a folder of images and one JSON file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lqn_seg.data.coco_json import (
    check_instances,
    read_categories,
    require_file_names,
    sharing_a_file,
)
from lqn_seg.data.metadata import Dataset, Metadata, Record
from lqn_seg.data.schema import Image, InstancesFile, read_json


def load_coco_instances(
    name: str, image_dir: str | os.PathLike[str], json_file: str | os.PathLike[str]
) -> Dataset:
    """Open a COCO instances file as a data set; every category is a thing.

    The contiguous id is the index in the table of categories, sorted by their ids as Detectron2
    sorts them. An annotation whose image is not listed, and images that share a file, are among the
    data set's `problems`.

    Raises:
        InputError: the JSON is missing or malformed. The sentence names file and field.
    """
    path = Path(json_file)
    content = read_json(path, InstancesFile)
    metadata = Metadata(
        name=name,
        categories=read_categories(content.categories, path, things_only=True),
        evaluator_type="coco",
        image_root=os.fspath(image_dir),
        json_file=os.fspath(path),
    )
    instances = check_instances(content, path, metadata.categories, name)
    vars(metadata)["instances"] = instances  # the cached property: the file is not read again
    require_file_names(content.images, path)
    shared = sharing_a_file(content.images, path)
    images = [image for image in content.images if image.id not in shared]
    problems = (*instances.problems, *dict.fromkeys(shared.values()))
    return Dataset(metadata, partial(_records, images, metadata), problems)


def _records(images: Sequence[Image], metadata: Metadata) -> list[Record]:
    """Detectron2's dictionaries, in the order of the image ids, as Detectron2's own reader."""
    return [
        {
            "file_name": os.path.join(metadata.image_root or "", str(image.file_name)),
            "image_id": image.id,
            "height": image.height,
            "width": image.width,
        }
        for image in sorted(images, key=lambda image: image.id)
    ]

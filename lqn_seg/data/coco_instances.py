"""Reader of the COCO instances layout: a folder of images and one JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lqn_seg.data.coco_json import get, images_by_id, load_json
from lqn_seg.data.coco_panoptic import read_categories
from lqn_seg.data.metadata import Dataset, Metadata, Record


def load_coco_instances(
    name: str, image_dir: str | os.PathLike[str], json_file: str | os.PathLike[str]
) -> Dataset:
    """Open a COCO instances file as a data set; every category is a thing.

    The contiguous id is the index in the file's table of categories. Annotations are read when the
    first image's are asked for (`Metadata.read_instances`).

    Raises:
        InputError: the JSON is missing or malformed. The sentence names file and field.
    """
    path = Path(json_file)
    content = load_json(path)
    metadata = Metadata(
        name=name,
        categories=read_categories(content, path, things_only=True),
        evaluator_type="coco",
        image_root=os.fspath(image_dir),
        json_file=os.fspath(path),
    )
    images = images_by_id(content, path)
    _records(images, path, metadata)  # a malformed entry is named now, not in mid-run
    return Dataset(metadata, partial(_records, images, path, metadata))


def _records(images: Mapping[Any, Any], path: Path, metadata: Metadata) -> list[Record]:
    """Detectron2's dictionaries, in the order of the image ids, as Detectron2's own reader."""
    records = []
    for image_id in sorted(images):
        where = f"the image with id {image_id!r}"
        file_name, height, width = (
            get(images[image_id], key, where, path) for key in ("file_name", "height", "width")
        )
        records.append(
            {
                "file_name": os.path.join(metadata.image_root or "", file_name),
                "image_id": image_id,
                "height": int(height),
                "width": int(width),
            }
        )
    return records

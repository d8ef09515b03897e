"""Reader of the COCO panoptic layout: a folder of images, a folder of id PNGs and one JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lqn_seg.data.coco_json import get, images_by_id, load_json
from lqn_seg.data.metadata import Category, Dataset, Metadata, Record
from lqn_seg.errors import InputError


def load_coco_panoptic(
    name: str,
    image_dir: str | os.PathLike[str],
    panoptic_dir: str | os.PathLike[str],
    panoptic_json: str | os.PathLike[str],
    *,
    evaluator_type: str = "coco_panoptic_seg",
    json_file: str | os.PathLike[str] | None = None,
    label_dir: str | os.PathLike[str] | None = None,
    label_table: tuple[int, ...] | None = None,
) -> Dataset:
    """Open a data set in COCO panoptic layout (https://cocodataset.org/#format-data).

    The table of categories is the JSON's; the contiguous id is the index in it. The JSON is read
    and checked here; image and PNG files are read when they are used.

    An annotation whose image is not listed is one of the data set's `problems`.

    Args:
        name: the data set's name.
        evaluator_type, json_file, label_table: see `Metadata`.
        label_dir: label maps for semantic segmentation, named as the panoptic PNGs; None: they are
            made from the panoptic PNGs.

    Raises:
        InputError: the JSON is missing or malformed, a key is missing, or a segment's category is
            outside the table. The sentence names file and field.
    """
    path = Path(panoptic_json)
    content = load_json(path)
    metadata = Metadata(
        name=name,
        categories=read_categories(content, path),
        evaluator_type=evaluator_type,
        label_table=label_table,
        image_root=os.fspath(image_dir),
        panoptic_root=os.fspath(panoptic_dir),
        panoptic_json=os.fspath(path),
        sem_seg_root=None if label_dir is None else os.fspath(label_dir),
        json_file=None if json_file is None else os.fspath(json_file),
    )
    problems = _without_image(content, path)
    _records(content, path, metadata)  # a malformed entry is named now, not in mid-run
    return Dataset(metadata, partial(_records, content, path, metadata), problems)


def read_categories(
    content: Mapping[str, Any], path: Path, things_only: bool = False
) -> tuple[Category, ...]:
    """The table under `categories`; without `isthing` where every category is a thing.

    Raises:
        InputError: an entry lacks a key, or an id or a name occurs twice.
    """
    categories = []
    for i, entry in enumerate(content["categories"]):
        where = f"categories[{i}]"
        color = entry.get("color") if isinstance(entry, dict) else None
        categories.append(
            Category(
                id=get(entry, "id", where, path),
                name=get(entry, "name", where, path),
                isthing=things_only or bool(get(entry, "isthing", where, path)),
                color=None if color is None else (int(color[0]), int(color[1]), int(color[2])),
            )
        )
    for field in ("id", "name"):
        values = [getattr(category, field) for category in categories]
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise InputError(f"annotation file {path}: categories[].{field} {twice!r} occurs twice")
    return tuple(categories)


def _without_image(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """A sentence for every annotation whose image is not listed."""
    known = {get(entry, "id", f"images[{i}]", path) for i, entry in enumerate(content["images"])}
    problems = []
    for i, annotation in enumerate(content["annotations"]):
        image_id = get(annotation, "image_id", f"annotations[{i}]", path)
        if image_id not in known:
            problems.append(
                f"annotation file {path}: annotations[{i}] has image_id {image_id!r}, which no "
                "entry of 'images' has"
            )
    return tuple(problems)


def _records(content: Mapping[str, Any], path: Path, metadata: Metadata) -> list[Record]:
    """Detectron2's dictionaries, in the order of the annotations."""
    images = images_by_id(content, path)
    records: list[Record] = []
    seen: set[Any] = set()
    for i, annotation in enumerate(content["annotations"]):
        where = f"annotations[{i}]"
        image_id = get(annotation, "image_id", where, path)
        if image_id not in images:
            continue
        if image_id in seen:
            raise InputError(f"annotation file {path}: image_id {image_id!r} is annotated twice")
        seen.add(image_id)
        image, image_at = images[image_id], f"the image with id {image_id!r}"
        image_name = get(image, "file_name", image_at, path)
        panoptic_name = get(annotation, "file_name", where, path)
        segments = get(annotation, "segments_info", where, path)
        record = {
            "file_name": os.path.join(metadata.image_root or "", image_name),
            "image_id": image_id,
            "height": int(get(image, "height", image_at, path)),
            "width": int(get(image, "width", image_at, path)),
            "pan_seg_file_name": os.path.join(metadata.panoptic_root or "", panoptic_name),
            "segments_info": [
                _segment(segment, f"{where}.segments_info[{j}]", path, metadata)
                for j, segment in enumerate(segments)
            ],
        }
        if metadata.sem_seg_root is not None:
            record["sem_seg_file_name"] = os.path.join(metadata.sem_seg_root, panoptic_name)
        records.append(record)
    return records


def _segment(entry: Any, where: str, path: Path, metadata: Metadata) -> dict[str, Any]:
    """A segment with its category as contiguous id, as Detectron2 hands it on."""
    category_id = get(entry, "category_id", where, path)
    if category_id not in metadata.dataset_id_to_contiguous_id:
        raise InputError(
            f"annotation file {path}: {where}.category_id {category_id!r} is not among the ids of "
            "'categories'"
        )
    contiguous = metadata.dataset_id_to_contiguous_id[category_id]
    return {
        **entry,
        "id": int(get(entry, "id", where, path)),
        "category_id": contiguous,
        "isthing": contiguous in metadata.thing_ids,
        "iscrowd": int(entry.get("iscrowd", 0)),
    }

"""Reader of the COCO panoptic layout: a folder of images, a folder of id PNGs and one JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lqn_seg.data.coco_json import (
    check_unique,
    images_by_id,
    read_categories,
    require_file_names,
    sharing_a_file,
    without_image,
)
from lqn_seg.data.image_files import enumeration
from lqn_seg.data.metadata import Dataset, Metadata, Record
from lqn_seg.data.schema import (
    UNSET,
    Id,
    Image,
    PanopticAnnotation,
    PanopticFile,
    Segment,
    read_json,
)
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

    The table of categories is the JSON's, sorted by id; the contiguous id is the index in it. The
    JSON is read and checked here; image and PNG files are read when they are used.

    An annotation whose image is not listed, and images that share a file, are among the data set's
    `problems`; images without an annotation are among its `notes`.

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
    content = read_json(path, PanopticFile)
    metadata = Metadata(
        name=name,
        categories=read_categories(content.categories, path),
        evaluator_type=evaluator_type,
        label_table=label_table,
        image_root=os.fspath(image_dir),
        panoptic_root=os.fspath(panoptic_dir),
        panoptic_json=os.fspath(path),
        sem_seg_root=None if label_dir is None else os.fspath(label_dir),
        json_file=None if json_file is None else os.fspath(json_file),
    )
    require_file_names(content.images, path)
    images = images_by_id(content.images, path)
    image_ids = [annotation.image_id for annotation in content.annotations]
    problems = without_image(image_ids, images, path)
    check_unique(image_ids, "annotations[].image_id", path)
    for i, annotation in enumerate(content.annotations):
        _check_segments(annotation.segments_info, f"annotations[{i}].segments_info", path, metadata)
    shared = sharing_a_file(content.images, path)
    listed = [a for a in content.annotations if a.image_id in images and a.image_id not in shared]
    load = partial(_records, listed, images, metadata)
    left_out = (*problems.values(), *dict.fromkeys(shared.values()))
    return Dataset(metadata, load, left_out, _not_annotated(content, path))


def _not_annotated(content: PanopticFile, path: Path) -> tuple[str, ...]:
    """One sentence where images have no annotation: they are no part of the data set."""
    annotated = {annotation.image_id for annotation in content.annotations}
    others = [repr(image.id) for image in content.images if image.id not in annotated]
    if not others:
        return ()
    return (
        f"annotation file {path}: no annotation has the image_id {enumeration(others)}; "
        f"{len(others)} of {len(content.images)} images are not looked at",
    )


def _check_segments(segments: list[Segment], where: str, path: Path, metadata: Metadata) -> None:
    """Ids that are listed once, and categories of the table."""
    check_unique((segment.id for segment in segments), f"{where}[].id", path)
    for j, segment in enumerate(segments):
        if segment.category_id not in metadata.dataset_id_to_contiguous_id:
            raise InputError(
                f"annotation file {path}: {where}[{j}].category_id {segment.category_id} is not "
                "among the ids of 'categories'"
            )


def _records(
    annotations: list[PanopticAnnotation], images: Mapping[Id, Image], metadata: Metadata
) -> list[Record]:
    """Detectron2's dictionaries, in the order of the annotations."""
    records: list[Record] = []
    for annotation in annotations:
        image = images[annotation.image_id]
        record = {
            "file_name": os.path.join(metadata.image_root or "", str(image.file_name)),
            "image_id": image.id,
            "height": image.height,
            "width": image.width,
            "pan_seg_file_name": os.path.join(metadata.panoptic_root or "", annotation.file_name),
            "segments_info": [_segment(segment, metadata) for segment in annotation.segments_info],
        }
        if metadata.sem_seg_root is not None:
            record["sem_seg_file_name"] = os.path.join(metadata.sem_seg_root, annotation.file_name)
        records.append(record)
    return records


def _segment(segment: Segment, metadata: Metadata) -> dict[str, Any]:
    """A segment with its category as contiguous id, as Detectron2 hands it on."""
    contiguous = metadata.dataset_id_to_contiguous_id[segment.category_id]
    record: dict[str, Any] = {
        "id": segment.id,
        "category_id": contiguous,
        "isthing": contiguous in metadata.thing_ids,
        "iscrowd": int(segment.iscrowd or 0),
    }
    if segment.area is not UNSET:
        record["area"] = segment.area
    if segment.bbox is not UNSET:
        record["bbox"] = list(segment.bbox)
    return record

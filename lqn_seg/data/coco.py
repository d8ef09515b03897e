"""Readers of COCO's layouts: a folder of images with id PNGs and one JSON, or with one JSON."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lqn_seg.data.images import enumeration
from lqn_seg.data.instances import check_instances
from lqn_seg.data.metadata import Dataset, Listing, Metadata, Record
from lqn_seg.data.schema import (
    Id,
    InstancesDatasetFile,
    NamedImage,
    PanopticFile,
    Segment,
    read_json,
)

PathLike = str | os.PathLike[str]


def load_coco_panoptic(
    name: str,
    image_dir: PathLike,
    panoptic_dir: PathLike,
    panoptic_json: PathLike,
    *,
    evaluator_type: str = "coco_panoptic_seg",
    json_file: PathLike | None = None,
    label_dir: PathLike | None = None,
    label_table: tuple[int, ...] | None = None,
) -> Dataset:
    """Open a data set in COCO panoptic layout (https://cocodataset.org/#format-data).

    The JSON is read and checked here, image and PNG files when they are used. An annotation whose
    image is not listed, and images that share a file, are `problems`; images without an annotation
    are a note. `label_dir` holds label maps for semantic segmentation, named as the panoptic PNGs;
    None: they are made from those. For the other arguments see `Metadata`.
    """
    path = Path(panoptic_json)
    content = read_json(path, PanopticFile)
    metadata = Metadata(
        name=name,
        categories=content.table(),
        evaluator_type=evaluator_type,
        label_table=label_table,
        image_root=os.fspath(image_dir),
        panoptic_root=os.fspath(panoptic_dir),
        panoptic_json=os.fspath(path),
        sem_seg_root=None if label_dir is None else os.fspath(label_dir),
        json_file=None if json_file is None else os.fspath(json_file),
    )
    shared = _sharing_a_file(content.images, path)
    images = {image.id: image for image in content.images if image.id not in shared}
    annotations = [a for a in content.annotations if a.image_id in images]

    def listing() -> Listing:
        """In the order of the annotations."""
        result = []
        for annotation in annotations:
            record = _record(images[annotation.image_id], metadata) | {
                "pan_seg_file_name": os.path.join(panoptic_dir, annotation.file_name),
                "segments_info": [_segment(s, metadata) for s in annotation.segments_info],
            }
            if label_dir is not None:
                record["sem_seg_file_name"] = os.path.join(label_dir, annotation.file_name)
            result.append(record)
        return Listing(result)

    problems = (*content.without_image(path).values(), *dict.fromkeys(shared.values()))
    return Dataset(metadata, listing, problems, _not_annotated(content, path))


def load_coco_instances(name: str, image_dir: PathLike, json_file: PathLike) -> Dataset:
    """Open a COCO instances file as a data set; every category is a thing. Problems and errors are
    those of `load_coco_panoptic`."""
    path = Path(json_file)
    content = read_json(path, InstancesDatasetFile)
    metadata = Metadata(
        name=name,
        categories=content.table(),
        evaluator_type="coco",
        image_root=os.fspath(image_dir),
        json_file=os.fspath(path),
    )
    instances = check_instances(content, path, metadata.categories, name)
    vars(metadata)["instances"] = instances  # the cached property: the file is not read again
    shared = _sharing_a_file(content.images, path)
    # In the order of the ids, as Detectron2's own reader.
    images = sorted((i for i in content.images if i.id not in shared), key=lambda image: image.id)
    problems = (*instances.problems, *dict.fromkeys(shared.values()))
    return Dataset(
        metadata, lambda: Listing([_record(image, metadata) for image in images]), problems
    )


def _sharing_a_file(images: Sequence[NamedImage], path: Path) -> dict[Id, str]:
    """By its id, a sentence for every image whose file another image has too."""
    by_file: dict[str, list[Id]] = {}
    for image in images:
        by_file.setdefault(os.path.normpath(image.file_name), []).append(image.id)
    return {
        image_id: f"annotation file {path}: images[].file_name {name!r} occurs twice (image ids "
        f"{enumeration([repr(other) for other in same])})"
        for name, same in by_file.items()
        if len(same) > 1
        for image_id in same
    }


def _not_annotated(content: PanopticFile, path: Path) -> tuple[str, ...]:
    annotated = {annotation.image_id for annotation in content.annotations}
    others = [repr(image.id) for image in content.images if image.id not in annotated]
    if not others:
        return ()
    return (
        f"annotation file {path}: no annotation has the image_id {enumeration(others)}; "
        f"{len(others)} of {len(content.images)} images are not used",
    )


def _record(image: NamedImage, metadata: Metadata) -> Record:
    return {
        "file_name": os.path.join(metadata.image_root or "", image.file_name),
        "image_id": image.id,
        "height": image.height,
        "width": image.width,
    }


def _segment(segment: Segment, metadata: Metadata) -> dict[str, Any]:
    """A segment with its category as contiguous id, as Detectron2 hands it on."""
    contiguous = metadata.dataset_id_to_contiguous_id[segment.category_id]
    record = msgspec.to_builtins(segment)  # area and bbox are left out where the file has none
    record |= {"category_id": contiguous, "isthing": contiguous in metadata.thing_ids}
    record["iscrowd"] = int(segment.iscrowd or 0)
    return record | ({"bbox": list(record["bbox"])} if "bbox" in record else {})

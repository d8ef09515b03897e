"""What the COCO panoptic layout does not hold as such, made from its panoptic maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api

from lqn_seg.data.metadata import Dataset, Metadata, Record


def complete_records(dataset: Dataset, folder: str | os.PathLike[str]) -> list[Record]:
    """A data set's records with ``annotations`` and ``sem_seg_file_name``.

    Args:
        dataset: what to complete.
        folder: where the label maps are written (contiguous ids, 8 bits); several processes may
            write them at once.

    Raises:
        InputError: a file of the data set is missing or malformed.
    """
    records = dataset.records()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for record in records:
        record["annotations"] = instance_annotations(record, dataset.metadata)
        labels = dataset.metadata.read_semantic(record).astype(np.uint8)
        path = Path(folder, f"{record['image_id']}.png")
        written = path.with_suffix(f".{os.getpid()}.tmp")
        Image.fromarray(labels).save(written, format="PNG")
        written.replace(path)
        record["sem_seg_file_name"] = str(path)
    return records


def instance_annotations(record: Record, metadata: Metadata) -> list[dict[str, Any]]:
    """A record's things as COCO annotations with contiguous ids; none without a panoptic map.

    Returns:
        "category_id", "segmentation" (RLE), "bbox" (x, y, width, height) and "iscrowd" of each.

    Raises:
        InputError: as `Metadata.read_panoptic`.
    """
    segments = record.get("segments_info", ())
    things = [s for s in segments if s["category_id"] in metadata.thing_ids]
    if not things:
        return []
    ids = metadata.read_panoptic(record)
    return [
        {
            "category_id": segment["category_id"],
            "iscrowd": int(segment.get("iscrowd", 0)),
            **_encode(ids == segment["id"]),
        }
        for segment in things
    ]


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    return {"segmentation": segmentation, "bbox": mask_api.toBbox(rle).tolist()}

"""What counts of an image: bytes and annotation, not where they lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lqn_seg.data.catalog import Category, Metadata
from lqn_seg.data.input_hash import input_hash

METADATA = Metadata("x", (Category(1, "a", True),), "coco_panoptic_seg")


@pytest.fixture
def record(tmp_path) -> dict:
    paths = {key: tmp_path / key for key in ("file_name", "pan_seg_file_name")}
    for key, path in paths.items():
        path.write_bytes(key.encode())
    segment = {"id": 1, "category_id": 0, "iscrowd": 0}
    about = {"image_id": 7, "height": 2, "width": 3, "segments_info": [segment]}
    return {**about, **{key: str(path) for key, path in paths.items()}}


def test_every_part_counts_and_no_place_does(record, tmp_path):
    first = input_hash(record, METADATA)
    assert first == input_hash(dict(reversed(record.items())), METADATA) and len(first) == 16
    copy = tmp_path / "copy"
    copy.write_bytes(b"file_name")
    assert input_hash({**record, "file_name": str(copy)}, METADATA) == first
    segment = record["segments_info"][0]
    changes = [
        {"height": 3},
        {"segments_info": [{**segment, "iscrowd": 1}]},
        {"segments_info": [segment, segment]},
        {"file_name": record["pan_seg_file_name"]},
        {"file_name": record["pan_seg_file_name"], "pan_seg_file_name": record["file_name"]},
        {"pan_seg_file_name": str(tmp_path / "missing")},
        {"file_name": str(tmp_path)},
        {"file_name": "a\0b"},
        {"label": 1},
    ]
    hashes = {input_hash({**record, **change}, METADATA) for change in changes}
    assert len(hashes | {first}) == len(changes) + 1


def test_of_an_array_of_images_a_row_counts(tmp_path):
    arrays = {name: tmp_path / f"{name}.npy" for name in "ab"}
    images = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    np.save(arrays["a"], images)
    changed = images.copy()
    changed[1, 0, 0, 0] += 1
    np.save(arrays["b"], changed)

    def hashed(name: str, row: int) -> str:
        record = {"file_name": str(arrays[name]), "row": row, "image_id": row, "label": 0}
        return input_hash(record, METADATA)

    assert [hashed("a", k) == hashed("b", k) for k in range(3)] == [True, False, True]
    assert len({hashed("a", k) for k in (0, 1, 2, 9)}) == 4


def test_annotations_of_the_instances_file_count_where_they_are_scored(record, tmp_path):
    def metadata(**changes) -> Metadata:
        path = Path(tmp_path / f"{len(list(tmp_path.iterdir()))}.json")
        mask = {"size": [2, 3], "counts": [0, 3, 3]}
        annotation = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": mask, "iscrowd": 0}
        annotation |= {"area": 3, "bbox": [0, 0, 2, 2]}
        content = {
            "images": [{"id": k, "file_name": f"{k}", "height": 2, "width": 3} for k in (7, 8)],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [annotation | changes, {**annotation, "id": 2, "image_id": 8}],
        }
        path.write_text(json.dumps(content))
        return Metadata("x", (Category(1, "a", True),), "coco", json_file=str(path))

    first, crowd, other = metadata(), metadata(iscrowd=1), metadata(image_id=8)
    hashes = [input_hash(record, m, instances=True) for m in (first, metadata(), crowd, other)]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3
    assert input_hash(record, first) == input_hash(record, crowd) == input_hash(record, METADATA)

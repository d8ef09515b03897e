"""COCO instances files: what is read, and a sentence per malformed entry."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.coco import load_coco_instances
from lqn_seg.data.masks import decode
from lqn_seg.errors import InputError

MASK = np.array([[0, 1, 1], [0, 1, 0]], bool)
ANNOTATION = {"image_id": 9, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0}
CONTENT: dict[str, Any] = {
    "categories": [{"id": 90, "name": "cat"}, {"id": 4, "name": "car", "isthing": 0}],
    "images": [
        {"id": 9, "file_name": "b.jpg", "width": 3, "height": 2},
        {"id": 7, "file_name": "a.jpg", "width": 5, "height": 4},
    ],
    "annotations": [
        # COCO's three forms of one mask; run lengths go down the columns.
        {**ANNOTATION, "category_id": 4, "segmentation": {"size": [2, 3], "counts": [2, 3, 1]}},
        {**ANNOTATION, "category_id": 90, "segmentation": {"size": [2, 3], "counts": "231"}},
        {**ANNOTATION, "category_id": 90, "segmentation": [[1, 0, 2, 0, 2, 2, 1, 2]], "area": 2},
    ],
}
for number, entry in enumerate(CONTENT["annotations"]):
    entry["id"] = number


def write(root: Path, content: Any = CONTENT) -> Path:
    folder = root / "coco" / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "instances_val2017.json"
    path.write_text(json.dumps(content))
    return path


def test_records_and_annotations_under_detectron2s_name(tmp_path: Path) -> None:
    write(tmp_path)
    dataset = get_dataset("coco_2017_val", root=tmp_path)
    metadata = dataset.metadata
    assert metadata.class_names == ("car", "cat")  # by id
    assert metadata.dataset_id_to_contiguous_id == {4: 0, 90: 1}
    assert metadata.evaluator_type == "coco"
    first, second = dataset.records()  # in the order of their ids
    assert first["file_name"] == str(tmp_path / "coco" / "val2017" / "a.jpg")
    assert [first[k] for k in ("image_id", "height", "width")] == [7, 4, 5]
    assert metadata.read_instances(first) == []
    runs, text, polygon = metadata.read_instances(second)
    for result, category in ((runs, 0), (text, 1)):
        np.testing.assert_array_equal(decode(result["segmentation"]), MASK)
        assert result["category_id"] == category
    assert decode(polygon["segmentation"]).tolist() == [[0, 1, 0], [0, 1, 0]]
    assert (polygon["area"], polygon["iscrowd"]) == (2, 0)


def test_a_data_set_of_instances_has_no_labels(tmp_path: Path) -> None:
    dataset = load_coco_instances("mine", tmp_path, write(tmp_path))
    with pytest.raises(InputError, match="image 7 has no field pan_seg_file_name"):
        dataset.metadata.read_semantic(dataset.records()[0])


def test_missing_files_are_one_sentence(tmp_path: Path) -> None:
    for name, file in (("coco_2017_val", "instances"), ("coco_2017_val_panoptic", "panoptic")):
        with pytest.raises(
            InputError, match=rf"{file}_val2017\.json, which is not in .*cocodataset"
        ):
            get_dataset(name, root=tmp_path)


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
def test_real_coco_masks_have_their_areas() -> None:
    dataset = get_dataset("coco_2017_train", root=os.environ["LQN_SEG_REAL_DATA"])
    assert dataset.metadata.num_classes == 80
    records = dataset.records()
    annotations = [a for record in records for a in dataset.metadata.read_instances(record)]
    assert (len(records), len(annotations)) == (128, 939)
    assert sum(a["iscrowd"] for a in annotations) == 10
    large = [a for a in annotations if a["area"] > 1000]  # polygons and pixels differ at the rim
    ratios = [decode(a["segmentation"]).sum() / a["area"] for a in large]
    assert len(large) > 400 and abs(np.median(ratios) - 1) < 0.005
    assert np.mean(np.abs(np.array(ratios) - 1) < 0.1) > 0.98  # a few polygons overlap themselves


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [2, 3], "counts": [6]},
        [[0, 0, 0, 0, 0, 0]],  # a point
        [[9, 9, 12, 9, 12, 12]],  # beside the image
    ],
)
def test_a_mask_without_a_pixel_is_named_and_missed(tmp_path: Path, segmentation: Any) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][1]["segmentation"] = segmentation
    write(tmp_path, content)
    dataset = get_dataset("coco_2017_val", root=tmp_path)
    first, second = dataset.records()
    assert dataset.metadata.read_instances(first) == []
    with pytest.warns(UserWarning, match=r"annotations\[1\]\.segmentation has no pixel in image 9"):
        assert len(dataset.metadata.read_instances(second)) == 3


def test_an_area_beyond_the_image_is_refused(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][2]["area"] = 6  # all of the image
    write(tmp_path, content)
    get_dataset("coco_2017_val", root=tmp_path)
    content["annotations"][2]["area"] = 1e11  # pycocotools would pass over the instance
    write(tmp_path, content)
    with pytest.raises(InputError, match=r"annotations\[2\]\.area is 1e\+11, image 9 has 6 pixels"):
        get_dataset("coco_2017_val", root=tmp_path)


def test_images_that_share_a_file_are_left_out_by_name(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["images"].append({"id": 8, "file_name": "./a.jpg", "width": 5, "height": 4})
    write(tmp_path, content)
    dataset = get_dataset("coco_2017_val", root=tmp_path)
    (problem,) = dataset.problems
    assert problem.endswith("images[].file_name 'a.jpg' occurs twice (image ids 7, 8)")
    assert [record["image_id"] for record in dataset.records(strict=False)] == [9]

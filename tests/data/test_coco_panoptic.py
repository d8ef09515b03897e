"""The COCO panoptic reader and the catalog: ids, ground truth, a sentence per malformed file."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data import catalog
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.data.images import read_label_map, write_id_map, write_label_map
from lqn_seg.data.masks import decode
from lqn_seg.errors import InputError

IDS = np.array([[0, 5, 5, 300], [0, 5, 5, 300], [7, 7, 7, 300]], dtype=np.int32)
CONTENT: dict[str, Any] = {
    "categories": [
        {"id": 90, "name": "road", "isthing": 0, "color": [1, 2, 3]},
        {"id": 4, "name": "car", "isthing": 1},
        {"id": 17, "name": "sky", "isthing": 0},
    ],
    "images": [{"id": 11, "file_name": "x.jpg", "width": 4, "height": 3}],
    "annotations": [
        {
            "image_id": 11,
            "file_name": "x.png",
            "segments_info": [
                {"id": 5, "category_id": 4, "iscrowd": 0, "area": 4, "bbox": [1, 0, 2, 2]},
                {"id": 300, "category_id": 4, "iscrowd": 1, "area": 3, "bbox": [3, 0, 1, 3]},
                {"id": 7, "category_id": 17},
            ],
        }
    ],
}


def write(root: Path, content: Any, ids: np.ndarray = IDS) -> Any:
    (root / "panoptic").mkdir(exist_ok=True)
    write_id_map(root / "panoptic" / "x.png", ids)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "p.json").write_text(text)
    return root / "images", root / "panoptic", root / "p.json"


def test_records_are_detectron2s(tmp_path: Path) -> None:
    dataset = load_coco_panoptic("mine", *write(tmp_path, CONTENT))
    (record,) = dataset.records()
    assert record["file_name"] == str(tmp_path / "images" / "x.jpg")
    assert record["pan_seg_file_name"] == str(tmp_path / "panoptic" / "x.png")
    assert (record["image_id"], record["height"], record["width"]) == (11, 3, 4)
    got = [(s["id"], s["category_id"], s["isthing"], s["iscrowd"]) for s in record["segments_info"]]
    assert got == [(5, 0, True, 0), (300, 0, True, 1), (7, 1, False, 0)]
    record["segments_info"].clear()  # the caller's copy
    assert len(dataset.records()[0]["segments_info"]) == 3


def test_contiguous_ids_are_indices_of_the_table_sorted_by_id(tmp_path: Path) -> None:
    metadata = load_coco_panoptic("mine", *write(tmp_path, CONTENT)).metadata
    assert metadata.class_names == ("car", "sky", "road")
    assert metadata.thing_ids == {0}
    assert metadata.dataset_id_to_contiguous_id == {4: 0, 17: 1, 90: 2}
    assert metadata.categories[2].color == (1, 2, 3)
    assert metadata.categories[0].color is None
    assert (metadata.evaluator_type, metadata.ignore_label) == ("coco_panoptic_seg", 255)


def test_ground_truth(tmp_path: Path) -> None:
    dataset = load_coco_panoptic("mine", *write(tmp_path, CONTENT))
    (record,) = dataset.records()
    np.testing.assert_array_equal(dataset.metadata.read_panoptic(record), IDS)
    # void is ignored, a crowd is of its category
    np.testing.assert_array_equal(
        dataset.metadata.read_semantic(record),
        [[255, 0, 0, 0], [255, 0, 0, 0], [1, 1, 1, 0]],
    )


def test_instances_come_from_the_map_or_from_the_json_that_is_named(tmp_path: Path) -> None:
    dataset = load_coco_panoptic("mine", *write(tmp_path, CONTENT))
    (record,) = dataset.records()
    got = [
        (a["category_id"], a["iscrowd"], a["area"], a["bbox"])
        for a in dataset.metadata.read_instances(record)
    ]
    assert got == [(0, 0, 4, [1, 0, 2, 2]), (0, 1, 3, [3, 0, 1, 3])]

    square = {"image_id": 11, "category_id": 4, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
    square |= {"area": 3.5, "bbox": [0, 0, 2, 2]}
    instances = {**CONTENT, "annotations": [square]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    dataset = load_coco_panoptic(
        "mine", *write(tmp_path, CONTENT), json_file=tmp_path / "instances.json"
    )
    (result,) = dataset.metadata.read_instances(record)
    assert (result["category_id"], result["iscrowd"], result["area"]) == (0, 0, 3.5)
    expected = np.zeros((3, 4), bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(decode(result["segmentation"]), expected)
    with pytest.raises(InputError, match=r"instances\.json lists no image with id 12"):
        dataset.metadata.read_instances({**record, "image_id": 12})


def test_label_maps_go_before_the_panoptic_map(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2, 3]] * 3, np.uint8)
    (tmp_path / "labels").mkdir()
    Image.fromarray(labels).save(tmp_path / "labels" / "x.png")
    dataset = load_coco_panoptic(
        "mine",
        *write(tmp_path, CONTENT),
        label_dir=tmp_path / "labels",
        label_table=(255, 0, 1, 2),
    )
    result = dataset.metadata.read_semantic(dataset.records()[0])
    np.testing.assert_array_equal(result, [[255, 0, 1, 2]] * 3)


def test_an_annotation_without_image_is_a_problem_that_a_caller_can_live_with(
    tmp_path: Path,
) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"].insert(0, {**content["annotations"][0], "image_id": 12})
    dataset = load_coco_panoptic("mine", *write(tmp_path, content))
    with pytest.raises(InputError, match=r"p\.json: annotations\[0\] has image_id 12, which"):
        dataset.records()
    assert [record["image_id"] for record in dataset.records(strict=False)] == [11]
    assert len(dataset.problems) == 1


def test_images_without_annotation_are_noted_and_those_that_share_a_file_left_out(
    tmp_path: Path,
) -> None:
    content = copy.deepcopy(CONTENT)
    content["images"].append({**content["images"][0], "id": 12, "file_name": "other.jpg"})
    dataset = load_coco_panoptic("mine", *write(tmp_path, content))
    (note,) = dataset.notes
    count = len(content["images"])
    assert note.endswith(f"has the image_id 12; 1 of {count} images are not used")
    assert dataset.problems == () and len(dataset.records()) == len(content["annotations"])
    content["images"][-1]["file_name"] = content["images"][0]["file_name"]
    dataset = load_coco_panoptic("mine", *write(tmp_path, content))
    (problem,) = dataset.problems
    assert problem.endswith("occurs twice (image ids 11, 12)")
    assert dataset.records(strict=False) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_unreadable_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"p\.json"):
        load_coco_panoptic("mine", *write(tmp_path, text))
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        load_coco_panoptic("mine", tmp_path, tmp_path, tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.where(IDS == 7, 8, IDS), r"x\.png holds segment id 8, which .*segments_info"),
        (np.where(IDS == 7, 5, IDS), r"segments_info of image 11 lists segment id 7.*x\.png"),
        (IDS[:2], r"x\.png is 2 x 4 .* image 11 say 3 x 4"),
    ],
)
def test_png_that_disagrees_with_the_json(tmp_path: Path, ids: np.ndarray, message: str) -> None:
    dataset = load_coco_panoptic("mine", *write(tmp_path, CONTENT, ids))
    with pytest.raises(InputError, match=message):
        dataset.metadata.read_semantic(dataset.records()[0])


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="'demo_panoptik_val': did you mean demo_panoptic_val"):
        get_dataset("demo_panoptik_val")
    with pytest.raises(
        InputError, match=r"did you mean acdc_fog_sem_seg_\{train,val\} or .* or coco_2017_\{"
    ) as all_:
        get_dataset("§")
    assert str(all_.value).count("_c_<corruption>_<1..5>") == 2  # and not 190 names
    assert "camvid_sem_seg_{report,train,val}" in str(all_.value) and len(str(all_.value)) < 1200


def demo_tree(root: Path) -> None:
    for folder in ("annotations", "panoptic_val"):
        (root / "demo" / folder).mkdir(parents=True)
    (root / "demo" / "annotations" / "panoptic_val.json").write_text(json.dumps(CONTENT))
    write_id_map(root / "demo" / "panoptic_val" / "x.png", IDS)


def test_where_the_demo_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "environment"))
    monkeypatch.setattr(catalog, "shipped_root", lambda: tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    roots = [tmp_path / "environment", tmp_path / "repository" / "datasets", tmp_path / "datasets"]
    with pytest.raises(InputError, match=r"panoptic_val\.json.*prepare_demo") as error:
        get_dataset("demo_panoptic_val")
    for root in roots:
        assert str(root) in str(error.value)
    for root in reversed(roots):  # an earlier one wins over those that are there already
        demo_tree(root)
        dataset = get_dataset("demo_panoptic_val")
        assert dataset.metadata.panoptic_root == str(root / "demo" / "panoptic_val")
        assert dataset.records()[0]["file_name"] == str(root / "demo" / "val" / "x.jpg")
    with pytest.raises(InputError, match="elsewhere"):
        get_dataset("demo_panoptic_val", root=tmp_path / "elsewhere")


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
def test_real_coco_annotations_are_consistent() -> None:
    root = Path(os.environ["LQN_SEG_REAL_DATA"]) / "coco"
    annotations = root / "annotations" / "panoptic_train2017.json"
    dataset = load_coco_panoptic(
        "real", root / "train2017", root / "panoptic_train2017", annotations
    )
    assert dataset.metadata.thing_ids == set(range(80))
    assert dataset.metadata.num_classes == 133
    for record in dataset.records():
        ids = dataset.metadata.read_panoptic(record)
        for segment in record["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]


def test_the_256th_category_is_not_void(tmp_path: Path) -> None:
    """Void pixels are ignored, category 255 of 300 is not."""
    write_id_map(tmp_path / "0.png", np.array([[0, 1, 2]]))
    segments = [{"id": 1, "category_id": 255, "area": 1}, {"id": 2, "category_id": 299, "area": 1}]
    for segment in segments:
        segment |= {"bbox": [0, 0, 1, 1], "iscrowd": 0}
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": 1, "width": 3}],
        "annotations": [{"image_id": 0, "file_name": "0.png", "segments_info": segments}],
        "categories": [{"id": k, "name": str(k), "isthing": 0} for k in range(300)],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    dataset = load_coco_panoptic("many", tmp_path, tmp_path, tmp_path / "panoptic.json")
    assert dataset.metadata.ignore_label == 65535
    labels = dataset.metadata.read_semantic(dataset.records()[0])
    assert labels.tolist() == [[65535, 255, 299]]
    write_label_map(tmp_path / "labels.png", labels)
    assert read_label_map(tmp_path / "labels.png").tolist() == labels.tolist()

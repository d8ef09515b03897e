"""ADE20K panoptic: what the preparation script makes, by hand, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.segmentation_sets import ADE20K_CLASSES, ADE20K_STUFF
from lqn_seg.errors import InputError

# Raw labels: 1 wall, 3 sky, 13 person, 0 other. Instance categories: 4 person, 1 bed.
LABELS = np.array([[1, 1, 3, 0], [1, 13, 13, 13], [1, 13, 13, 0]], np.uint8)
CATEGORY = np.array([[0, 0, 1, 0], [0, 4, 4, 0], [0, 4, 4, 4]], np.uint8)
NUMBER = np.array([[0, 0, 3, 0], [0, 1, 2, 0], [0, 1, 2, 2]], np.uint8)
WALL, SKY, BED, PERSON = 0, 2, 7, 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "ADEChallengeData2016"
    instances = np.stack([CATEGORY, NUMBER, np.zeros_like(NUMBER)], -1)
    for kind, pixels, suffix in (
        ("images", np.zeros((3, 4, 3), np.uint8), "jpg"),
        ("annotations", LABELS, "png"),
        ("annotations_instance", instances, "png"),
    ):
        (base / kind / "validation").mkdir(parents=True)
        Image.fromarray(pixels).save(base / kind / "validation" / f"ADE_val_00000001.{suffix}")
    return tmp_path


def test_things_of_the_table() -> None:
    assert len(ADE20K_STUFF) == 50
    things = [name for i, name in enumerate(ADE20K_CLASSES) if i not in ADE20K_STUFF]
    # Instance categories 1, 4 and 100 of the instance challenge.
    assert [things[k - 1] for k in (1, 4, 100)] == ["bed", "person", "flag"]


def test_stuff_under_instances(root: Path, script) -> None:
    path = script("datasets", "prepare_ade20k_panoptic").write_panoptic(root, "val")
    dataset = get_dataset("ade20k_panoptic_val", root=root)
    metadata = dataset.metadata
    assert metadata.evaluator_type == "ade20k_panoptic_seg"
    assert (metadata.num_classes, len(metadata.thing_ids)) == (150, 100)
    assert not metadata.thing_ids & ADE20K_STUFF and metadata.panoptic_json == str(path)
    (record,) = dataset.records()
    assert record["image_id"] == "ADE_val_00000001" and record["file_name"].endswith("1.jpg")
    ids = metadata.read_panoptic(record)
    by_id = {s["id"]: s["category_id"] for s in record["segments_info"]} | {0: -1}
    expected = [
        [WALL, WALL, BED, -1],  # the bed covers all of the sky
        [WALL, PERSON, PERSON, -1],  # no instance: void
        [WALL, PERSON, PERSON, PERSON],
    ]
    assert np.vectorize(by_id.get)(ids).tolist() == expected
    assert len(np.unique(ids[ids > 0])) == 4 and SKY not in by_id.values()
    areas = {s["id"]: s["area"] for s in record["segments_info"]}
    assert areas == {i: int((ids == i).sum()) for i in areas}
    boxes = {s["category_id"]: s["bbox"] for s in record["segments_info"]}
    assert boxes[WALL] == [0, 0, 2, 3] and boxes[BED] == [2, 0, 1, 1]


def test_semantic_truth_is_the_label_map_where_it_is(root: Path, script) -> None:
    script("datasets", "prepare_ade20k_panoptic").write_panoptic(root, "val")
    raw = [[0, 0, 2, 255], [0, 12, 12, 12], [0, 12, 12, 255]]
    dataset = get_dataset("ade20k_panoptic_val", root=root)
    assert dataset.metadata.read_semantic(dataset.records()[0]).tolist() == raw
    labels = root / "ADEChallengeData2016" / "annotations"
    converted = root / "ADEChallengeData2016" / "annotations_detectron2" / "validation"
    converted.mkdir(parents=True)
    shifted = np.array([[9, 9, 9, 255]] * 3, np.uint8)
    Image.fromarray(shifted).save(converted / "ADE_val_00000001.png")
    dataset = get_dataset("ade20k_panoptic_val", root=root)
    np.testing.assert_array_equal(dataset.metadata.read_semantic(dataset.records()[0]), shifted)
    for folder in (labels, converted.parent):
        folder.rename(folder.with_name(f"no_{folder.name}"))
    dataset = get_dataset("ade20k_panoptic_val", root=root)
    assert dataset.metadata.read_semantic(dataset.records()[0])[0].tolist() == [0, 0, 7, 255]


def test_bad_input_is_one_sentence(root: Path, script, tmp_path, monkeypatch, capsys) -> None:
    prepare = script("datasets", "prepare_ade20k_panoptic")
    with pytest.raises(InputError, match=r"ade20k_panoptic_val\.json.*prepare_ade20k_panoptic"):
        get_dataset("ade20k_panoptic_val", root=root)
    monkeypatch.setattr("sys.argv", ["x", "--root", str(tmp_path), "--split", "train"])
    assert prepare.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "images/training does not exist" in error
    wrong = np.stack([CATEGORY, np.minimum(NUMBER, 1), NUMBER], -1)
    wrong[0, 2, 1] = 1  # instance 1 is a bed and a person
    folder = root / "ADEChallengeData2016" / "annotations_instance" / "validation"
    Image.fromarray(wrong).save(folder / "ADE_val_00000001.png")
    with pytest.raises(InputError, match=r"00000001\.png: instance 1 has the categories \[1, 4\]"):
        prepare.write_panoptic(root, "val")
    Image.fromarray(wrong[:2]).save(folder / "ADE_val_00000001.png")
    with pytest.raises(InputError, match=r"3 x 4 .* instances are 2 x 4"):
        prepare.write_panoptic(root, "val")
    assert not (root / "ADEChallengeData2016" / "ade20k_panoptic_val.json").exists()


def test_the_json_is_coco_panoptic(root: Path, script) -> None:
    path = script("datasets", "prepare_ade20k_panoptic").write_panoptic(root, "val")
    content = json.loads(path.read_text())
    assert content["images"] == [
        {"id": "ADE_val_00000001", "file_name": "ADE_val_00000001.jpg", "height": 3, "width": 4}
    ]
    assert [c["id"] for c in content["categories"]] == list(range(150))
    assert all(len(c["color"]) == 3 for c in content["categories"])
    assert content["annotations"][0]["file_name"] == "ADE_val_00000001.png"

"""The check of data sets: what it finds, what it scores, and what a broken evaluator looks like."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data import catalog
from lqn_seg.data.catalog import (
    get_dataset,
    register_coco_panoptic,
    register_image_folder,
    register_label_folders,
)
from lqn_seg.data.images import read_id_map, write_id_map
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.lab.validate import validate as module
from lqn_seg.lab.validate.ground_truth import damage, read_ground_truth
from lqn_seg.lab.validate.validate import (
    DAMAGED,
    TRUTH,
    Validation,
    score_stored,
    validate,
)

# From panopticapi on the damaged ground truth of the first twelve COCO images of the real sample.
PANOPTICAPI_ON_COCO = {
    "PQ": 32.549806786750835,
    "SQ": 42.54411317452968,
    "RQ": 42.99889346764347,
    "PQ_th": 30.252462808914487,
    "PQ_st": 34.66336324636026,
}


@pytest.fixture
def scenes(scenes_root: Path, tmp_path: Path, monkeypatch) -> Path:
    """Five scenes of one's own, to break; known as "mine"."""
    monkeypatch.setattr(catalog, "_registered", {})
    shutil.copytree(scenes_root / "demo", tmp_path / "demo")
    folder = tmp_path / "demo"
    path = folder / "annotations" / "panoptic_val.json"
    register_coco_panoptic("mine", folder / "val", folder / "panoptic_val", path)
    return folder


def check(name: str = "mine", **how: int) -> Validation:
    return validate(get_dataset(name), progress=False, **how)


def change(scenes: Path, edit) -> None:
    path = scenes / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_whole_data_set_scores_100_everywhere(scenes: Path) -> None:
    result = check()
    assert result.problems == result.notes == []
    assert result.scores.keys() == {"panoptic_seg", "segm", "sem_seg"}
    for task, key in (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU")):
        assert result.scores[task][TRUTH][key] == pytest.approx(100, abs=1e-9)
        assert 5 < result.scores[task][DAMAGED][key] < 90
    text = result.text()
    assert text.startswith("mine: 5 images, 0 problems") and text.count("100.000000") >= 8


def test_what_is_wrong_with_files_is_named_and_the_rest_is_scored(scenes: Path) -> None:
    (scenes / "val" / "000000.png").unlink()
    Image.new("RGB", (50, 96)).save(scenes / "val" / "000001.png")
    ids = read_id_map(scenes / "panoptic_val" / "000002.png")
    write_id_map(scenes / "panoptic_val" / "000002.png", np.where(ids == ids[0, 0], 77777, ids))
    (scenes / "panoptic_val" / "000003.png").write_bytes(b"\x89PNG")

    def wrong_area(content):
        content["annotations"][4]["segments_info"][0]["area"] += 1

    change(scenes, wrong_area)
    result = check()
    expected = (
        r"000000.png does not exist",
        "000001.png is 96 x 50 (height x width), but its annotation says 96 x 96",
        "000002.png holds segment id 77777",
        "000003.png",
        "segments_info says area",
    )
    assert len(result.problems) == len(expected)
    for sentence, words in zip(result.problems, expected):
        assert words in sentence
    assert result.scores == {}  # no image is left
    change(scenes, lambda c: c["annotations"][4]["segments_info"][0].pop("area"))
    assert check().scores["panoptic_seg"][TRUTH]["PQ"] == 100


def test_label_folders_have_miou_alone(scenes: Path, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    random = np.random.default_rng(0)
    for k in range(3):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / f"{k}.png")
        labels = np.repeat(random.integers(0, 4, (3, 4)), 10, 0).repeat(10, 1).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{k}.png")
    classes = ["road", "car", "sky"]
    register_label_folders("plain", tmp_path / "images", tmp_path / "labels", classes, 3)
    result = check("plain")
    assert result.problems == [] and result.scores.keys() == {"sem_seg"}
    assert (
        result.scores["sem_seg"][TRUTH]["mIoU"]
        == 100
        > result.scores["sem_seg"][DAMAGED]["mIoU"]
        > 20
    )


def test_damage_depends_on_the_image_alone(scenes: Path) -> None:
    dataset = get_dataset("mine")
    first, second = (read_ground_truth(r, dataset.metadata) for r in dataset.records()[:2])
    copies = [damage(first, dataset.metadata) for _ in range(2)]
    for (ids, segments), (same_ids, same_segments) in [(copies[0].segments, copies[1].segments)]:
        np.testing.assert_array_equal(ids, same_ids)
        assert segments == same_segments and {s["id"] for s in segments} == set(ids.flat) - {0}
    assert not np.array_equal(copies[0].labels, first.labels)
    assert not np.array_equal(copies[0].labels, damage(second, dataset.metadata).labels)


def test_the_stored_prediction_scores_what_the_references_gave() -> None:
    pairs = score_stored()
    assert {"PQ", "SQ_th", "RQ_st", "AP", "AP50", "mIoU", "pACC"} <= pairs.keys()
    for key, (ours, theirs) in pairs.items():
        assert ours == pytest.approx(theirs, abs=1e-6), key
    assert pairs["PQ"][1] == pytest.approx(51.42508584589331)  # panopticapi's


def test_a_broken_evaluator_is_found(scenes: Path, monkeypatch) -> None:
    class Broken(PanopticEvaluator):
        def summarize(self, statistics):
            return {k: v * 0.999 for k, v in super().summarize(statistics).items()}

    monkeypatch.setattr(module, "PanopticEvaluator", Broken)
    problems = check().problems
    assert any("ground truth as prediction scores PQ 99.9" in p for p in problems)
    assert any("the stored prediction scores PQ 51.37" in p and "51.425" in p for p in problems)


def test_a_difference_to_a_reference_is_a_problem() -> None:
    nan, row = float("nan"), "the same by pycocotools"
    rows = {TRUTH: {"AP": 100.0, "APl": nan}, DAMAGED: {"AP": 40.0, "APl": nan}}
    result = Validation("x", 1, 1, scores={"segm": {**rows, row: {"AP": 40.0000001, "APl": nan}}})
    assert result.disagreements() == []
    result.scores["segm"][row] = {"AP": 40.00001, "APl": 3.0}
    first, second = result.disagreements()
    assert (
        "scores AP 40.000000000 here and 40.000010000 by pycocotools" in first and "APl" in second
    )


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
def test_real_coco_scores_what_panopticapi_gave() -> None:
    dataset = get_dataset("coco_2017_train_panoptic", root=os.environ["LQN_SEG_REAL_DATA"])
    result = validate(dataset, max_images=12, progress=False)
    assert result.problems == []  # pycocotools was asked for AP
    scores = {key: result.scores["panoptic_seg"][DAMAGED][key] for key in PANOPTICAPI_ON_COCO}
    assert scores == pytest.approx(PANOPTICAPI_ON_COCO, abs=1e-6)


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
@pytest.mark.parametrize(
    ("name", "notes"), [("ade20k_sem_seg_val", 0), ("cityscapes_fine_sem_seg_val", 1)]
)
def test_real_samples_are_whole(name: str, notes: int) -> None:
    dataset = get_dataset(name, root=os.environ["LQN_SEG_REAL_DATA"])
    result = validate(dataset, progress=False)
    assert result.problems == [] and len(result.notes) == notes
    assert result.scores["sem_seg"][TRUTH]["mIoU"] == 100


def test_folders_that_evaluation_would_trip_over(scenes: Path, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    labels = np.array([[0, 1], [2, 0], [1, 1]], np.uint8).repeat(10, 0).repeat(10, 1)
    turns = {"fine.png": 1, "square.png": 6, "mirrored.png": 2, "sideways.png": 6, "wrong.png": 1}
    for name, orientation in turns.items():
        height, exif = 20 if name == "square.png" else 30, Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (20, height)).save(tmp_path / "images" / name, exif=exif)
        Image.fromarray(labels[:height]).save(tmp_path / "labels" / name)
    Image.fromarray(np.full((30, 20), 77, np.uint8)).save(tmp_path / "labels" / "wrong.png")
    (tmp_path / "images" / "._fine.png").touch()
    register_label_folders(
        "plain", tmp_path / "images", tmp_path / "labels", ["road", "car", "sky"]
    )
    result = check("plain")
    expected = ("sideways.png is 30 x 20", "._fine.png", "wrong.png holds label 77")
    assert len(result.problems) == len(expected)
    for sentence, words in zip(result.problems, expected):
        assert words in sentence
    assert result.scores["sem_seg"][TRUTH]["mIoU"] == 100
    for note, (name, orientation) in zip(result.notes, (("mirrored", 2), ("square", 6))):
        assert f"{name}.png has the EXIF orientation {orientation}: its labels must" in note
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    result = check("plain")
    assert len(result.problems) == 6 and result.scores == {} and result.images == 0


def test_class_folders_are_looked_at_too(scenes: Path, tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "mine" / name)
    (tmp_path / "mine" / "empty").mkdir()
    (tmp_path / "mine" / "cat" / "b.png").write_bytes(b"\x89PNG")
    register_image_folder("pets", tmp_path / "mine")
    result = check("pets")
    assert len(result.problems) == 1 and "b.png" in result.problems[0] and result.images == 3
    assert len(result.notes) == 1 and "without an image: empty" in result.notes[0]


@pytest.mark.parametrize("count", [100, 101])
def test_more_instances_than_ap_looks_at_are_no_problem(scenes: Path, count: int) -> None:
    """COCO's AP takes 100 predictions of a class and image, so 101 true ones cannot have 100."""
    ids = np.zeros((96, 96), np.int64)
    for k in range(count):
        row, column = divmod(k, 16)
        ids[8 * row : 8 * row + 5, 6 * column : 6 * column + 4] = k + 1
    write_id_map(scenes / "panoptic_val" / "000000.png", ids)

    def crowded(content):
        thing = next(c["id"] for c in content["categories"] if c["isthing"])
        segments = [{"id": k + 1, "category_id": thing, "area": 20} for k in range(count)]
        content["annotations"][0]["segments_info"] = segments

    change(scenes, crowded)
    result = check(max_images=1)
    assert result.problems == [] and result.scores["panoptic_seg"][TRUTH]["PQ"] == 100
    if count == 100:
        assert result.notes == [] and result.scores["segm"][TRUTH]["AP"] == pytest.approx(100)
    else:
        assert result.scores["segm"][TRUTH]["AP"] < 99.5
        assert "has more than 100 instances of" in result.notes[0]

"""Adverse street scenes: small trees of the published layouts, read and scored by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import name2label
from PIL import Image

from lqn_seg.data.catalog import dataset_names, get_dataset
from lqn_seg.data.cityscapes_sets import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_SETS,
    CITYSCAPES_TRAIN_IDS,
    WILDDASH_TRAIN_IDS,
)
from lqn_seg.data.class_maps import class_map
from lqn_seg.data.images import write_id_map
from lqn_seg.data.sources import SETS
from lqn_seg.errors import InputError
from lqn_seg.evaluation.semantic import SemanticEvaluator

# What every label map shows, by cityscapesscripts' name: the last two do not count.
SCENE = [["road", "road", "car", "sky"], ["person", "bicycle", "license plate", "static"]]
LABEL_IDS = np.array([[max(name2label[name].id, 0) for name in row] for row in SCENE], np.uint8)
TRAIN_IDS = np.array([[name2label[name].trainId % 256 for name in row] for row in SCENE], np.uint8)
RAIN = "leftImg8bit_rain_alpha_{}_beta_{}_dropsize_{}_pattern_{}"
MUNSTER = "cityscapes/gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png"
# name -> images, label maps and what they hold, ids of the images in order
TREES: dict[str, tuple[list[str], list[str], np.ndarray, list[str]]] = {
    "acdc_fog_sem_seg_val": (
        ["acdc/rgb_anon/fog/val/GOPR0476/GOPR0476_frame_000854_rgb_anon.png"],
        ["acdc/gt/fog/val/GOPR0476/GOPR0476_frame_000854_gt_labelTrainIds.png"],
        TRAIN_IDS,
        ["GOPR0476_frame_000854"],
    ),
    "acdc_night_sem_seg_train": (
        ["acdc/rgb_anon/night/train/GP010376/GP010376_frame_000054_rgb_anon.png"],
        ["acdc/gt/night/train/GP010376/GP010376_frame_000054_gt_labelIds.png"],
        LABEL_IDS,
        ["GP010376_frame_000054"],
    ),
    "dark_zurich_sem_seg_val": (
        ["dark_zurich/rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png"],
        ["dark_zurich/gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png"],
        TRAIN_IDS,
        ["GOPR0356_frame_000321"],
    ),
    "foggy_cityscapes_0.02_sem_seg_val": (  # others lie beside it, and most frames have no fog
        [
            "cityscapes/leftImg8bit_foggy/val/munster/munster_000000_000019_leftImg8bit_foggy_"
            f"beta_{beta}.png"
            for beta in ("0.005", "0.01", "0.02")
        ],
        [MUNSTER, MUNSTER.replace("000000", "000001")],
        LABEL_IDS,
        ["munster_000000_000019"],
    ),
    "rain_cityscapes_sem_seg_val": (
        [
            f"cityscapes/leftImg8bit_rain/val/munster/munster_000000_000019_{RAIN.format(*k)}.png"
            for k in (("0.01", "0.005", "0.01", 1), ("0.02", "0.01", "0.005", 11))
        ],
        [MUNSTER, MUNSTER.replace("000000", "000001")],
        LABEL_IDS,
        [
            "munster_000000_000019_alpha_0.01_beta_0.005_dropsize_0.01_pattern_1",
            "munster_000000_000019_alpha_0.02_beta_0.01_dropsize_0.005_pattern_11",
        ],
    ),
    "bdd100k_sem_seg_val": (
        [f"bdd100k/images/10k/val/{k}.jpg" for k in ("7d06fefd-f7be05a6", "7d2f7975-e0c1c5a7")],
        [
            f"bdd100k/labels/sem_seg/masks/val/{k}.png"
            for k in ("7d06fefd-f7be05a6", "7d2f7975-e0c1c5a7")
        ],
        TRAIN_IDS,
        ["7d06fefd-f7be05a6", "7d2f7975-e0c1c5a7"],
    ),
    "wilddash_sem_seg_val": (
        ["wilddash/images/ar0001_100000.jpg", "wilddash/images/za0023_100000.jpg"],
        ["wilddash/labels/ar0001_100000.png", "wilddash/labels/za0023_100000.png"],
        LABEL_IDS,
        ["ar0001_100000", "za0023_100000"],
    ),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All trees in one folder of data sets."""
    for images, labels, truth, _ in TREES.values():
        for path in [*images, *labels]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        for path in images:
            Image.new("RGB", truth.shape[::-1]).save(tmp_path / path)
        for path in labels:
            Image.fromarray(truth).save(tmp_path / path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", TREES)
def test_published_layouts_are_read_with_the_classes_of_cityscapes(name: str, root: Path) -> None:
    dataset = get_dataset(name)
    metadata, records = dataset.metadata, dataset.records()
    assert [record["image_id"] for record in records] == TREES[name][3]
    assert all(Path(record["file_name"]).is_relative_to(root) for record in records)
    assert (metadata.evaluator_type, metadata.ignore_label) == ("sem_seg", 255)
    assert metadata.class_names == CITYSCAPES_CLASSES and not metadata.thing_ids
    assert class_map(CITYSCAPES_CLASSES, metadata.class_names) is None  # none is needed
    for record in records:
        np.testing.assert_array_equal(metadata.read_semantic(record), TRAIN_IDS)


@pytest.mark.parametrize("name", TREES)
def test_ground_truth_as_prediction_scores_100(name: str, root: Path) -> None:
    dataset = get_dataset(name)
    evaluator, records = SemanticEvaluator(dataset.metadata), dataset.records()
    scores = np.eye(19)[np.where(TRAIN_IDS == 255, 3, TRAIN_IDS)].transpose(2, 0, 1)
    evaluator.process(records, [{"sem_seg": scores} for _ in records])
    result = evaluator.evaluate()["sem_seg"]
    assert [result[key] for key in ("mIoU", "pACC", "IoU-road", "IoU-bicycle")] == [100] * 4
    assert np.isnan(result["IoU-wall"])  # which is nowhere


@pytest.mark.parametrize("name", TREES)
def test_what_is_missing_is_named(name: str, root: Path) -> None:
    images, labels, _, _ = TREES[name]
    (root / labels[0]).unlink()
    frame = Path(labels[0]).stem.partition("_label")[0]  # without label ids, train ids are missed
    with pytest.raises(InputError, match=rf"of {name} has no label map .*{frame}"):
        get_dataset(name).records()
    for path in images:
        (root / path).unlink()
    with pytest.raises(InputError, match=rf"of {name} holds no "):
        get_dataset(name).records()
    with pytest.raises(InputError, match=rf"data set {name} needs .*, which is not in "):
        get_dataset(name, root / "nowhere")


def test_a_label_map_without_its_image_is_a_problem_where_sets_are_whole(root: Path) -> None:
    Image.fromarray(TRAIN_IDS).save(
        root / "acdc/gt/fog/val/GOPR0476/GOPR0476_frame_000999_gt_labelTrainIds.png"
    )
    with pytest.raises(InputError, match="no image of acdc_fog_sem_seg_val for the label map"):
        get_dataset("acdc_fog_sem_seg_val").records()


def test_one_name_in_two_folders_is_refused(root: Path) -> None:
    """Results are kept by image id."""
    path = root / TREES["dark_zurich_sem_seg_val"][0][0]
    (path.parents[1] / "GOPR0357").mkdir()
    Image.new("RGB", (4, 2)).save(path.parents[1] / "GOPR0357" / path.name)
    with pytest.raises(InputError, match="holds 2 images GOPR0356_frame_000321"):
        get_dataset("dark_zurich_sem_seg_val").records()


def test_wilddash_goes_on_where_cityscapes_ends() -> None:
    """A few lines of its authors' wd2_unified_label_policy.json."""
    assert len(WILDDASH_TRAIN_IDS) == 81 and WILDDASH_TRAIN_IDS[:34] == CITYSCAPES_TRAIN_IDS
    policy = {34: "truck", 35: "car", 38: "road", 46: "pole", 48: "rider", 52: "sidewalk"}
    policy |= {56: "wall", 58: "motorcycle", 76: "road", 78: "terrain", 80: "sidewalk"}
    for label_id, name in policy.items():
        assert CITYSCAPES_CLASSES[WILDDASH_TRAIN_IDS[label_id]] == name
    assert {WILDDASH_TRAIN_IDS[k] for k in (36, 37, 50, 57, 63, 67, 73)} == {255}


def test_wilddash_labels_are_made_from_its_panoptic_maps(root: Path, script) -> None:
    folder = root / "wilddash"
    ids = np.array([[1, 1, 300, 0], [70000, 70000, 70000, 9]])
    (folder / "panoptic").mkdir()
    write_id_map(folder / "panoptic" / "ar0001_100000.png", ids)
    segments = {1: 7, 300: 35, 70000: 38, 9: 36}  # road, van, road marking, billboard
    content = {
        "images": [{"id": 5, "file_name": "ar0001_100000.jpg", "height": 2, "width": 4}],
        "annotations": [
            {
                "image_id": 5,
                "file_name": "ar0001_100000.png",
                "segments_info": [{"id": k, "category_id": c} for k, c in segments.items()],
            }
        ],
        "categories": [
            {"id": k, "name": f"class {k}", "isthing": 0} for k in sorted({*segments.values(), 80})
        ],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    assert script("datasets", "prepare_wilddash").write_labels(root, "val") == 1
    written = np.asarray(Image.open(folder / "labels" / "ar0001_100000.png"))
    np.testing.assert_array_equal(written, [[7, 7, 35, 0], [38, 38, 38, 36]])
    dataset = get_dataset("wilddash_sem_seg_val")
    labels = dataset.metadata.read_semantic(dataset.records()[0])
    np.testing.assert_array_equal(labels, [[0, 0, 13, 255], [0, 0, 0, 255]])


def test_every_set_is_known_under_its_names() -> None:
    expected = {
        pattern.replace("<split>", split)
        for pattern in CITYSCAPES_SETS
        for split in SETS["segmentation"][pattern]["splits"]
    }
    assert expected <= set(dataset_names(labelled=False))
    weathers = {f"acdc_{kind}_sem_seg_val" for kind in ("fog", "night", "rain", "snow")}
    assert weathers | {f"foggy_cityscapes_{b}_sem_seg_val" for b in (0.005, 0.01, 0.02)} < expected

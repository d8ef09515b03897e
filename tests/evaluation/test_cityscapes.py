"""Cityscapes' evaluation: image by image here, all files at once by cityscapesscripts itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.labels import name2label
from PIL import Image

from lqn_seg.data.catalog import get_dataset
from lqn_seg.errors import InputError
from lqn_seg.evaluation.cityscapes import CityscapesEvaluator, score_files, train_to_label_ids

ROAD, PERSON, RIDER, CAR = (name2label[name].trainId for name in ("road", "person", "rider", "car"))
CLASSES = 19


def frame(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Label ids and instance ids (40, 60): road, building, people, cars, unlabeled pixels."""
    random = np.random.default_rng(seed)
    labels = np.full((40, 60), name2label["building"].id)
    labels[20:] = name2label["road"].id
    instances = labels.astype(np.int32)
    for k, name in enumerate(["person", "car", "rider", "car", "caravan"]):
        y, x = random.integers(0, 30), random.integers(0, 45)
        labels[y : y + 10, x : x + 15] = name2label[name].id
        instances[y : y + 10, x : x + 15] = 1000 * name2label[name].id + k
    labels[:3], instances[:3] = 0, 0
    return labels, instances


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in range(3):
        images, truth = (
            tmp_path / "cityscapes" / kind / "val" / "bonn" for kind in ("leftImg8bit", "gtFine")
        )
        images.mkdir(parents=True, exist_ok=True)
        truth.mkdir(parents=True, exist_ok=True)
        labels, instances = frame(seed)
        name = f"bonn_{seed:06}_000019"
        Image.new("RGB", (60, 40)).save(images / f"{name}_leftImg8bit.png")
        Image.fromarray(labels.astype(np.uint8)).save(truth / f"{name}_gtFine_labelIds.png")
        Image.fromarray(instances.astype(np.uint16)).save(truth / f"{name}_gtFine_instanceIds.png")
    return tmp_path


def predictions(dataset) -> list[np.ndarray]:
    """Train ids (40, 60), partly wrong; people and riders are mixed up."""
    actual = []
    for k, record in enumerate(dataset.records()):
        labels = np.roll(dataset.metadata.read_semantic(record), (k + 1, 2), (0, 1))
        labels = np.where(labels == 255, ROAD, labels)
        labels[:, 40:] = np.where(labels[:, 40:] == PERSON, RIDER, labels[:, 40:])
        actual.append(labels)
    return actual


def one_hot(labels: np.ndarray) -> dict[str, torch.Tensor]:
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES)
    return {"sem_seg": scores.permute(2, 0, 1).float()}


def test_image_by_image_is_what_the_script_gives_for_all_files(root: Path, tmp_path: Path) -> None:
    dataset = get_dataset("cityscapes_fine_sem_seg_val", root=root)
    evaluator, pairs = CityscapesEvaluator(dataset.metadata), []
    for record, labels in zip(dataset.records(), predictions(dataset)):
        statistics = evaluator.statistics(record, one_hot(labels))
        evaluator.add(record["image_id"], json.loads(json.dumps(statistics)))
        path = tmp_path / f"{record['image_id']}.png"
        Image.fromarray(train_to_label_ids()[labels]).save(path)
        pairs.append((str(path), record["sem_seg_file_name"]))
    result, expected = evaluator.evaluate()["sem_seg"], score_files(pairs)
    assert expected.keys() == {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert 20 < result["iIoU"] < 90 and result["iIoU"] != pytest.approx(result["IoU"], abs=1)
    # Every predicted class is in the truth, so their mean is ours.
    assert result["mIoU"] == pytest.approx(result["IoU"], abs=1e-9)


def test_iou_by_hand(root: Path) -> None:
    dataset = get_dataset("cityscapes_fine_sem_seg_val", root=root)
    record = dataset.records()[0]
    truth = dataset.metadata.read_semantic(record)
    everything_is_road = np.full_like(truth, ROAD)
    evaluator = CityscapesEvaluator(dataset.metadata)
    evaluator.process([record], [one_hot(everything_is_road)])
    result = evaluator.evaluate()["sem_seg"]
    counted = truth != 255
    classes = len(np.unique(truth[counted]))
    expected = 100 * (truth == ROAD).sum() / counted.sum() / classes
    assert result["IoU"] == pytest.approx(expected) and result["mIoU"] == pytest.approx(expected)
    assert result["iIoU"] == 0


def test_a_class_that_is_only_predicted_counts_in_iou_and_not_in_miou(root: Path) -> None:
    dataset = get_dataset("cityscapes_fine_sem_seg_val", root=root)
    record = dataset.records()[0]
    truth = dataset.metadata.read_semantic(record)
    labels = np.where(truth == 255, ROAD, truth)
    labels[30:32, :5] = name2label["sky"].trainId
    evaluator = CityscapesEvaluator(dataset.metadata)
    evaluator.process([record], [one_hot(labels)])
    result = evaluator.evaluate()["sem_seg"]
    classes = len(np.unique(truth)) - 1
    assert result["IoU"] == pytest.approx(result["mIoU"] * classes / (classes + 1))


def test_without_instance_files_iiou_is_undefined(root: Path) -> None:
    next((root / "cityscapes" / "gtFine").rglob("*000001*_instanceIds.png")).unlink()
    dataset = get_dataset("cityscapes_fine_sem_seg_val", root=root)
    evaluator = CityscapesEvaluator(dataset.metadata)
    for record, labels in zip(dataset.records(), predictions(dataset)):
        evaluator.process([record], [one_hot(labels)])
    result = evaluator.evaluate()["sem_seg"]
    assert math.isnan(result["iIoU"]) and math.isnan(result["iIoU_sup"]) and result["IoU"] > 0


def test_other_ground_truth_is_refused(root: Path) -> None:
    dataset = get_dataset("cityscapes_fine_sem_seg_val", root=root)
    (record, *_), (labels, *_) = dataset.records(), predictions(dataset)
    evaluator = CityscapesEvaluator(dataset.metadata)
    path = record["sem_seg_file_name"]
    other = Path(path.replace("labelIds", "labelTrainIds"))
    other.write_bytes(Path(path).read_bytes())
    with pytest.raises(InputError, match=r"needs a file of labelIds.*labelTrainIds\.png"):
        evaluator.statistics({**record, "sem_seg_file_name": str(other)}, one_hot(labels))
    with pytest.raises(InputError, match=r"40 x 50 .* 40 x 60"):
        evaluator.statistics(record, one_hot(labels[:, :50]))

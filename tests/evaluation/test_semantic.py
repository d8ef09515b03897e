"""mIoU and relatives against brute force, class by class."""

from __future__ import annotations

import json
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lqn_seg.errors import InputError
from lqn_seg.evaluation.classification import expected_calibration_error
from lqn_seg.evaluation.semantic import (
    ConfidenceEvaluator,
    SemanticEvaluator,
    TrimapEvaluator,
    confidence_of,
    confusion_matrix,
    near_boundary,
)

SKY, CAT, ROAD, DOG, UNSEEN = range(5)
NAMES = ("sky", "cat", "road", "dog", "unseen")


def one_hot(labels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 5).permute(2, 0, 1).float()


def segments_of(labels: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """A panoptic image whose semantic map is `labels` (-1 = void)."""
    return labels + 1, [(c + 1, c, 0) for c in range(5) if (labels == c).any()]


def test_against_brute_force(make_dataset: Any) -> None:
    random = np.random.default_rng(0)
    truths = random.integers(-1, 4, (3, 9, 11))  # UNSEEN never occurs in the truth
    predictions = random.integers(0, 5, (3, 9, 11))
    dataset = make_dataset([segments_of(truth) for truth in truths])
    evaluator = SemanticEvaluator(dataset.metadata)
    evaluator.process(dataset.records(), [{"sem_seg": one_hot(p)} for p in predictions])
    result = evaluator.evaluate()["sem_seg"]

    counted = truths >= 0
    truth, predicted = truths[counted], predictions[counted]
    iou, accuracy, weight = [], [], []
    for c in range(4):
        hit = ((truth == c) & (predicted == c)).sum()
        iou.append(hit / ((truth == c) | (predicted == c)).sum())
        accuracy.append(hit / (truth == c).sum())
        weight.append((truth == c).mean())
        assert result[f"IoU-{NAMES[c]}"] == pytest.approx(100 * iou[-1])
    assert math.isnan(result["IoU-unseen"])
    assert result["mIoU"] == pytest.approx(100 * np.mean(iou))
    assert result["fwIoU"] == pytest.approx(100 * np.dot(iou, weight))
    assert result["mACC"] == pytest.approx(100 * np.mean(accuracy))
    assert result["pACC"] == pytest.approx(100 * (truth == predicted).mean())


def test_one_matrix_for_the_data_set_not_a_mean_over_images(make_dataset: Any) -> None:
    truths = [np.full((1, 10), SKY), np.full((1, 90), SKY)]
    predictions = [np.full((1, 10), SKY), np.full((1, 90), CAT)]
    dataset = make_dataset([segments_of(truth) for truth in truths])
    evaluator = SemanticEvaluator(dataset.metadata)
    evaluator.process(dataset.records(), [{"sem_seg": one_hot(p)} for p in predictions])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(10)


def test_ground_truth_as_prediction_scores_100_and_resumes_from_json(make_dataset: Any) -> None:
    labels = np.random.default_rng(1).integers(-1, 4, (6, 7))
    dataset = make_dataset([segments_of(labels)])
    evaluator = SemanticEvaluator(dataset.metadata)
    output = {"sem_seg": one_hot(np.maximum(labels, 0))}  # void is predicted as something
    statistics = evaluator.statistics(dataset.records()[0], output)
    for _ in range(2):
        evaluator.add(0, json.loads(json.dumps(statistics)))
    result = evaluator.evaluate()["sem_seg"]
    assert [result[k] for k in ("mIoU", "fwIoU", "mACC", "pACC")] == [100] * 4
    totals = evaluator.stack([statistics, statistics])
    assert totals[..., 1].sum() == 2 * (labels >= 0).sum()
    np.testing.assert_array_equal(evaluator.metric(totals), [100, 100])


def test_a_crowd_is_of_its_category(make_dataset: Any) -> None:
    dataset = make_dataset([([[1, 1, 2, 2]], [(1, SKY, 0), (2, CAT, 1)])])
    evaluator = SemanticEvaluator(dataset.metadata)
    output = {"sem_seg": one_hot(np.array([[SKY, DOG, DOG, CAT]]))}
    assert evaluator.statistics(dataset.records()[0], output) == {
        "confusion": [[SKY, SKY, 1], [SKY, DOG, 1], [CAT, CAT, 1], [CAT, DOG, 1]]
    }


def test_records_complete_inputs_that_lack_the_ground_truth(make_dataset: Any) -> None:
    labels = np.array([[0, 1], [2, 3]])
    dataset = make_dataset([segments_of(labels)])
    evaluator = SemanticEvaluator(dataset.metadata, dataset.records())
    evaluator.process([{"image_id": 0}], [{"sem_seg": one_hot(labels)}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    with pytest.raises(InputError, match="image 0 has no field pan_seg_file_name"):
        SemanticEvaluator(dataset.metadata).process(
            [{"image_id": 0}], [{"sem_seg": one_hot(labels)}]
        )


@pytest.mark.parametrize(
    ("shape", "message"), [((4, 2, 2), "5 classes"), ((5, 2, 3), "2 x 3 .* 2 x 2")]
)
def test_wrong_shape_is_named(make_dataset: Any, shape: Any, message: str) -> None:
    dataset = make_dataset([segments_of(np.array([[0, 1], [2, 3]]))])
    with pytest.raises(InputError, match=message):
        SemanticEvaluator(dataset.metadata).process(
            dataset.records(), [{"sem_seg": torch.zeros(shape)}]
        )


def test_confusion_rows_are_truth() -> None:
    matrix = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 2)
    np.testing.assert_array_equal(matrix, [[1, 1], [0, 1]])


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 14))
@settings(max_examples=40, deadline=None)
def test_pixels_near_a_boundary_by_chessboard_distances(seed, height, width):
    """A pixel counts where the nearest one of another class is at most 3 px away (scipy)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (-(-height // 5), -(-width // 5)))  # 3 does not count
    labels = coarse.repeat(5, 0).repeat(5, 1)[:height, :width]
    wanted = np.zeros(labels.shape, bool)
    for label in range(3):
        others = (labels != label) & (labels != 3)
        if others.any():
            distance = ndimage.distance_transform_cdt(~others, "chessboard")
            wanted |= (labels == label) & (distance <= 3)
    known = labels != 3
    assert np.array_equal(near_boundary(labels, 3)[known], wanted[known])


def test_the_trimap_scores_those_pixels_alone(make_dataset: Any) -> None:
    """A prediction that is right near the boundary, and wrong elsewhere."""
    labels = np.full((4, 30), SKY)
    labels[:, 15:] = CAT
    predicted = labels.copy()
    predicted[:, :10] = CAT
    dataset = make_dataset([segments_of(labels)])
    results = {}
    for make in (SemanticEvaluator, TrimapEvaluator):
        evaluator = make(dataset.metadata)
        evaluator.process(dataset.records(), [{"sem_seg": one_hot(predicted)}])
        results |= evaluator.evaluate()
    assert results["trimap"]["mIoU"] == 100 > results["sem_seg"]["mIoU"]


def test_calibration_error_is_that_of_a_classification_of_pixels(make_dataset: Any) -> None:
    """Every pixel with a true class is an image of its own; the measure there has its own test."""
    rng = np.random.default_rng(3)
    labels = rng.integers(-1, 4, (2, 8, 9))
    scores = rng.random((2, 5, 8, 9)).astype(np.float32)
    dataset = make_dataset([segments_of(each) for each in labels])
    evaluator = ConfidenceEvaluator(dataset.metadata)
    outputs = [{"sem_seg": torch.from_numpy(each)} for each in scores]
    evaluator.process(dataset.records(), outputs)
    pixels = [
        {
            "label": label,
            "predicted": int(column.argmax()),
            "confidence": float(column.max() / column.sum()),
        }
        for image, output in zip(labels, scores)
        for label, column in zip(image.ravel().tolist(), output.reshape(5, -1).T)
        if label >= 0
    ]
    wanted = expected_calibration_error(pixels)
    assert evaluator.evaluate()["confidence"]["ECE"] == pytest.approx(wanted, abs=1e-3)
    assert wanted > 5


def test_evaluators_beside_each_other_decode_an_image_once(
    make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.full((4, 30), SKY)
    labels[:, 15:] = CAT
    dataset = make_dataset([segments_of(labels), segments_of(labels.T.reshape(4, 30))])
    whole = SemanticEvaluator(dataset.metadata)
    more = [make(dataset.metadata, beside=whole) for make in (TrimapEvaluator, ConfidenceEvaluator)]
    read, calls = SemanticEvaluator._read, []
    monkeypatch.setattr(
        SemanticEvaluator, "_read", lambda self, record: calls.append(self) or read(self, record)
    )
    outputs = [{"sem_seg": one_hot(each)} for each in (labels, 1 - labels)]
    for record in dataset.records():
        truths = [evaluator.prepare(record) for evaluator in (whole, *more)]
        for output in outputs:
            lines = [e.score(truth, output) for e, truth in zip((whole, *more), truths)]
            for make, line in zip((SemanticEvaluator, TrimapEvaluator, ConfidenceEvaluator), lines):
                assert line == make(dataset.metadata).statistics(dict(record), output)
    assert calls.count(whole) == 2 and not set(calls) & set(more)


def test_nothing_of_an_image_is_taken_for_the_next(make_dataset: Any) -> None:
    """Where a caller uses its dictionary, or its tensor, again; and scores are not kept."""
    labels = np.full((4, 30), SKY)
    labels[:, 15:] = CAT
    dataset = make_dataset([segments_of(labels)])
    evaluator = SemanticEvaluator(dataset.metadata)
    (record,) = dataset.records()
    right, wrong = one_hot(labels), one_hot(SKY + CAT - labels)
    truth, output = evaluator.prepare(record), {"sem_seg": right}
    other = {**output, "sem_seg": wrong}
    wanted = [evaluator.score(truth, each) for each in (output, other)]
    assert wanted[0] != wanted[1]
    output["sem_seg"] = wrong
    assert evaluator.score(truth, output) == wanted[1]
    tensor = torch.as_tensor(right).clone()
    assert evaluator.statistics(record, {"sem_seg": tensor}) == wanted[0]
    tensor[:] = torch.as_tensor(wrong)
    assert evaluator.statistics(record, {"sem_seg": tensor}) == wanted[1]
    with pytest.raises(InputError, match="but its ground truth is"):
        evaluator.score(truth._replace(labels=labels[:, :9]), {"sem_seg": tensor})
    kept = weakref.ref(tensor)
    del tensor
    assert kept() is None


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.4])
def test_confidence_is_the_largest_probability_at_a_temperature(temperature):
    logits = 3 * torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
    labels, confidence = confidence_of(4 * logits.softmax(0), temperature)  # of any total
    best = (logits / temperature).softmax(0).max(0)
    assert torch.equal(labels, best.indices)
    torch.testing.assert_close(confidence, best.values)
    assert confidence_of(torch.zeros(5, 1, 1), temperature)[1] == 0
    faint = torch.tensor([3e-14, 1e-14])[:, None, None]
    torch.testing.assert_close(*(confidence_of(k * faint, temperature)[1] for k in (1, 1e13)))
    half = confidence_of(faint.bfloat16(), temperature)[1]  # of a model under autocast
    assert half.dtype == torch.float32 and half > 0.5

"""PQ against numbers that panopticapi gave, against counts by hand, and on real annotations."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.errors import InputError
from lqn_seg.evaluation.panoptic import (
    PanopticEvaluator,
    match_segments,
    panoptic_quality,
    prepare_segments,
)

SKY, CAT, ROAD, DOG, UNSEEN = range(5)


def random_image(seed: int) -> tuple[Any, Any, Any, Any]:
    """Truth and a shifted, relabelled prediction; with void and, in the truth, a crowd."""
    random = np.random.RandomState(seed)  # its stream is frozen for ever
    truth = np.zeros((40, 60), int)
    truth[:20], truth[20:] = 1, 300
    true_segments = [(1, SKY, 0), (300, ROAD, 0)]
    for k, category in enumerate([CAT, CAT, DOG, DOG, DOG]):
        y, x = random.randint(0, 30), random.randint(0, 45)
        truth[y : y + 12, x : x + 14] = 70000 + k
        true_segments.append((70000 + k, category, int(k == 4)))
    truth[random.randint(0, 36) :, random.randint(0, 50) :] = 0
    true_segments = [s for s in true_segments if (truth == s[0]).any()]
    predicted = np.roll(truth, (random.randint(-4, 5), random.randint(-4, 5)), (0, 1))
    relabel = {i: k + 1 for k, i in enumerate(np.unique(predicted))}  # void becomes a segment
    predicted = np.vectorize(relabel.get)(predicted)
    by_id = {i: c for i, c, _ in true_segments}
    pred_segments = [
        {"id": k, "category_id": DOG if random.rand() < 0.2 else by_id.get(i, CAT)}
        for i, k in relabel.items()
    ]
    return truth, true_segments, predicted, pred_segments


# From panopticapi (github.com/cocodataset/panopticapi, evaluation.pq_compute) on the eight images
# of random_image, seeds 0 .. 7.
PANOPTICAPI = {
    "PQ": 29.749750663,
    "SQ": 71.126867364,
    "RQ": 41.675282603,
    "PQ_th": 21.210012805,
    "SQ_th": 69.608573639,
    "RQ_th": 30.465949821,
    "PQ_st": 38.289488522,
    "SQ_st": 72.645161088,
    "RQ_st": 52.884615385,
    "PQ-sky": 54.047662549,
    "PQ-cat": 15.460216237,
    "PQ-road": 22.531314496,
    "PQ-dog": 26.959809372,
}


def test_agrees_with_panopticapi(make_dataset: Any) -> None:
    images = [random_image(seed) for seed in range(8)]
    dataset = make_dataset([(truth, segments) for truth, segments, _, _ in images])
    evaluator = PanopticEvaluator(dataset.metadata)
    outputs = [{"panoptic_seg": (predicted, segments)} for _, _, predicted, segments in images]
    evaluator.process(dataset.records(), outputs)
    result = evaluator.evaluate()["panoptic_seg"]
    assert {key: result[key] for key in PANOPTICAPI} == pytest.approx(PANOPTICAPI, abs=1e-6)
    assert math.isnan(result["PQ-unseen"])


def segment(i: int, category: int, iscrowd: int = 0) -> dict[str, int]:
    return {"id": i, "category_id": category, "iscrowd": iscrowd}


def row(*runs: tuple[int, int]) -> np.ndarray:
    """One row of pixels from (id, length) pairs."""
    return np.concatenate([np.full(length, i) for i, length in runs])[None]


def count(truth, true_segments, predicted, segments) -> dict:
    return match_segments(prepare_segments(truth, true_segments), predicted, segments)


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (row((1, 10)), row((5, 5), (0, 5)), (0, 0, 1, 1)),  # one half is no match
        (row((1, 10)), row((5, 6), (0, 4)), (0.6, 1, 0, 0)),
        (row((1, 8), (0, 12)), row((5, 20)), (1.0, 1, 0, 0)),  # void is not in the union
    ],
)
def test_a_match_needs_more_than_half_of_the_union(truth, predicted, expected) -> None:
    assert count(truth, [segment(1, CAT)], predicted, [segment(5, CAT)]) == {CAT: expected}


@pytest.mark.parametrize(("void", "false_positives"), [(5, 1), (6, 0)])
def test_unmatched_prediction_is_dropped_when_more_than_half_void(
    void: int, false_positives: int
) -> None:
    truth, predicted = row((1, 30), (0, void)), row((0, 20 + void), (5, 10))
    counts = count(truth, [segment(1, SKY)], predicted, [segment(5, CAT)])
    assert counts.get(CAT, (0, 0, 0, 0)) == (0, 0, false_positives, 0)
    assert counts[SKY] == (0, 0, 0, 1)


@pytest.mark.parametrize(("category", "false_positives"), [(CAT, 0), (DOG, 1)])
def test_crowd_excuses_its_own_category_and_is_never_missed(
    category: int, false_positives: int
) -> None:
    truth, predicted = row((1, 10), (2, 10)), row((0, 10), (5, 6), (0, 4))
    true_segments = [segment(1, SKY), segment(2, CAT, iscrowd=1)]
    counts = count(truth, true_segments, predicted, [segment(5, category)])
    assert counts.pop(SKY) == (0, 0, 0, 1)
    assert counts == ({category: (0, 0, 1, 0)} if false_positives else {})


def test_right_place_wrong_category_is_two_errors() -> None:
    truth = row((1, 10))
    counts = count(truth, [segment(1, CAT)], truth, [segment(1, DOG)])
    assert counts == {CAT: (0, 0, 0, 1), DOG: (0, 0, 1, 0)}


def test_quality_by_hand() -> None:
    # one class: 2 matches of IoU 0.6 and 0.8, 1 false positive, 3 false negatives; one empty class
    totals = np.array([[1.4, 2, 1, 3], [0, 0, 0, 0], [0, 0, 0, 2]])
    quality = panoptic_quality(totals, np.array([True, True, False]))
    assert quality["PQ_th"] == pytest.approx(100 * 1.4 / 4)
    assert quality["SQ_th"] == pytest.approx(70)
    assert quality["RQ_th"] == pytest.approx(50)
    assert quality["PQ_st"] == quality["SQ_st"] == 0
    assert quality["PQ"] == pytest.approx(100 * 1.4 / 4 / 2)


def test_empty_group_is_nan_and_batches_of_totals_work() -> None:
    totals = np.zeros((2, 2, 4))
    totals[1, 0] = [1, 1, 0, 0]
    quality = panoptic_quality(totals, np.array([True, False]))
    np.testing.assert_array_equal(quality["PQ"], [np.nan, 100])
    np.testing.assert_array_equal(quality["PQ_st"], [np.nan, np.nan])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({}, "no 'panoptic_seg'"),
        ({"panoptic_seg": (row((1, 3)), [segment(1, CAT)])}, "1 x 3 .* 1 x 4"),
        ({"panoptic_seg": (row((1, 4)), [segment(1, 5)])}, "category_id 5.* 5 classes"),
        ({"panoptic_seg": (row((1, 4)), [])}, "image 0.*segment 1 "),
        ({"panoptic_seg": (row((0, 4)), [segment(2, CAT)])}, "image 0.*segment 2 "),
    ],
)
def test_bad_predictions_are_named(make_dataset: Any, output: Any, message: str) -> None:
    dataset = make_dataset([(row((9, 4)), [(9, CAT, 0)])])
    with pytest.raises(InputError, match=message):
        PanopticEvaluator(dataset.metadata).process(dataset.records(), [output])


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
def test_real_ground_truth_as_prediction_scores_100() -> None:
    root = Path(os.environ["LQN_SEG_REAL_DATA"]) / "coco"
    dataset = load_coco_panoptic(
        "real",
        root / "train2017",
        root / "panoptic_train2017",
        root / "annotations" / "panoptic_train2017.json",
    )
    evaluator = PanopticEvaluator(dataset.metadata)
    for record in dataset.records():
        truth = (dataset.metadata.read_panoptic(record), record["segments_info"])
        evaluator.process([record], [{"panoptic_seg": truth}])
    result = evaluator.evaluate()["panoptic_seg"]
    assert [result[k] for k in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ")] == [100] * 5

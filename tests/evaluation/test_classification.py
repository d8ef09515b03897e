"""Accuracies and calibration error by hand, and what must hold for any figures."""

from __future__ import annotations

import numpy as np
import pytest

from lqn_seg.data.metadata import Category, Metadata
from lqn_seg.errors import InputError
from lqn_seg.evaluation.classification import (
    ClassificationEvaluator,
    expected_calibration_error,
)

NAMES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture
def evaluator() -> ClassificationEvaluator:
    categories = tuple(Category(i, name, False) for i, name in enumerate(NAMES))
    return ClassificationEvaluator(Metadata("letters", categories, "classification"))


def score(evaluator, label: int, p: list[float]) -> dict:
    return evaluator.statistics({"image_id": 0, "label": label}, {"probabilities": np.array(p)})


def test_four_images_by_hand(evaluator):
    tail = [0.0] * 4
    lines = [
        score(evaluator, 0, [0.7, 0.2, 0.1, *tail]),  # right
        score(evaluator, 0, [0.2, 0.5, 0.3, *tail]),  # wrong, third
        score(evaluator, 1, [0.1, 0.6, 0.3, *tail]),  # right
        score(evaluator, 6, [0.3, 0.2, 0.1, 0.1, 0.1, 0.2, 0.0]),  # last of seven
    ]
    result = evaluator.summarize(lines)
    assert result["acc1"] == 50 and result["acc5"] == 75
    assert (result["ACC-a"], result["ACC-b"], result["ACC-g"]) == (50, 100, 0)
    assert np.isnan(result["ACC-c"]) and result["mACC"] == 50
    # One image a bin: the distances between accuracy and probability, averaged.
    assert result["ECE"] == pytest.approx(100 * (0.3 + 0.5 + 0.4 + 0.3) / 4)
    assert lines[3]["above"] == 6


def test_equal_scores_rank_as_argmax_does(evaluator):
    p = [1 / 7] * 7
    assert [score(evaluator, label, p)["above"] for label in range(7)] == list(range(7))
    assert score(evaluator, 0, p)["predicted"] == 0


def test_a_calibrated_classifier_has_no_error():
    random = np.random.default_rng(0)
    confidence = random.uniform(0, 1, 200_000)
    right = random.uniform(0, 1, 200_000) < confidence
    lines = [
        {"confidence": float(c), "predicted": 0, "label": int(not r)}
        for c, r in zip(confidence, right)
    ]
    assert expected_calibration_error(lines) < 0.6
    sure = [{**line, "confidence": 1.0} for line in lines]
    assert expected_calibration_error(sure) == pytest.approx(50, abs=0.5)


def test_totals_give_the_same_accuracy(evaluator):
    random = np.random.default_rng(1)
    lines = [
        score(evaluator, int(random.integers(7)), random.dirichlet(np.ones(7)).tolist())
        for _ in range(50)
    ]
    stacked = evaluator.stack(lines)
    accuracy = evaluator.summarize(lines)["acc1"]
    assert evaluator.metric(stacked.sum(0)) == pytest.approx(accuracy)
    twice = evaluator.summarize([*lines, *lines])
    assert twice["acc1"] == pytest.approx(accuracy) and np.isfinite(twice["ECE"])


def test_bad_input_is_named(evaluator):
    with pytest.raises(InputError, match="label 7"):
        score(evaluator, 7, [1 / 7] * 7)
    with pytest.raises(InputError, match=r"\(3,\) probabilities"):
        score(evaluator, 0, [1 / 3] * 3)
    with pytest.raises(InputError, match="no 'probabilities'"):
        evaluator.statistics({"image_id": 5, "label": 0}, {})


def test_classes_of_one_name_have_an_entry_each():
    categories = [Category(i, name, False) for i, name in enumerate(("missile", "cat", "missile"))]
    evaluator = ClassificationEvaluator(Metadata("x", tuple(categories), "classification"))
    lines = [{"label": label, "predicted": 0, "above": 0, "confidence": 1.0} for label in (0, 2, 2)]
    result = evaluator.summarize(lines)
    by_class = {key: value for key, value in result.items() if key.startswith("ACC-")}
    assert list(by_class) == ["ACC-missile (0)", "ACC-cat", "ACC-missile (2)"]
    assert by_class["ACC-missile (0)"] == 100 and by_class["ACC-missile (2)"] == 0

"""Bootstrap intervals: identities, a known standard error, coverage, and both routes agreeing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lqn_seg.errors import InputError
from lqn_seg.evaluation.bootstrap import (
    FEWEST_IMAGES,
    paired_bootstrap,
    paired_interval,
    resampled_totals,
)
from lqn_seg.evaluation.panoptic import panoptic_quality


def paired_bootstrap_totals(metric, stats_a, stats_b, samples=1000, confidence=0.95, **how):
    """As the reports make it of sums over the images."""
    both = (metric(resampled_totals(stats, samples, **how)) for stats in (stats_a, stats_b))
    return paired_interval(*both, confidence)


def mean(totals: np.ndarray) -> np.ndarray:
    return totals[..., 0] / totals[..., 1]


def with_count(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], -1)


def pq(totals: np.ndarray) -> np.ndarray:
    return panoptic_quality(totals, np.arange(totals.shape[-2]) < 3)["PQ"]


def panoptic_stats(seed: int, images: int = 60) -> np.ndarray:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 3, (images, 7, 3)).astype(float)
    iou = counts[..., :1] * random.uniform(0.5, 1, (images, 7, 1))
    return np.concatenate([iou, counts], -1)


def test_a_method_against_itself_is_exactly_zero() -> None:
    stats = panoptic_stats(0)
    assert paired_bootstrap_totals(pq, stats, stats.copy(), samples=200) == (0, 0, 0)
    values = list(np.random.default_rng(0).normal(size=20))
    assert paired_bootstrap(lambda x: float(np.mean(x)), values, list(values), 50) == (0, 0, 0)


def test_both_routes_give_the_same_interval() -> None:
    a, b = panoptic_stats(1, 20), panoptic_stats(2, 20)
    fast = paired_bootstrap_totals(pq, a, b, samples=60, seed=3, block=2)
    slow = paired_bootstrap(
        lambda images: float(pq(np.sum(images, axis=0))), list(a), list(b), 60, seed=3, block=2
    )
    assert fast == pytest.approx(slow)
    assert fast.low < fast.difference < fast.high


def test_width_is_that_of_the_standard_error() -> None:
    random = np.random.default_rng(4)
    a, b = random.normal(1, 1, 400), random.normal(0, 1, 400)
    result = paired_bootstrap_totals(mean, with_count(a), with_count(b), samples=4000)
    error = (a - b).std() / math.sqrt(400)
    assert result.difference == pytest.approx((a - b).mean())
    assert result.low == pytest.approx(result.difference - 1.96 * error, abs=0.15 * error)
    assert result.high == pytest.approx(result.difference + 1.96 * error, abs=0.15 * error)


def test_pairing_removes_what_images_have_in_common() -> None:
    random = np.random.default_rng(5)
    hardness, gain = random.normal(0, 10, 100), random.normal(0.5, 0.1, 100)
    result = paired_bootstrap_totals(mean, with_count(hardness + gain), with_count(hardness))
    assert result.low > 0.45
    assert result.high < 0.55


def test_blocks_widen_the_interval_of_correlated_frames() -> None:
    scenes = np.random.default_rng(7).normal(size=40)
    a = with_count(np.repeat(scenes, 10))  # ten equal frames per scene
    b = with_count(np.zeros(400))
    single = paired_bootstrap_totals(mean, a, b)
    runs = paired_bootstrap_totals(mean, a, b, block=20)
    assert runs.high - runs.low > 2 * (single.high - single.low)


def test_seed_decides_and_undefined_samples_are_left_out() -> None:
    a, b = panoptic_stats(8), panoptic_stats(9)
    first, again, other = (paired_bootstrap_totals(pq, a, b, 50, seed=s) for s in (1, 1, 2))
    assert first == again != other
    rare = np.zeros((4, 2, 4))
    rare[0, 0] = [1, 1, 0, 0]  # a sample without image 0 has no PQ
    result = paired_bootstrap_totals(pq, rare, rare)
    assert result == (0, 0, 0)
    nothing = paired_bootstrap_totals(pq, rare[1:], rare[1:])
    assert all(math.isnan(value) for value in nothing)


@pytest.mark.parametrize(
    "arguments", [{"samples": 0}, {"confidence": 1.0}, {"block": 0}, {"block": 61}]
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(InputError, match="bootstrap needs"):
        paired_bootstrap(len, range(60), range(60), **arguments)


@pytest.mark.parametrize("images, others", [(60, 59), (0, 0)])
def test_unequal_lists(images: int, others: int) -> None:
    with pytest.raises(InputError, match=f"same images twice, got {images} and {others}"):
        paired_bootstrap(len, range(images), range(others))


@pytest.mark.parametrize("images, least, most", [(FEWEST_IMAGES, 0.86, 0.95), (3, 0.6, 0.82)])
def test_intervals_of_too_few_images_are_too_narrow(images, least, most):
    """How often the interval of a normal quantity's mean holds its true mean, nominally 0.95."""
    random, held = np.random.default_rng(0), []
    for _ in range(400):
        stats = random.normal(size=(images, 1))
        means = resampled_totals(stats, samples=100)[:, 0] / images
        actual = paired_interval(means, np.zeros_like(means))
        held.append(actual.low <= 0 <= actual.high)
    assert least < np.mean(held) < most

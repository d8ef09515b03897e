"""Paired bootstrap intervals: both methods get the same resampled images, so what makes an image
hard cancels (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13:
percentile interval)."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError

# An interval of fewer images is not shown. A percentile interval of n images is too narrow: of the
# mean of a normal quantity, 95% intervals hold the truth P(|t| < 1.96 sqrt((n - 1) / n)) of the
# time, t with n - 1 degrees of freedom: 90% for 10 images, 84% for 5, 60% for 2.
FEWEST_IMAGES = 10


class PairedDifference(NamedTuple):
    """metric(A) - metric(B) on all images, and the ends of its confidence interval."""

    difference: float
    low: float
    high: float


def paired_bootstrap(
    metric: Callable[[Sequence[Any]], float],
    stats_a: Sequence[Any],
    stats_b: Sequence[Any],
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    block: int = 1,
) -> PairedDifference:
    """Bootstrap metric(A) - metric(B), for any metric of a list of per-image statistics.

    Where the metric is a function of sums over images, `paired_interval` of both methods'
    `resampled_totals` is the same and much faster.

    Args:
        metric: list of statistics -> number; must count an image listed twice twice.
        stats_a, stats_b: one entry per image, same images in the same order.
        samples: number of resampled data sets.
        confidence: of the interval, 0 .. 1.
        block: images are resampled in runs of this many neighbours (video frames).

    Raises:
        InputError: no images, lists of different lengths, or an argument outside its range.
    """
    images = _check(len(stats_a), len(stats_b), samples, confidence, block)
    sets = [np.arange(images), *_resamples(images, samples, seed, block)]
    values_a, values_b = (
        np.array([metric([stats[i] for i in indices]) for indices in sets])
        for stats in (stats_a, stats_b)
    )
    return paired_interval(values_a, values_b, confidence)


def resampled_totals(
    stats: NDArray[np.float64], samples: int = 1000, seed: int = 0, block: int = 1
) -> NDArray[np.float64]:
    """Sums of (images, ...) over the data set and over each sample of `paired_bootstrap`:
    (1 + samples, ...). Equal samples, seed and block pair two methods' totals."""
    images = _check(len(stats), len(stats), samples, 0.5, block)
    # Gather and add in a fixed order, not counts @ stats: equal statistics then give equal
    # totals to the last bit, and the difference of a method to itself is exactly 0.
    resampled = (stats[indices].sum(axis=0) for indices in _resamples(images, samples, seed, block))
    return np.stack([stats.sum(axis=0), *resampled])


def paired_interval(
    values_a: NDArray[np.float64], values_b: NDArray[np.float64], confidence: float = 0.95
) -> PairedDifference:
    """The percentile interval of A - B, from a metric (1 + samples,) of both methods'
    `resampled_totals`; samples in which one is undefined are left out."""
    difference, *resampled = (values_a - values_b).tolist()
    defined = [value for value in resampled if not math.isnan(value)]
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile(defined, ends).tolist() if defined else (math.nan, math.nan)
    return PairedDifference(difference, low, high)


def _resamples(images: int, samples: int, seed: int, block: int) -> Iterator[NDArray[np.int64]]:
    """Indices of the images of each sample: overlapping blocks, as many as fill the set."""
    random = np.random.default_rng(seed)
    for _ in range(samples):
        starts = random.integers(0, images - block + 1, size=-(-images // block))
        yield (starts[:, None] + np.arange(block)).reshape(-1)[:images]


def _check(images: int, others: int, samples: int, confidence: float, block: int) -> int:
    if images != others or images == 0:
        raise InputError(
            f"a paired bootstrap needs the same images twice, got {images} and {others}"
        )
    if samples < 1 or not 0 < confidence < 1 or not 1 <= block <= images:
        raise InputError(
            "a bootstrap needs samples >= 1, 0 < confidence < 1 and 1 <= block <= number of images "
            f"({images}), got samples={samples}, confidence={confidence}, block={block}"
        )
    return images

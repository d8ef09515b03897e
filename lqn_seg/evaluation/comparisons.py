"""Many methods at once: p-values of differences, Holm's correction, ranks, tuned settings.

All take scores of all images and of each resample, as the metric of `resampled_totals` gives them:
(1 + samples, ...). Undefined scores are NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError


class Rank(NamedTuple):
    """A method's rank on all images, from 1, and the ends of its 95% interval."""

    rank: float
    low: float
    high: float


def bootstrap_p(values_a: NDArray[np.float64], values_b: NDArray[np.float64]) -> float:
    """Two-sided p-value of A - B = 0, from (1 + samples,) scores of both.

    Twice the share of resamples on the other side of 0, at most 1. One resample is added to either
    side, so that p is never 0, and a difference of exactly 0 is on both (Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, equation 4.11). It inverts the percentile
    interval of `paired_interval`: p is at most 0.05 where the 95% interval does not hold 0.
    """
    difference, *resampled = values_a - values_b
    defined = np.array([value for value in resampled if value == value])
    if difference != difference or not len(defined):
        return float("nan")
    fewer = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, smallest_p(len(defined)) * (1 + int(fewer)))


def smallest_p(samples: int) -> float:
    """The least that `bootstrap_p` can be: no resample is on the other side."""
    return 2 / (samples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: rejecting where the result is at most a keeps the chance of any
    false rejection at most a ("A Simple Sequentially Rejective Multiple Test Procedure", 1979).
    NaN stays NaN, and is no comparison.

    >>> holm([0.01, 0.04, 0.03, 0.005])
    [0.03, 0.06, 0.06, 0.02]
    """
    adjusted, largest = list(p_values), 0.0
    order = sorted((p, k) for k, p in enumerate(p_values) if p == p)
    for place, (p, k) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p))
        adjusted[k] = largest
    return adjusted


def ranks(scores: NDArray[np.float64], lower_is_better: bool = False) -> list[Rank]:
    """Ranks of methods, (methods, 1 + samples) scores; those that tie share the mean rank.

    The ends of an interval are ranks that occur: the 2.5% and 97.5% quantiles, rounded outwards.
    """
    found = rank_in_columns(scores if lower_is_better else -scores)
    undefined = Rank(*[float("nan")] * 3)
    result = []
    for first, *resampled in found.tolist():
        defined = [value for value in resampled if value == value]
        if first != first or not defined:
            result.append(undefined)
            continue
        low = np.quantile(defined, 0.025, method="lower")
        high = np.quantile(defined, 0.975, method="higher")
        result.append(Rank(first, float(low), float(high)))
    return result


def rank_in_columns(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (n, columns), the rank in its column from 1, the smallest first; ties share the mean."""
    smaller = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)  # itself too
    return np.where(np.isnan(values), np.nan, smaller + (equal + 1) / 2)


def best_elsewhere(
    scores: NDArray[np.float64], corrupted: Sequence[int], lower_is_better: bool = False
) -> NDArray[np.int64]:
    """Which variant to take under each condition, chosen on the other corruptions.

    Args:
        scores: (variants, 1 + samples, conditions).
        corrupted: the columns of the corruptions; other columns are not chosen on, and take the
            variant that is best on all corruptions.

    Returns:
        (1 + samples, conditions) index of the variant with the best mean; of equal ones the first.

    Raises:
        InputError: fewer than two corruptions, of which none could be left out.
    """
    if len(corrupted) < 2:
        raise InputError("settings are chosen on other corruptions: at least two are needed")
    signed = -scores if lower_is_better else scores
    signed = np.where(np.isnan(signed), -np.inf, signed)
    by_condition = []
    for k in range(scores.shape[-1]):
        others = [c for c in corrupted if c != k]
        by_condition.append(signed[..., others].mean(-1).argmax(0))
    return np.stack(by_condition, axis=-1)

"""p-values, Holm, ranks and tuned settings, against other definitions and slow loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from lqn_seg.errors import InputError
from lqn_seg.evaluation.bootstrap import paired_interval
from lqn_seg.evaluation.comparisons import (
    best_elsewhere,
    bootstrap_p,
    holm,
    rank_in_columns,
    ranks,
    smallest_p,
)

P = st.lists(st.floats(0.001, 1), min_size=1, max_size=6)


@given(P)
def test_holm_is_closed_testing_with_bonferroni(p):
    """Adjusted p: the largest Bonferroni p of all sets of hypotheses that one belongs to."""
    count = range(len(p))
    sets = [s for size in count for s in combinations(count, size + 1)]
    expected = [max(min(1, len(s) * min(p[j] for j in s)) for s in sets if k in s) for k in count]
    assert holm(p) == pytest.approx(expected)


@given(P)
def test_holm_never_lowers_and_keeps_the_order(p):
    adjusted = holm(p)
    assert all(raw <= new <= 1 for raw, new in zip(p, adjusted))
    assert sorted(adjusted) == [adjusted[k] for k in np.argsort(p, kind="stable")]
    assert holm([*p, float("nan")])[:-1] == adjusted


def test_p_by_hand():
    zero = np.zeros(10)
    # On all images +1; of nine resamples two are below 0 and one is exactly 0.
    values = np.array([1, -1, -2, 0, 1, 2, 3, 4, 5, 6.0])
    assert bootstrap_p(values, zero) == bootstrap_p(zero, values) == 2 * (1 + 3) / 10
    assert bootstrap_p(zero, zero) == 1
    assert bootstrap_p(zero + 1, zero) == smallest_p(9) == 0.2
    with_nan = np.array([*values, np.nan])
    assert bootstrap_p(with_nan, np.zeros(11)) == 0.8
    assert np.isnan(bootstrap_p(np.full(10, np.nan), zero))


def test_p_is_small_exactly_where_the_interval_leaves_out_0():
    random, seen = np.random.default_rng(0), set()
    for shift in np.linspace(-4, 4, 161):
        values = shift + random.normal(size=1001)
        p = bootstrap_p(values, np.zeros(1001))
        _, low, high = paired_interval(values, np.zeros(1001))
        if abs(p - 0.05) > 0.004:  # the +1 and the interpolation of quantiles
            seen.add(p < 0.05)
            assert (p < 0.05) == (low > 0 or high < 0)
    assert seen == {True, False}


def test_ranks_are_scipys_and_their_ends_are_ranks_that_occur():
    random = np.random.default_rng(1)
    scores = random.integers(0, 4, (5, 201)).astype(float)  # many ties
    expected = rankdata(-scores, axis=0)
    assert np.array_equal(rank_in_columns(-scores), expected)
    for found, values in zip(ranks(scores), expected):
        assert found.rank == values[0]
        assert {found.low, found.high} <= set(values[1:])
        assert np.mean((values[1:] >= found.low) & (values[1:] <= found.high)) >= 0.95
    turned = ranks(scores, lower_is_better=True)
    assert [r.rank for r in turned] == [6 - r.rank for r in ranks(scores)]
    scores[2] = np.nan
    assert np.isnan(ranks(scores)[2].rank) and ranks(scores)[0].rank <= 4


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_the_best_elsewhere_is_that_of_a_slow_loop(lower_is_better):
    scores = np.random.default_rng(2).normal(size=(3, 50, 5))
    scores[0, 0] = [0, 9, 1, 1, 1]  # the best on the first corruption, and there alone
    scores[1, 0] = [0, 2, 3, 3, 3]
    scores[2, 0] = [0, 0, 0, 0, 0]
    corrupted = [1, 2, 3, 4]
    found = best_elsewhere(scores, corrupted, lower_is_better)
    for sample in range(50):
        for condition in range(5):
            means = []
            for variant in range(3):
                others = [scores[variant, sample, c] for c in corrupted if c != condition]
                means.append(sum(others) / len(others))
            best = min(means) if lower_is_better else max(means)
            assert found[sample, condition] == means.index(best)
    if not lower_is_better:
        assert found[0].tolist() == [0, 1, 0, 0, 0]
    with pytest.raises(InputError, match="at least two"):
        best_elsewhere(scores, [1])

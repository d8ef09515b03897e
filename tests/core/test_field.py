"""The field of several views against a double loop, and against functions that it must follow."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqn_seg.core.field import BANDWIDTH, Placed, cell_centres, evaluate


def values(seed: int, height: int = 3, width: int = 4, count: int = 2) -> torch.Tensor:
    return torch.randn(count, height, width, 5, generator=torch.Generator().manual_seed(seed))


def ramp(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(1, R, C, 1) of a function of the place: 2 i - j."""
    return (2 * rows[:, None] - columns)[None, ..., None]


def placed_ramp(move: tuple[float, float], side: int = 6) -> Placed:
    rows, columns = (torch.arange(1.0, side + 1) + by for by in move)
    return Placed(ramp(rows, columns), rows, columns)


def test_it_is_the_kernels_mean_of_all_cells_of_all_views():
    views = [Placed.on((3, 4), values(0)), Placed.on((3, 4), values(1), (0.5, 0.5))]
    rows, columns = torch.tensor([1.0, 1.7, 2.9]), torch.tensor([1.25, 3.5])
    got = evaluate(views, rows, columns)
    for r, row in enumerate(rows.tolist()):
        for c, column in enumerate(columns.tolist()):
            total, weights = torch.zeros(2, 5), 0.0
            for view in views:
                for h, i in enumerate(view.rows.tolist()):
                    for w, j in enumerate(view.columns.tolist()):
                        far = math.dist((row, column), (i, j)) / BANDWIDTH
                        weight = math.exp(-0.5 * far**2)
                        total, weights = total + weight * view.values[:, h, w], weights + weight
            torch.testing.assert_close(got[:, r, c], total / weights)


def test_a_view_alone_is_itself_on_its_own_grid_and_twice_as_fine():
    view = Placed.on((3, 4), values(0))
    own = evaluate([view], view.rows, view.columns)
    torch.testing.assert_close(own, view.values, atol=5e-3, rtol=0)
    finer = evaluate([view], cell_centres(3, 2), cell_centres(4, 2))
    repeated = view.values.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (finer - repeated).square().mean() < 0.01 * view.values.var()


def test_a_second_view_knows_what_lies_between_the_cells_of_the_first():
    rows = torch.arange(2.0, 5.01, 0.25)
    wanted = ramp(rows, rows)
    one, two = (
        (evaluate([placed_ramp(move) for move in moves], rows, rows) - wanted).abs().mean()
        for moves in (((0.0, 0.0),), ((0.0, 0.0), (0.5, 0.5)))
    )
    assert two < 0.75 * one


@given(
    st.integers(0, 100),
    st.sampled_from([(0.0, 0.0), (0.5, 0.5), (0.5, 0.0), (0.25, -0.5)]),
    st.floats(-3, 9),
    st.floats(-3, 9),
)
@settings(max_examples=50, deadline=None)
def test_every_place_is_answered_from_between_the_values(seed, move, row, column):
    views = [Placed.on((3, 4), values(0)), Placed.on((3, 4), values(seed), move)]
    got = evaluate(views, torch.tensor([row]), torch.tensor([column]))
    known = torch.stack([view.values for view in views])
    assert (got >= known.amin((0, 2, 3))[:, None, None] - 1e-5).all()
    assert (got <= known.amax((0, 2, 3))[:, None, None] + 1e-5).all()


def test_logits_of_a_finer_grid_lie_in_their_patches():
    """4 cells a patch: the first one's centre is an eighth of a patch from the patch's edge."""
    view = Placed.on((3, 4), values(0, 12, 16), (0.5, 0.0))
    assert view.rows[:2].tolist() == pytest.approx([0.5 + 1 / 8 + 0.5, 0.5 + 3 / 8 + 0.5])
    assert view.columns[-1] == pytest.approx(4.5 - 1 / 8)

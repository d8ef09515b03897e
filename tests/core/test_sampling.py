from __future__ import annotations

import pytest
import torch
from lqn_seg.core.sampling import Draw, sample_apart, sample_positions

from lqn_seg.core.config import positions_per_step
from lqn_seg.core.random import CounterRandom, RandomKey
from lqn_seg.errors import InputError

GRID = (5, 3, 4)  # L, H, W


def test_count_or_fraction():
    assert positions_per_step(196, GRID) == 196
    assert positions_per_step(1, GRID) == 1
    assert positions_per_step(1.0, GRID) == 60
    assert positions_per_step(0.05, (24, 80, 80)) == 7680
    assert positions_per_step(0.001, GRID) == 1
    for bad in (0, -3, 0.0, 1.5):
        with pytest.raises(InputError, match="positions_per_step"):
            positions_per_step(bad, GRID)


def test_positions_are_uniform_over_the_grid_each_with_its_own_layer():
    count = 60_000
    positions = sample_positions(CounterRandom([RandomKey(0, 1)]), GRID, count)[0]
    i, j, layer = (positions - 1).unbind(1)
    cells = torch.bincount((layer * 3 + i) * 4 + j, minlength=60).double()
    assert len(cells) == 60
    expected = count / 60
    chi_square = ((cells - expected) ** 2 / expected).sum()
    assert chi_square < 59 + 4 * (2 * 59) ** 0.5


def test_steps_draws_and_students_see_different_positions():
    random = CounterRandom([RandomKey(0, 1), RandomKey(0, 2)])
    seen = [
        sample_positions(random, GRID, 20, step=step, draw=draw)[b]
        for step in (0, 1)
        for draw in (Draw.DESTINATION, Draw.SOURCE_1, Draw.SOURCE_2)
        for b in (0, 1)
    ]
    assert len({tuple(positions.flatten().tolist()) for positions in seen}) == len(seen)


def test_only_the_given_layers_are_drawn():
    positions = sample_positions(CounterRandom([RandomKey(0)]), GRID, 200, layers=(2, 5))
    assert set(positions[..., 2].flatten().tolist()) == {2, 5}


def test_steps_at_once_are_the_single_steps():
    random = CounterRandom([RandomKey(0)])
    at_once = sample_positions(random, GRID, 9, (1, 3), torch.arange(4))
    assert at_once.shape == (1, 4, 9, 3)
    for step in range(4):
        assert torch.equal(at_once[:, step], sample_positions(random, GRID, 9, (1, 3), step))


# --- in other segments

SEGMENTS = torch.tensor([[[7, 7, 7, 2], [7, 5, 5, 2], [7, 5, 2, 2]]] * 2)
SEGMENTS[1] = torch.tensor([3, 1, 3, 1])  # columns, of two segments


def labels(segments: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(H, W) segments at (..., 3) addresses."""
    return segments[positions[..., 0] - 1, positions[..., 1] - 1]


def test_triplets_come_from_three_segments_where_there_are_three():
    random = CounterRandom([RandomKey(0, 1), RandomKey(0, 2)])
    steps = torch.arange(3)
    taken = [sample_positions(random, GRID, 400, (2, 5), steps)]
    for draw in (Draw.SOURCE_1, Draw.SOURCE_2):
        taken.append(sample_apart(random, GRID, SEGMENTS, taken, (2, 5), steps, draw))
        assert taken[-1].shape == (2, 3, 400, 3)
        assert set(taken[-1][..., 2].flatten().tolist()) == {2, 5}
    dest, first, second = (labels(SEGMENTS[0], t[0]) for t in taken)
    assert (dest != first).all() and (dest != second).all() and (first != second).all()
    assert len(set(zip(dest.flatten().tolist(), first.flatten().tolist()))) == 6
    # two segments: the second source has none left, and may lie anywhere
    dest, first, second = (labels(SEGMENTS[1], t[1]) for t in taken)
    assert (dest != first).all()
    assert set((dest == second).flatten().tolist()) == {False, True}


@pytest.mark.parametrize("seen", [[(1, 1)], [(1, 4), (2, 2)], [(2, 3), (2, 2)]])
def test_positions_are_uniform_over_what_is_left(seen):
    count, segments = 60_000, SEGMENTS[:1]
    taken = [torch.tensor([*place, 1]).expand(1, count, 3) for place in seen]
    out = {int(segments[0, i - 1, j - 1]) for i, j in seen}
    found = sample_apart(CounterRandom([RandomKey(0, 1)]), GRID, segments, taken)[0] - 1
    cells = torch.bincount((found[:, 2] * 3 + found[:, 0]) * 4 + found[:, 1], minlength=60)
    left = torch.tensor([label not in out for label in segments.flatten().tolist()] * 5)
    assert cells[~left].sum() == 0
    expected = count / left.sum()
    chi_square = ((cells[left] - expected) ** 2 / expected).sum()
    freedom = int(left.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_one_segment_is_the_whole_image_and_steps_at_once_are_the_single_steps():
    random, one = CounterRandom([RandomKey(0)]), torch.zeros(1, 3, 4, dtype=torch.int64)
    taken = sample_positions(random, GRID, 500)
    found = sample_apart(random, GRID, one, [taken])
    assert len({tuple(address) for address in found[0].tolist()}) == 60
    at_once = sample_positions(random, GRID, 9, step=torch.arange(4))
    whole = sample_apart(random, GRID, SEGMENTS[:1], [at_once], step=torch.arange(4))
    for step in range(4):
        single = sample_apart(random, GRID, SEGMENTS[:1], [at_once[:, step]], step=step)
        assert torch.equal(whole[:, step], single)

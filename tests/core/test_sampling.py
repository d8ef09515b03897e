from __future__ import annotations

import pytest
import torch

from lqn_seg.core.random import CounterRandom, RandomKey
from lqn_seg.core.sampling import Draw, positions_per_step, sample_positions
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

"""Which positions a step visits (Algorithm 1, "Sample(H, W, L)").

Every draw is uniform over the grid, with replacement, fresh each step, and has a layer of its own;
all of it comes from the image's counter-based random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from lqn_seg.core.random import CounterRandom
from lqn_seg.errors import InputError


class Draw(IntEnum):
    """What a random number is for: the `draw` word of its counter."""

    DESTINATION = 0
    SOURCE_1 = 1
    SOURCE_2 = 2
    WEIGHTS = 3
    READOUT = 4


def positions_per_step(amount: int | float, grid: tuple[int, int, int]) -> int:
    """Number of positions a step visits.

    Args:
        amount: an int is that many; a float in (0, 1] is that fraction of the L x H x W positions.
        grid: (L, H, W), L counting only the layers that are fitted.

    Raises:
        InputError: a count below 1 or a fraction outside (0, 1].
    """
    if isinstance(amount, float):
        if not 0.0 < amount <= 1.0:
            raise InputError(f"positions_per_step: a fraction must be in (0, 1], got {amount}")
        layers, rows, columns = grid
        return max(1, round(amount * layers * rows * columns))
    if amount < 1:
        raise InputError(f"positions_per_step: a count must be at least 1, got {amount}")
    return amount


def sample_positions(
    random: CounterRandom,
    grid: tuple[int, int, int],
    count: int,
    layers: Sequence[int] | None = None,
    step: int | Tensor = 0,
    draw: int = Draw.DESTINATION,
) -> Tensor:
    """Random addresses of a grid (L, H, W).

    Args:
        layers: the (1-based) layers to draw from; None for all L.
        step: a step, or a 1-D tensor of S steps, for which S comes second in the result.

    Returns:
        (B, [S,] count, 3) int64 addresses (i, j, l).
    """
    depth, rows, columns = grid
    choices = torch.tensor(list(layers or range(1, depth + 1)), device=random.device)
    high = torch.tensor([rows, columns, len(choices)], device=random.device)
    i, j, layer = random.integers(high, (count, 3), step, draw).unbind(-1)
    return torch.stack((i + 1, j + 1, choices[layer]), dim=-1)

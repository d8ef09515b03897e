"""Which positions a step visits (Algorithm 1, "Sample(H, W, L)").

Every draw is uniform over the grid, with replacement, fresh each step, and has a layer of its own;
all of it comes from the image's counter-based random numbers. With segments at hand, source 1,
source 2 and destination can be kept to different ones (the paper's section 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from lqn_seg.core.fast.graphs import constant
from lqn_seg.core.random import CounterRandom


class Draw(IntEnum):
    """What a random number is for: the `draw` word of its counter."""

    DESTINATION = 0
    SOURCE_1 = 1
    SOURCE_2 = 2
    WEIGHTS = 3
    READOUT = 4
    VIEW = 5


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
    choices = constant(tuple(layers or range(1, depth + 1)), random.device)
    high = constant((rows, columns, len(choices)), random.device)
    i, j, layer = random.integers(high, (count, 3), step, draw).unbind(-1)
    return torch.stack((i + 1, j + 1, choices[layer]), dim=-1)


def sample_apart(
    random: CounterRandom,
    grid: tuple[int, int, int],
    segments: Tensor,
    taken: Sequence[Tensor],
    layers: Sequence[int] | None = None,
    step: int | Tensor = 0,
    draw: int = Draw.SOURCE_1,
) -> Tensor:
    """Random addresses outside the segments that other addresses lie in.

    Each is uniform over the positions that are left, or over all where none is: an image of one
    segment has no other.

    Args:
        segments: (B, H, W) int64, the segment of each position of the grid.
        taken: addresses (B, [S,] n, 3) whose segments are left out.

    Returns:
        (B, [S,] n, 3) int64 addresses.
    """
    depth, _, columns = grid
    labels, order = segments.flatten(1).sort(dim=1, stable=True)
    # A segment is a stretch of the sorted positions: where it starts and how long it is.
    stretches = torch.stack([_stretch(segments, labels, address) for address in taken])
    starts, sizes = stretches.unbind(1)
    starts, by_start = starts.sort(dim=0)
    sizes = sizes.gather(0, by_start)
    sizes[1:] *= starts[1:] != starts[:-1]  # the same segment twice
    left = labels.shape[1] - sizes.sum(0)
    sizes, left = sizes * (left > 0), torch.where(left > 0, left, labels.shape[1])
    choices = constant(tuple(layers or range(1, depth + 1)), random.device)
    high = torch.stack([left, torch.full_like(left, len(choices))], dim=-1)
    index, layer = random.integers(high, high.shape[-2:], step, draw).unbind(-1)
    for start, size in zip(starts, sizes):
        index = index + size * (index >= start)  # step over what is left out
    place = order.gather(1, index.flatten(1)).view_as(index)
    return torch.stack((place // columns + 1, place % columns + 1, choices[layer]), dim=-1)


def _stretch(segments: Tensor, labels: Tensor, address: Tensor) -> Tensor:
    """(2, B, [S,] n) start and size, among sorted labels (B, N), of the addresses' segments."""
    place = (address[..., 0] - 1) * segments.shape[2] + address[..., 1] - 1
    own = segments.flatten(1).gather(1, place.flatten(1))
    start, end = (torch.searchsorted(labels, own, right=right) for right in (False, True))
    return torch.stack([start, end - start]).unflatten(2, place.shape[1:])

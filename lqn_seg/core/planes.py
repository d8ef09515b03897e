"""Many maps of one size, a few at a time: those stay in a CPU's cache, and in memory that it has.

Shapes: K maps, h x w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_VALUES = 1 << 20  # at a time
_VECTOR = 32  # floats of a CPU's inner loop; what is left over at its end is rounded otherwise


def runs(shape: torch.Size) -> Iterator[slice]:
    """Slices of the first axis of (K, h, w): whole vectors, so that values do not depend on where
    a run ends. Of two maps or more: torch adds up a single one in an order that depends on the
    number of threads."""
    size = max(shape[1:].numel(), 1)
    unit = max(2, _VECTOR // math.gcd(size, _VECTOR))
    step = max(unit, _VALUES // size // unit * unit)
    return (slice(start, start + step) for start in range(0, shape[0], step))


def strongest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(K, h, w) to the highest value at each place, (h, w), and the first map that has it, int64:
    what `max(0)` gives, but for NaN."""
    if maps.device.type != "cpu":  # where many small steps would be slower
        return tuple(maps.max(0))  # type: ignore[return-value]
    best, index = maps[0], torch.zeros(maps.shape[1:], dtype=torch.int32)
    for number, one in enumerate(maps[1:], 1):
        index.masked_fill_(one > best, number)
        best = torch.maximum(best, one)
    return best, index.long()

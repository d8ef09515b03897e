"""How many CPU threads a model computes with: it decides the last bits of what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lqn_seg.errors import InputError


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Compute with this many threads, whatever the machine, the launcher or $OMP_NUM_THREADS say.

    How a sum is split over threads decides its last bits, and launchers set another number of
    threads for several processes than for one. Many threads also wait for one another: on busy
    cores a fit of small products took 50 times as long with two threads as with one. Within
    another block of the same count this does nothing, for setting threads empties oneDNN's cache.

    Raises:
        InputError: the count is no whole number of at least 1.
    """
    if not isinstance(count, int) or count < 1:
        raise InputError(f"MODEL.LQN.EVAL.THREADS must be at least 1, not {count!r}")
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

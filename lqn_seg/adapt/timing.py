"""Milliseconds on any device, and the one failure that a fit may meet and an image survives."""

from __future__ import annotations

import time

import torch


class Clock:
    """Milliseconds between laps, with the device's queue emptied at each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap, or since the clock was made."""
        before, self.last = self.last, self._now()
        return 1e3 * (self.last - before)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out; on a CPU torch has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)

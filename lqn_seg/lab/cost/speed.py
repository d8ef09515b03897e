"""Milliseconds that can be compared: interleaved runs, and what the device could do at best.

Functions that are compared run in turns, so that whatever else the machine does meets all of them.
(torch.utils.benchmark measures one after the other, and each twice beforehand; it measures the
roofline here: the fastest matrix product and the fastest copy that this device gives us.)
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lqn_seg.adapt.timing import Clock
from lqn_seg.core.precision import has_bfloat16

_WARM_UPS = 2
COPIED_FLOATS = 1 << 25  # 128 MiB: far beyond any cache


@dataclass(frozen=True)
class Timing:
    """Milliseconds over the turns: of the wall clock, and the median processor time of all threads,
    which other processes hardly touch (on a GPU the time the host was busy)."""

    median_ms: float
    p95_ms: float
    busy_ms: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]]) -> Timing:
        wall, busy = (sorted(column) for column in zip(*samples))
        p95 = wall[math.ceil(0.95 * len(wall)) - 1]
        return cls(statistics.median(wall), p95, statistics.median(busy), len(wall))


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    cold: Collection[str] = (),
) -> dict[str, Timing]:
    """Time functions that run in turns; all but the `cold`, long ones run once beforehand."""
    for name, function in functions.items():
        if name not in cold:
            function()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            clock, busy = Clock(device), time.process_time()
            function()
            samples[name].append((clock.lap(), 1e3 * (time.process_time() - busy)))
    return {name: Timing.of(of_one) for name, of_one in samples.items()}


@dataclass(frozen=True)
class Roofline:
    """What a device can do at best: products by precision, and bytes read and written by a copy."""

    gmacs_per_ms: Mapping[str, float]
    bytes_per_ms: float

    @classmethod
    def measure(cls, device: torch.device, precisions: Sequence[str], side: int = 2048) -> Roofline:
        """Products of `side` x `side` matrices, and a copy of 128 MiB."""
        peaks = {name: peak_gmacs_per_ms(device, name, side) for name in precisions}
        source = torch.ones(COPIED_FLOATS, device=device)
        target = torch.empty_like(source)
        return cls(peaks, 2 * source.nbytes / _best_ms(lambda: target.copy_(source)))

    def best(self, other: Roofline) -> Roofline:
        """The higher of two measurements: others may have kept the device busy during one."""
        peaks = {name: max(x, other.gmacs_per_ms[name]) for name, x in self.gmacs_per_ms.items()}
        return Roofline(peaks, max(self.bytes_per_ms, other.bytes_per_ms))

    def least_ms(self, precision: str, gmacs: float, moved_bytes: float) -> tuple[float, float]:
        """(arithmetic, memory): what each would take at full speed, one after the other."""
        return gmacs / self.gmacs_per_ms[precision], moved_bytes / self.bytes_per_ms


def peak_gmacs_per_ms(device: torch.device, precision: str, side: int = 1024) -> float:
    """GMACs a millisecond of a large square matrix product, as of students."""
    if precision != "float32" and not has_bfloat16(device):
        side //= 8  # emulated: minutes at full size
    a = torch.randn(1, side, side, device=device).to(getattr(torch, precision))
    return side**3 / 1e9 / _best_ms(lambda: a @ a)


def _best_ms(function: Callable[[], Any]) -> float:
    # Its import looks for CUDA's compiler, and would warn of a machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    threads = torch.get_num_threads()
    timer = Timer("function()", globals={"function": function}, num_threads=threads)
    return 1e3 * min(timer.blocked_autorange(min_run_time=0.5).times)


def layer_times(
    encode: Callable[[Callable[[int, Tensor], Tensor]], Any], device: torch.device, repeats: int
) -> list[float]:
    """Median milliseconds until a teacher has each layer's tokens, embedding included; `encode` is
    its pass, with the hook that watches it as its argument."""
    laps: list[list[float]] = []
    clock = Clock(device)

    def watch(layer: int, tokens: Tensor) -> Tensor:
        laps[-1].append(clock.lap())
        return tokens

    for _ in range(repeats + _WARM_UPS):
        laps.append([])
        clock.lap()
        encode(watch)
    arrivals = (accumulate(lap) for lap in laps[_WARM_UPS:])
    return [statistics.median(at) for at in zip(*arrivals)][1:]


def query_times(
    query: Callable[[float], Any], depth: int, device: torch.device, repeats: int
) -> list[float]:
    """Median milliseconds of asking a student for the tokens of each of `depth` layers."""
    queries = {str(layer): partial(query, layer) for layer in range(1, depth + 1)}
    return [timing.median_ms for timing in interleaved(queries, repeats, device).values()]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else device.type

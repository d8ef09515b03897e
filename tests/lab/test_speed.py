from __future__ import annotations

import time

import torch

from lqn_seg.lab.cost import speed
from lqn_seg.lab.cost.speed import Roofline, Timing, interleaved, peak_gmacs_per_ms

CPU = torch.device("cpu")


def test_functions_run_in_turns_and_only_warm_ones_beforehand():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(functions, 2, CPU, cold=("b",))
    assert "".join(order) == "ac" + "abc" * 2
    assert {name: timing.runs for name, timing in times.items()} == dict.fromkeys("abc", 2)


def test_median_and_95th_percentile_of_known_samples():
    timing = Timing.of([(float(ms), 10.0 * ms) for ms in range(20, 0, -1)])
    assert timing == Timing(median_ms=10.5, p95_ms=19.0, busy_ms=105.0, runs=20)
    assert Timing.of([(3.0, 1.0)]) == Timing(3.0, 3.0, 1.0, 1)


def test_sleep_takes_time_but_no_processor():
    (timing,) = interleaved({"sleep": lambda: time.sleep(0.02)}, 3, CPU).values()
    assert timing.median_ms >= 20 and timing.busy_ms < 15


def test_roofline_is_arithmetic_and_memory_one_after_the_other():
    roofline = Roofline({"float32": 50.0}, 2e6)
    assert roofline.least_ms("float32", 100.0, 6e6) == (2.0, 3.0)


def test_the_better_of_two_rooflines_is_the_devices():
    busy = Roofline({"float32": 25.0, "bfloat16": 100.0}, 3e6)
    idle = Roofline({"float32": 50.0, "bfloat16": 90.0}, 2e6)
    expected = Roofline({"float32": 50.0, "bfloat16": 100.0}, 3e6)
    assert busy.best(idle) == idle.best(busy) == expected


def test_measured_roofline_is_a_machines(monkeypatch):
    monkeypatch.setattr(speed, "COPIED_FLOATS", 1 << 16)
    roofline = Roofline.measure(CPU, ("float32",), side=64)
    # a calculator and a supercomputer, per millisecond
    assert 1e-4 < roofline.gmacs_per_ms["float32"] < 1e4
    assert 1e3 < roofline.bytes_per_ms < 1e11
    assert peak_gmacs_per_ms(CPU, "float32", side=64) > 0

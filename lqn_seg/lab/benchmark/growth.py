"""How cost grows: processor time, multiply-adds and tensors in memory against what a user chooses.

One thing grows at a time, for small EoMTs of random weights and images of random pixels, which a
calibration takes for damaged, so that alignment and students do all their work. Cost ~ value^k; the
exponent k is the slope of a line through the logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

from lqn_seg.adapt.calibration import alarmed, calibrate
from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.core.config import LQNConfig
from lqn_seg.lab.benchmark.memory import random_image, recipe
from lqn_seg.lab.benchmark.teachers import eomt_head, random_eomt
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.cost.speed import interleaved
from lqn_seg.lab.report.wording import table, wrapped
from lqn_seg.segmentation.segmenter import Segmenter

_SIDE = 64  # pixels; patches of 8
_COUNTED = 1000  # images whose tensors are followed: ten times as slow as a run
_COSTS = ("busy_ms", "gmacs", "peak_mib")
# What grows: its values, and the methods that are run. A side stands for its square.
AXES: dict[str, tuple[Sequence[int], Sequence[str]]] = {
    "pixels": ((64, 96, 128, 192, 256), ("teacher", "field", "lqn")),
    "layers": ((2, 4, 8, 16), ("teacher", "field", "lqn")),
    "views": ((1, 2, 4), ("field", "lqn")),
    "classes": ((10, 100, 1000), ("teacher", "lqn")),
    "images": ((10, 100, 1000, 10_000), ("teacher",)),
}


@dataclass(frozen=True)
class Slope:
    """An exponent and its standard error; both NaN of fewer than two points, the error of two."""

    exponent: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float], costs: Sequence[float]) -> Slope:
        known = [(x, y) for x, y in zip(values, costs) if y > 0]
        if len(known) < 2:
            return cls(math.nan, math.nan)
        x, y = np.log(known).T
        x = x - x.mean()
        exponent = float(x @ y / (x @ x))
        rest = y - y.mean() - exponent * x
        freedom = len(known) - 2
        error = math.sqrt(rest @ rest / freedom / (x @ x)) if freedom else math.nan
        return cls(exponent, error)

    def __str__(self) -> str:
        if math.isnan(self.exponent):
            return "-"
        rounded = round(self.exponent, 2) + 0.0  # no "-0.00"
        return f"{rounded:.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


def growth(
    repeats: int = 3,
    axes: Mapping[str, tuple[Sequence[int], Sequence[str]]] = AXES,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Of each ``axis`` and ``method`` what it costs at each ``value``: ``busy_ms`` of processor
    time, ``gmacs``, and ``peak_mib`` of tensors; the last two are NaN where they were not counted.
    Runs along an axis are interleaved."""
    found = []
    for axis, (values, methods) in axes.items():
        runs = {
            (method, value): _run(axis, method, value) for method in methods for value in values
        }
        functions = {f"{method} {value}": run for (method, value), run in runs.items()}
        long = list(functions) if axis == "images" else []
        times = interleaved(functions, 1 if long else repeats, torch.device("cpu"), cold=long)
        for (method, value), run in runs.items():
            busy = times[f"{method} {value}"].busy_ms
            gmacs = peak = math.nan
            if axis != "images" or value <= _COUNTED:
                cost = measure(run)
                gmacs, peak = cost.gmacs, cost.peak_bytes / 2**20
            amount = value**2 if axis == "pixels" else value
            point = {"axis": axis, "method": method, "value": amount}
            found.append({**point, "busy_ms": busy, "gmacs": gmacs, "peak_mib": peak})
        say(f"{axis}: {', '.join(map(str, values))}")
    return found


def _run(axis: str, method: str, value: int) -> Callable[[], None]:
    """A method on images, with one thing of a value and the others as they are."""
    side = value if axis == "pixels" else _SIDE
    shape: dict[str, Any] = {"num_blocks": 1}
    shape |= {"num_hidden_layers": value} if axis == "layers" else {}
    shape |= {"num_labels": value} if axis == "classes" else {}
    teacher = random_eomt("eomt-tiny", side, **shape)
    named = recipe(method)
    changes: dict[str, Any] = {"views": value} if axis == "views" else {}
    if isinstance(named, LQNConfig):
        named = replace(named, adapt=replace(named.adapt, **changes))
    image = random_image(*teacher.image_size)
    clean = torch.stack([image, image.flip(-1)]).float() / 255
    calibration = None if named is None else alarmed(calibrate(teacher, lambda: [clean]))
    parts = teacher, eomt_head(teacher), {method: named}, frozenset[int](), SegmentationConfig()
    segmenter = Segmenter(*parts, calibration)
    return partial(_segment, segmenter, image, value if axis == "images" else 1)


def _segment(segmenter: Segmenter, image: torch.Tensor, times: int) -> None:
    for _ in range(times):
        segmenter([image])


def growth_text(points: Sequence[Mapping[str, Any]]) -> str:
    """Exponents of all axes and methods in one table."""
    heading = (
        "Growth: cost ~ value^k, k with its standard error, of small EoMTs (random weights) and "
        "the recipes of the preset default; busy is processor time, MiB are of tensors"
    )
    heads = ["", "value", "busy ms", "k of busy", "k of GMACs", "peak MiB", "k of peak"]
    lines = groupby(points, lambda point: (point["axis"], point["method"]))
    rows = [_row(f"{axis}, {method}", list(line)) for (axis, method), line in lines]
    return f"{wrapped(heading)}\n{table(rows, heads)}"


def _row(label: str, line: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = {key: [point[key] for point in line] for key in ("value", *_COSTS)}
    ends = {}
    for key, form in {"value": "g", "busy_ms": ".0f", "peak_mib": ".1f"}.items():
        known = [x for x in columns[key] if not math.isnan(x)]
        ends[key] = f"{known[0]:{form}} to {known[-1]:{form}}"
    k = {key: str(Slope.of(columns["value"], columns[key])) for key in _COSTS}
    busy, peak = ends["busy_ms"], ends["peak_mib"]
    return [label, ends["value"], busy, k["busy_ms"], k["gmacs"], peak, k["peak_mib"]]

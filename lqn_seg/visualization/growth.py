"""Cost against what grows, on logarithmic axes."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lqn_seg.visualization.files import save_figure
from lqn_seg.visualization.palette import series_style

_COSTS = {"busy_ms": "processor time, ms", "peak_mib": "tensors at the peak, MiB"}


def draw_growth(points: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """A column of two panels for each axis, time above memory. Returns the files.

    Args:
        points: as `growth.json`'s: of ``axis``, ``method``, ``value``, ``busy_ms``, ``peak_mib``,
            each axis' and method's one after the other.
    """
    names = list(dict.fromkeys(point["axis"] for point in points))
    methods = list(dict.fromkeys(point["method"] for point in points))
    figure = Figure(figsize=(3.2 * len(names), 6), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for row, (cost, label) in zip(panels, _COSTS.items()):
        for axes, name in zip(row, names):
            mine = [point for point in points if point["axis"] == name]
            for method, line in groupby(mine, lambda point: point["method"]):
                known = [p for p in line if p[cost] is not None and p[cost] == p[cost]]
                style = {**series_style(methods.index(method)), "label": method}
                axes.plot([p["value"] for p in known], [p[cost] for p in known], **style)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=5))
            axes.xaxis.set_minor_formatter("")
            axes.yaxis.set_minor_formatter("")
        row[0].set_ylabel(label)
    for axes, name in zip(panels[-1], names):
        axes.set_xlabel(name)
    panels[0, 0].legend(fontsize="small")
    return save_figure(figure, stem)

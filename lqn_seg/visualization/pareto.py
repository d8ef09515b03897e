"""What methods gain against what they cost: points with intervals, and the front as a step line."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from lqn_seg.visualization.curves import add_whiskers, difference_label, method_style, readable
from lqn_seg.visualization.files import save_figure

Results = Mapping[str, Any]
_LABELS = {
    "passes": "cost in passes of {unit} (multiply-adds, log scale)",
    "time": "time over that of {unit} (log scale)",
}
_ZERO = {"difference": 0.0, "low": 0.0, "high": 0.0}  # the baseline, to itself
# Where a label may stand around its point, nearest first, in points (1/72 inch).
_PLACES = [
    (radius * np.cos(turn), radius * np.sin(turn))
    for radius in (10, 18, 28, 40, 54, 70, 90)
    for turn in np.deg2rad((20, -20, 160, 200, 60, -60, 120, 240, 90, 270, 0, 180))
]


def draw_pareto(results: Results, stem: Path) -> list[Path]:
    """Two panels per table of `results`, one below the other: gain against teacher passes, and
    against time. A method whose passes are not counted is in the second alone; a panel of one
    method is none. Returns the files.

    Args:
        results: as a study's ``results.json``: of ``metric``, ``baseline`` and ``tables``, of which
            each has ``heading``, ``compared``, ``has_intervals``, ``budget_unit``, ``front``, and
            ``methods`` with ``title``, ``budget`` and ``minus_baseline``.
    """
    panels = [(table, axis) for table in results["tables"] for axis in _LABELS]
    panels = [(table, axis) for table, axis in panels if len(_costs(table, axis)) > 1]
    if not panels:
        return []
    figure = Figure(figsize=(8, 4.6 * len(panels)), layout="constrained")
    every = list(zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels))
    for axes, (table, axis) in every:
        _panel(axes, results, table, axis)
    figure.draw_without_rendering()  # where the axes are, which the places of labels depend on
    for axes, (table, axis) in every:
        _label(axes, results, table, axis)
    return save_figure(figure, stem)


def _costs(table: Results, axis: str) -> dict[str, float]:
    """Of the methods that have a cost and a gain."""
    costs = {m: entry["budget"][axis] for m, entry in table["methods"].items()}
    return {m: x for m, x in costs.items() if x and _gain(table, m)["difference"] is not None}


def _gain(table: Results, method: str) -> Results:
    return table["methods"][method].get("minus_baseline", {}).get(table["compared"], _ZERO)


def _panel(axes: Axes, results: Results, table: Results, axis: str) -> None:
    costs = _costs(table, axis)
    for method, x in costs.items():
        style = {**method_style(results, method), "markersize": 7, "zorder": 3}
        add_whiskers(axes, np.array([x]), [_gain(table, method)], style, [table])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    low, high = min(costs.values()), max(costs.values())
    axes.set_xlim(low / 1.6, max(high * 2.2, low * 5))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    label = "front: nothing reaches as much for less"
    axes.step(*_front(axes, table, axis), where="post", color="0.45", zorder=2, label=label)
    axes.legend(fontsize="small", loc="lower right")
    axes.set_xlabel(_LABELS[axis].format(unit=table["budget_unit"]))
    axes.set_ylabel(difference_label(results))
    axes.set_title(f"{table['heading']}\n{readable(table['compared'])}", fontsize="medium")
    axes.margins(y=0.12)


def _front(axes: Axes, table: Results, axis: str) -> tuple[list[float], list[float]]:
    """Corners of the front, as far as the right edge."""
    x = [table["methods"][method]["budget"][axis] for method in table["front"][axis]]
    y = [_gain(table, method)["difference"] for method in table["front"][axis]]
    return [*x, axes.get_xlim()[1]], [*y, y[-1]]


def _label(axes: Axes, results: Results, table: Results, axis: str) -> None:
    """Each point's name where it covers neither another name nor a point nor an interval."""
    costs, front = _costs(table, axis), table["front"][axis]
    inside = axes.get_window_extent()
    taken = [_covered(axes, x, _gain(table, method)) for method, x in costs.items()]
    corners = axes.transData.transform(np.transpose(_front(axes, table, axis)))
    for (left, low), (right, high) in pairwise(corners):
        along, up = [(left, low - 1), (right, low + 1)], [(right - 1, low), (right + 1, high)]
        taken += [Bbox(along), Bbox(up)]
    legend = axes.get_legend()
    taken += [] if legend is None else [legend.get_window_extent()]
    # From above, so that of a crowd the highest stay nearest to their points.
    for method in sorted(costs, key=lambda m: -_gain(table, m)["difference"]):
        text = axes.annotate(
            table["methods"][method]["title"],
            (costs[method], _gain(table, method)["difference"]),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold" if method in front else "normal",
            color="0.15",
            zorder=4,
        )
        text.set_in_layout(False)
        taken.append(_placed(text, taken, inside))
        if np.hypot(*text.xyann) > 20:
            axes.annotate(
                "",
                text.xy,
                xytext=text.xyann,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.7},
            ).set_in_layout(False)


def _covered(axes: Axes, x: float, gain: Results) -> Bbox:
    """The pixels of a point and its interval."""
    ends = [gain[key] for key in ("difference", "low", "high") if gain[key] is not None]
    corners = axes.transData.transform([(x, min(ends)), (x, max(ends))])
    return Bbox([corners[0] - 5, corners[1] + 5])


def _placed(text: Annotation, taken: Sequence[Bbox], inside: Bbox) -> Bbox:
    """Moves a label to the first place that is free, or else to the one that covers least."""

    def move(place: tuple[float, float]) -> Bbox:
        text.set_ha("left" if place[0] > 1e-6 else "right" if place[0] < -1e-6 else "center")
        text.xyann = place
        return text.get_window_extent()

    def covers(place: tuple[float, float]) -> float:
        box = move(place)
        outside = box.width * box.height - _shared(box, inside)
        return outside + sum(_shared(box, other) for other in taken)

    costs = map(covers, _PLACES)  # none beyond the first that is free
    free = next((place for place, cost in zip(_PLACES, costs) if cost == 0), None)
    return move(min(_PLACES, key=covers) if free is None else free)


def _shared(a: Bbox, b: Bbox) -> float:
    """The area of two boxes in common."""
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else both.width * both.height

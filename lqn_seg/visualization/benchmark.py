"""Plots of a benchmark: time by layer, time and arithmetic by size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lqn_seg.visualization.files import save_figure

Results = Mapping[str, Any]
_MS, _GMACS = "#4269d0", "#ff725c"
# Sweeps in order, and what their axis is called.
_AXES = {
    "image_side_teacher": "image side (pixels)",
    "image_side_readout": "image side (pixels)",
    "positions": "positions per step",
    "steps": "steps N",
    "batch": "batch (students side by side)",
}


def draw_benchmark(results: Results, stem: Path) -> list[Path]:
    """One panel for depth, one for each sweep, of `lqn_seg.lab.benchmark`'s results."""
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    depth, *panels = figure.subplots(2, 3).flat
    _draw_depth(depth, results["depth"])
    for axes, (name, label) in zip(panels, _AXES.items()):
        _draw_sweep(axes, results["sweeps"][name], label)
    about, teacher = results["environment"], results["teacher"]
    figure.suptitle(
        f"{teacher['name']} on {about['device']}, {about['threads']} threads, students in "
        f"{teacher['precision']}; {about['date']}, commit {about['commit'][:12]}",
        fontsize="medium",
    )
    return save_figure(figure, stem)


def _draw_depth(axes: Axes, depth: Results) -> None:
    layers = depth["layers"]
    axes.plot(layers, depth["teacher_ms"], "o-", color=_GMACS, label="teacher, up to the layer")
    axes.plot(layers, depth["student_ms"], "s-", color=_MS, label="fitted student, that layer")
    axes.set_xlabel("layer")
    axes.set_ylabel("milliseconds")
    axes.set_ylim(bottom=0)
    axes.set_title("all tokens of one layer", fontsize="medium")
    axes.legend(fontsize="small")


def _draw_sweep(axes: Axes, sweep: Results, label: str) -> None:
    """Time and arithmetic, each over its own least value: the steeper line grows faster."""
    right = axes.twinx()
    span = max(max(sweep[key]) / min(sweep[key]) for key in ("ms", "gmacs"))
    for side, key, style, color in ((axes, "ms", "o-", _MS), (right, "gmacs", "s--", _GMACS)):
        values = sweep[key]
        side.loglog(sweep["sizes"], values, style, color=color)
        side.set_ylim(min(values) / 1.2, 1.2 * span * min(values))
        side.set_yticks(values, [f"{value:.4g}" for value in values], color=color)
        side.minorticks_off()
    axes.set_xticks(sweep["sizes"], [f"{size:g}" for size in sweep["sizes"]])
    axes.set_xlabel(f"{label}, log scale")
    axes.set_ylabel("milliseconds, log scale", color=_MS)
    right.set_ylabel("GMACs (multiply-add = 1), log scale", color=_GMACS)
    axes.set_title(
        f"{sweep['stage']}: time ~ size^{sweep['exponent']:.2f}, "
        f"GMACs ~ size^{sweep['exponent_gmacs']:.2f}",
        fontsize="medium",
    )

"""Plots of a study's ``results.json``: differences with intervals, cost, and curves of a sweep;
and of what a fit was like: its loss by step, its error by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lqn_seg.visualization.figures import save_figure
from lqn_seg.visualization.palette import SERIES_COLORS, SERIES_MARKERS

Results = Mapping[str, Any]


def draw_study(results: Results, stem: Path) -> list[Path]:
    """A row per table: difference to the baseline per condition, and its mean against cost."""
    tables = results["tables"]
    figure = Figure(figsize=(15, 4.2 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 2, squeeze=False, width_ratios=(2, 1))
    for (left, right), table in zip(axes, tables):
        _differences(left, results, table)
        _against_cost(right, results, table)
    return save_figure(figure, stem)


def draw_sweep(results: Results, stem: Path) -> list[Path]:
    """A row per teacher, run and severity: score, and difference to the baseline, per value."""
    rows: dict[tuple[Any, ...], list[Results]] = {}
    for table in results["tables"]:
        rows.setdefault((table["teacher"], table["run"], table["severity"]), []).append(table)
    figure = Figure(figsize=(14, 4.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), ((teacher, run, severity), tables) in zip(axes, rows.items()):
        _sweep(left, right, results, tables)
        damage = "" if severity is None else f", severity {severity}"
        name = tables[0]["name"] or f"run {run}"
        left.set_title(f"teacher {teacher}, {name}{damage}, {tables[0]['images']} images")
    return save_figure(figure, stem)


def draw_fit(results: Results, stem: Path) -> list[Path]:
    """Loss by step, error over variance and sensitivity by layer: one line per method.

    Args:
        results: method -> {"loss": by step, "error", "sensitivity": by layer}.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    losses, errors, seen = figure.subplots(1, 3)
    for k, (method, found) in enumerate(results.items()):
        style = {"color": SERIES_COLORS[k % len(SERIES_COLORS)], "label": method}
        # Losses of raw and of standardised targets have different units: each in its own first.
        loss = np.array(found["loss"])
        losses.plot(np.arange(1, len(loss) + 1), loss / loss[0], **style)
        marked = {**style, "marker": SERIES_MARKERS[k % len(SERIES_MARKERS)]}
        layers = np.arange(1, len(found["error"]) + 1)
        errors.plot(layers, found["error"], **marked)
        seen.plot(layers, found["sensitivity"], **marked)
    losses.set_xscale("log")
    losses.xaxis.set_major_formatter("{x:g}")
    losses.set_xlabel("Adam step (log scale)")
    losses.set_ylabel("loss / loss before the first step")
    errors.axhline(1, color="black", linewidth=0.8, linestyle=":", label="the mean token")
    errors.set_ylabel("squared error / variance of the teacher's tokens")
    seen.set_ylabel("variance over positions / the teacher's")
    for axes in (errors, seen):
        axes.set_xlabel("layer")
        axes.set_ylim(bottom=0)
    errors.legend(fontsize="small")
    return save_figure(figure, stem)


def _differences(axes: Axes, results: Results, table: Results) -> None:
    methods = {m: e for m, e in table["methods"].items() if "minus_baseline" in e}
    groups = list(next(iter(table["methods"].values()))["scores"])
    for k, (method, entry) in enumerate(methods.items()):
        offset = (k - (len(methods) - 1) / 2) * 0.8 / max(len(methods), 1)
        found = [entry["minus_baseline"][group] for group in groups]
        x = np.arange(len(groups)) + offset
        _whiskers(axes, x, found, _style(results, method), entry["title"], [table] * len(found))
    axes.axhline(0, color="black", linewidth=0.8)
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color="0.9", linewidth=0.8)
    names = [_readable(group) for group in groups]
    axes.set_xticks(range(len(groups)), names, rotation=20, ha="right")
    axes.set_xlabel("images")
    axes.set_ylabel(_difference_label(results))
    axes.set_title(table["heading"])


def _against_cost(axes: Axes, results: Results, table: Results) -> None:
    group = list(next(iter(table["methods"].values()))["scores"])[-1]
    for method, entry in table["methods"].items():
        zero = {"difference": 0.0, "low": 0.0, "high": 0.0}  # the baseline, to itself
        found = entry.get("minus_baseline", {}).get(group, zero)
        x = np.array([entry["milliseconds"]["total"]])
        _whiskers(axes, x, [found], _style(results, method), entry["title"], [table])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.5, max(high * 1.5, low * 10))  # at least a decade: ticks stay readable
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("milliseconds per image (log scale)")
    axes.set_ylabel(_difference_label(results))
    axes.set_title(f"{_readable(group)}, against cost")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _sweep(left: Axes, right: Axes, results: Results, tables: Sequence[Results]) -> None:
    sweep = results["sweep"]
    values = [table["value"] for table in tables]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    x = np.array(values, dtype=float) if numeric else np.arange(len(values), dtype=float)
    groups = list(next(iter(tables[0]["methods"].values()))["scores"])
    shown = dict.fromkeys((groups[0], groups[-1]))  # clean, and the mean of the corruptions
    for method, entry in tables[0]["methods"].items():
        for group, line in zip(shown, ("--", "-")):
            style = _style(results, method)
            entries = [table["methods"][method] for table in tables]
            label = f"{entry['title']}, {_readable(group)}"
            scores = np.array([e["scores"][group] for e in entries], dtype=float)
            left.plot(x, scores, linestyle=line, label=label, **style)
            if "minus_baseline" in entry:
                found = [e["minus_baseline"][group] for e in entries]
                _whiskers(right, x, found, {**style, "linestyle": line}, label, tables)
    right.axhline(0, color="black", linewidth=0.8)
    left.set_ylabel(f"{results['metric']} (0-100), {results['dataset']}")
    right.set_ylabel(_difference_label(results))
    for axes in (left, right):
        axes.set_xlabel(sweep["label"])
        if not numeric:
            axes.set_xticks(x, [table["value_name"] for table in tables], rotation=20, ha="right")
    lines, names = left.get_legend_handles_labels()
    if sweep["paper"]:
        places = {str(value): place for value, place in zip(values, x)}
        points = [(places.get(str(v), v), score) for v, score in sweep["paper"]]
        theirs = left.twinx()
        style = {"color": "black", "linestyle": ":", "marker": "*", "markersize": 10}
        lines += theirs.plot(*zip(*points), label="published", **style)
        names.append("published (right-hand axis)")
        theirs.set_ylabel(fill(f"published: {sweep['paper_label']}", 40))
    left.legend(lines, names, fontsize="small")
    if len(tables[0]["methods"]) > 1:
        right.legend(fontsize="small")


def _whiskers(
    axes: Axes,
    x: np.ndarray,
    found: Sequence[Results],
    style: dict[str, Any],
    label: str,
    tables: Sequence[Results],
) -> None:
    """Differences with their intervals; what is undefined is left out, and of too few images the
    interval.

    Args:
        tables: that each difference is of.
    """
    middle, low, high = (
        np.array([f[key] for f in found], dtype=float) for key in ("difference", "low", "high")
    )
    shown = np.array([table.get("has_intervals", True) for table in tables])
    below, above = (
        np.where(shown, np.clip(side, 0, None), np.nan) for side in (middle - low, high - middle)
    )
    style = {"linestyle": "none", **style}
    axes.errorbar(x, middle, (below, above), label=label, capsize=2, markersize=4, **style)


def _style(results: Results, method: str) -> dict[str, Any]:
    """A method looks the same in every table of a study."""
    methods = list(dict.fromkeys(m for table in results["tables"] for m in table["methods"]))
    place = methods.index(method)
    return {
        "color": SERIES_COLORS[place % len(SERIES_COLORS)],
        "marker": SERIES_MARKERS[place % len(SERIES_MARKERS)],
    }


def _difference_label(results: Results) -> str:
    return f"{results['metric']} minus that of {results['baseline']}\n(95% interval)"


def _readable(group: str) -> str:
    return group.rsplit("-", 1)[0].replace("_", " ")

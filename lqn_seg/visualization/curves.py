"""Plots of a study's ``results.json``: differences with intervals, cost, curves of a sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lqn_seg.visualization.files import save_figure
from lqn_seg.visualization.palette import series_style

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


def _differences(axes: Axes, results: Results, table: Results) -> None:
    methods = {m: e for m, e in table["methods"].items() if "minus_baseline" in e}
    groups = _groups(table)
    for k, (method, entry) in enumerate(methods.items()):
        x = np.arange(len(groups)) + (k - (len(methods) - 1) / 2) * 0.8 / len(methods)
        differences = [entry["minus_baseline"][group] for group in groups]
        style = {**method_style(results, method), "label": entry["title"]}
        add_whiskers(axes, x, differences, style, [table] * len(groups))
    axes.axhline(0, color="black", linewidth=0.8)
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color="0.9", linewidth=0.8)
    axes.set_xticks(range(len(groups)), map(readable, groups), rotation=20, ha="right")
    axes.set(xlabel="images", ylabel=difference_label(results), title=table["heading"])


def _against_cost(axes: Axes, results: Results, table: Results) -> None:
    group = _groups(table)[-1]
    for method, entry in table["methods"].items():
        zero = {"difference": 0.0, "low": 0.0, "high": 0.0}  # the baseline, to itself
        difference = entry.get("minus_baseline", {}).get(group, zero)
        x = np.array([entry["milliseconds"]["total"]])
        style = {**method_style(results, method), "label": entry["title"]}
        add_whiskers(axes, x, [difference], style, [table])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.5, max(high * 1.5, low * 10))  # at least a decade: ticks stay readable
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="milliseconds per image (log scale)", ylabel=difference_label(results))
    axes.set_title(f"{readable(group)}, against cost")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _sweep(left: Axes, right: Axes, results: Results, tables: Sequence[Results]) -> None:
    sweep, values = results["sweep"], [table["value"] for table in tables]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    x = np.array(values, dtype=float) if numeric else np.arange(len(values), dtype=float)
    groups = _groups(tables[0])
    for method, entry in tables[0]["methods"].items():
        entries = [table["methods"][method] for table in tables]
        # Clean, and the mean of the corruptions.
        for group, line in zip(dict.fromkeys((groups[0], groups[-1])), ("--", "-")):
            label = f"{entry['title']}, {readable(group)}"
            style = {**method_style(results, method), "linestyle": line, "label": label}
            left.plot(x, np.array([e["scores"][group] for e in entries], dtype=float), **style)
            if "minus_baseline" in entry:
                add_whiskers(right, x, [e["minus_baseline"][group] for e in entries], style, tables)
    right.axhline(0, color="black", linewidth=0.8)
    left.set_ylabel(f"{results['metric']} (0-100), {results['dataset']}")
    right.set_ylabel(difference_label(results))
    for axes in (left, right):
        axes.set_xlabel(sweep["label"])
        if not numeric:
            axes.set_xticks(x, [table["value_name"] for table in tables], rotation=20, ha="right")
    lines, names = left.get_legend_handles_labels()
    if sweep["paper"]:
        x_of = dict(zip(map(str, values), x))
        points = [(x_of.get(str(v), v), score) for v, score in sweep["paper"]]
        published = left.twinx()
        xs, ys = zip(*points)
        lines += published.plot(xs, ys, "k*:", markersize=10, label="published")
        names.append("published (right-hand axis)")
        published.set_ylabel(fill(f"published: {sweep['paper_label']}", 40))
    left.legend(lines, names, fontsize="small")
    if len(tables[0]["methods"]) > 1:
        right.legend(fontsize="small")


def add_whiskers(
    axes: Axes,
    x: np.ndarray,
    differences: Sequence[Results],
    style: dict[str, Any],
    tables: Sequence[Results],
) -> None:
    """Differences, each of its table, with their intervals; what is undefined is left out, and of
    too few images the interval."""
    middle, low, high = (
        np.array([d[key] for d in differences], float) for key in ("difference", "low", "high")
    )
    shown = np.array([table.get("has_intervals", True) for table in tables])
    bars = [np.where(shown, side.clip(0), np.nan) for side in (middle - low, high - middle)]
    axes.errorbar(x, middle, bars, **{"linestyle": "none", "capsize": 2, "markersize": 4, **style})


def _groups(table: Results) -> list[str]:
    return list(next(iter(table["methods"].values()))["scores"])


def method_style(results: Results, method: str) -> dict[str, Any]:
    """A method looks the same in every table of a study."""
    methods = dict.fromkeys(m for table in results["tables"] for m in table["methods"])
    return series_style(list(methods).index(method))


def difference_label(results: Results) -> str:
    return f"{results['metric']} minus that of {results['baseline']}\n(95% interval)"


def readable(group: str) -> str:
    return group.rsplit("-", 1)[0].replace("_", " ")

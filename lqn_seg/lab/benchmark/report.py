"""A benchmark's results as tables and as ``benchmark.png`` (and ``.svg``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lqn_seg.lab.report.wording import number
from lqn_seg.visualization.benchmark import draw_benchmark

Results = Mapping[str, Any]


def report_text(results: Results) -> str:
    """All tables."""
    parts = [_heading(results), _teacher(results), _methods(results)]
    if results["references"]:
        parts.append(_references(results))
    if results["baselines"]:
        parts.append(_baselines(results))
    if results["sweeps"]:
        parts.append(_sweeps(results))
    return "\n\n".join(parts)


def write_report(results: Results, folder: Path) -> list[Path]:
    """``benchmark.txt``; with sweeps, ``benchmark.png``."""
    text = folder / "benchmark.txt"
    text.write_text(f"{report_text(results)}\n")
    written = [text]
    if results["sweeps"]:
        written += draw_benchmark(results, folder / "benchmark")
    return written


def _heading(results: Results) -> str:
    about, roofline = results["environment"], results["roofline"]
    peaks = ", ".join(f"{peak:.3g} in {p}" for p, peak in roofline["gmacs_per_ms"].items())
    return (
        f"{about['device']}, {about['threads']} threads, torch {about['torch']}; "
        f"{about['date']}, commit {about['commit'][:12]}; load {about['load']:.1f} at the start.\n"
        f"Roofline, measured: {peaks} GMACs/ms; copy {roofline['bytes_per_ms'] / 1e6:.3g} GB/s.\n"
        "Milliseconds are medians over "
        f"{results['settings']['repeats']} turns; busy is processor time, which other processes "
        "hardly touch.\nGMACs: multiply-add = 1, forward and backward."
    )


def _teacher(results: Results) -> str:
    teacher = results["teacher"]
    grid = " x ".join(map(str, (*teacher["grid"], teacher["width"])))
    rows = [
        [stage, *_time_cells(times), teacher["gmacs"][stage], 100 * teacher["fraction"][stage]]
        for stage, times in teacher["times"].items()
    ]
    title = (
        f"{teacher['name']}, {teacher['parameters'] / 1e6:.1f} M parameters (random), "
        f"{teacher['image_size'][0]} px, field {grid}, {teacher['precision']}"
    )
    headers = ["", "ms", "p95 ms", "busy ms", "GMACs", "% of roofline"]
    return f"{title}\n{tabulate(rows, headers, floatfmt='.1f')}"


def _methods(results: Results) -> str:
    rows = []
    for row in results["methods"]:
        fit, least = row["times"]["fit"], row["least_ms"]
        rows.append(
            [
                f"{row['method']} {row['precision']}",
                row["parameters"] / 1e6,
                *_time_cells(fit),
                row["times"]["readout"]["median_ms"],
                row["gmacs"]["fit"],
                row["peak_mib"],
                least["arithmetic"],
                least["memory"],
                100 * row["fraction_busy"],
                row["drift"],
            ]
        )
    headers = ["", "M\nparameters", "fit\nms", "fit\np95 ms", "fit\nbusy ms", "readout\nms"]
    headers += ["fit\nGMACs", "peak\nMiB", "roofline\narithmetic ms", "roofline\nmemory ms"]
    headers += ["% of roofline\n(busy)", "drift from\nfloat32"]
    formats = ("", *(".1f",) * (len(headers) - 2), ".1e")
    first = results["methods"][0] if results["methods"] else {"steps": 0, "positions": 0}
    title = f"students ({first['method']}: {first['steps']} steps, {first['positions']} positions)"
    return f"{title}\n{tabulate(rows, headers, floatfmt=formats, missingval='-')}"


def _references(results: Results) -> str:
    rows = []
    for row in results["references"]:
        for precision, ratio in row["ratio"].items():
            rows.append(
                [
                    f"{row['method']} {precision}",
                    row["reference"],
                    row["times"]["fit"]["median_ms"],
                    ratio,
                    row["ratio_busy"][precision],
                    row["loss_difference"],
                ]
            )
    headers = ["ours", "against", "its fit\nms", "ratio\n(wall)", "ratio\n(busy)"]
    headers.append("loss curves differ by\n(both in float32)")
    formats = ("", "", ".1f", ".2f", ".2f", ".1e")
    return "how much faster a fit is than the plain ways of doing the same (float32)\n" + tabulate(
        rows, headers, floatfmt=formats
    )


def _baselines(results: Results) -> str:
    rows = results["baselines"]
    ours = next((row for row in rows if row["method"] == "default"), None)
    lines = []
    for row in rows:
        without = row["teacher_ms"] + row["method_ms"]
        cells = [row["method"], row["views_ms"], row["teacher_ms"], row["method_ms"], without]
        if ours is not None:
            own = ours["teacher_ms"] + ours["method_ms"]
            cells += [without / own, (without + row["views_ms"]) / (own + ours["views_ms"])]
        lines.append(cells)
    headers = ["", "views\nms", "teacher\nms", "method\nms", "teacher + method\nms"]
    if ours is not None:
        headers += ["over default,\nwithout views", "over default,\nwith views"]
    settings = results["settings"]
    classes = settings["classes"] or 1000
    title = (
        f"one image, from pixels to class scores: {settings['views']} views, {classes} classes, "
        f"all in {results['teacher']['precision']}"
    )
    return f"{title}\n{tabulate(lines, headers, floatfmt='.1f')}"


def _sweeps(results: Results) -> str:
    rows = []
    for name, sweep in results["sweeps"].items():
        sizes = ", ".join(f"{size:g}" for size in sweep["sizes"])
        times = ", ".join(f"{ms:.1f}" for ms in sweep["ms"])
        what = name.removesuffix(f"_{sweep['stage']}").replace("_", " ")
        rows.append(
            [
                *(sweep["stage"], what, sizes, times),
                *(number(sweep[key], ".2f") for key in ("exponent", "exponent_gmacs")),
            ]
        )
    headers = ["stage", "against", "sizes", "ms", "exponent\nof time", "exponent\nof GMACs"]
    return "cost against size: cost ~ size^exponent\n" + tabulate(rows, headers, floatfmt=".2f")


def _time_cells(times: Mapping[str, float]) -> list[float]:
    return [times["median_ms"], times["p95_ms"], times["busy_ms"]]

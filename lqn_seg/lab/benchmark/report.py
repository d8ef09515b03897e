"""A benchmark's results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

Results = Mapping[str, Any]
# A column: its head, the format of its numbers.
Columns = Sequence[tuple[str, str]]
_TIMES = (("ms", ".1f"), ("p95 ms", ".1f"), ("busy ms", ".1f"))


def report_text(results: Results) -> str:
    further = {"references": _references, "baselines": _baselines}
    makers = [section for key, section in further.items() if results.get(key)]
    return "\n\n".join(make(results) for make in (_heading, _teacher, _methods, *makers))


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


def _table(title: str, rows: list[list[Any]], columns: Columns, missing: str = "") -> str:
    heads, formats = zip(*columns)
    return f"{title}\n{tabulate(rows, heads, floatfmt=formats, missingval=missing)}"


def _teacher(results: Results) -> str:
    teacher = results["teacher"]
    grid = " x ".join(map(str, (*teacher["grid"], teacher["width"])))
    title = (
        f"{teacher['name']}, {teacher['parameters'] / 1e6:.1f} M parameters (random), "
        f"{teacher['image_size'][0]} px, field {grid}, {teacher['precision']}"
    )
    rows = [
        [stage, *_times(times), teacher["gmacs"][stage], 100 * teacher["fraction"][stage]]
        for stage, times in teacher["times"].items()
    ]
    return _table(title, rows, (("", ""), *_TIMES, ("GMACs", ".1f"), ("% of roofline", ".1f")))


def _methods(results: Results) -> str:
    rows = [
        [
            f"{row['method']} {row['precision']}",
            row["parameters"] / 1e6,
            *_times(row["times"]["fit"]),
            row["times"]["query"]["median_ms"],
            row["gmacs"]["fit"],
            row["peak_mib"],
            row["least_ms"]["arithmetic"],
            row["least_ms"]["memory"],
            100 * row["fraction_busy"],
            row["drift"],
        ]
        for row in results["methods"]
    ]
    heads = ["M\nparameters", *(f"fit\n{head}" for head, _ in _TIMES), "query\nms", "fit\nGMACs"]
    heads += [
        "peak\nMiB",
        "roofline\narithmetic ms",
        "roofline\nmemory ms",
        "% of roofline\n(busy)",
    ]
    columns = [("", ""), *((head, ".1f") for head in heads), ("drift from\nfloat32", ".1e")]
    first = results["methods"][0] if results["methods"] else {"steps": 0, "positions": 0}
    title = f"students ({first['method']}: {first['steps']} steps, {first['positions']} positions)"
    return _table(title, rows, columns, missing="-")


def _references(results: Results) -> str:
    rows = [
        [
            f"{row['method']} {precision}",
            row["reference"],
            row["times"]["fit"]["median_ms"],
            ratio,
            row["ratio_busy"][precision],
        ]
        for row in results["references"]
        for precision, ratio in row["ratio"].items()
    ]
    columns = [("ours", ""), ("against", ""), ("its fit\nms", ".1f"), ("ratio\n(wall)", ".2f")]
    columns += [("ratio\n(busy)", ".2f")]
    title = "how much faster a fit is than APM's release (float32)"
    return _table(title, rows, columns)


def _baselines(results: Results) -> str:
    ours = {row["method"]: row for row in results["baselines"]}.get("default")
    rows = []
    for row in results["baselines"]:
        without = row["teacher_ms"] + row["method_ms"]
        cells = [row["method"], row["views_ms"], row["teacher_ms"], row["method_ms"], without]
        if ours is not None:
            whole = ours["teacher_ms"] + ours["method_ms"]
            cells += [without / whole, (without + row["views_ms"]) / (whole + ours["views_ms"])]
        rows.append(cells)
    heads = ["", "views\nms", "teacher\nms", "method\nms", "teacher + method\nms"]
    if ours is not None:
        heads += ["over default,\nwithout views", "over default,\nwith views"]
    settings = results["settings"]
    title = (
        f"one image, from pixels to class scores: {settings['views']} views, "
        f"{settings['classes'] or 1000} classes, all in {results['teacher']['precision']}"
    )
    return _table(title, rows, [(head, ".1f") for head in heads])


def _times(times: Mapping[str, float]) -> list[float]:
    return [times["median_ms"], times["p95_ms"], times["busy_ms"]]

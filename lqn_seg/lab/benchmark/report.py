"""A benchmark's results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lqn_seg.lab.report.wording import counted, table, wrapped

Results = Mapping[str, Any]
_TIMES = ("ms", "p95 ms", "busy ms")


def summary_text(results: Results) -> str:
    """One sentence and one table; of evaluations all tables."""
    if "end_to_end" in results:
        return _end_to_end(results)
    return "\n\n".join(filter(None, (_sentence(results), _summary(results))))


def report_text(results: Results) -> str:
    if "end_to_end" in results:
        return "\n\n".join((_about(results), _end_to_end(results)))
    further = {"references": _references, "baselines": _baselines}
    makers = [section for key, section in further.items() if results.get(key)]
    return "\n\n".join(make(results) for make in (_heading, _teacher, _methods, *makers))


def _heading(results: Results) -> str:
    roofline = results["roofline"]
    peaks = ", ".join(f"{peak:.3g} in {p}" for p, peak in roofline["gmacs_per_ms"].items())
    turns = counted(results["settings"]["repeats"], "turn")
    lines = (
        _about(results),
        f"Roofline, measured: {peaks} GMACs/ms; copy {roofline['bytes_per_ms'] / 1e6:.3g} GB/s.",
        f"Milliseconds are medians over {turns}; busy is processor time, which other processes "
        "hardly change. GMACs: multiply-add = 1, forward and backward.",
    )
    return "\n".join(map(wrapped, lines))


def _about(results: Results) -> str:
    about = results["environment"]
    threads = counted(int(about["threads"]), "thread")
    return wrapped(
        f"{about['device']}, {threads}, torch {about['torch']}; {about['date']}, commit "
        f"{about['commit'][:12]}; load {about['load']:.1f} at the start."
    )


def _pass_ms(results: Results) -> float:
    """Milliseconds of the teacher with its head."""
    return sum(times["median_ms"] for times in results["teacher"]["times"].values())


def _sentence(results: Results) -> str:
    """On the first student."""
    teacher, row = results["teacher"], next(iter(results["methods"]), None)
    if row is None:
        return ""
    ms = row["times"]["fit"]["median_ms"] + row["times"]["query"]["median_ms"]
    return wrapped(
        f"On one image, fit and query of {row['method']} in {row['precision']} take {ms:.1f} ms, "
        f"{ms / _pass_ms(results):.1f} times as long as {teacher['name']} with its head."
    )


def _summary(results: Results) -> str:
    rows = []
    for row in results["methods"]:
        fit, query = (row["times"][stage]["median_ms"] for stage in ("fit", "query"))
        ratio = (fit + query) / _pass_ms(results)
        cells = fit, query, ratio, row["gmacs"]["fit"], 100 * row["fraction_busy"]
        rows.append([f"{row['method']} {row['precision']}", *cells])
    heads = [
        "fit\nms",
        "query\nms",
        "fit + query,\nx teacher",
        "fit\nGMACs",
        "% of roofline\n(busy)",
    ]
    return table(rows, ["", *heads])


def _table(title: str, rows: list[list[Any]], heads: Sequence[str], forms: Sequence[str]) -> str:
    return f"{wrapped(title)}\n{table(rows, heads, forms)}"


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
    return _table(title, rows, ["", *_TIMES, "GMACs", "% of roofline"], [".1f"] * 5)


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
    heads = ["M\nparameters", *(f"fit\n{head}" for head in _TIMES), "query\nms", "fit\nGMACs"]
    heads += ["peak\nMiB", "arithmetic,\nleast ms", "memory,\nleast ms", "% of roofline\n(busy)"]
    heads += ["drift from\nfloat32"]
    first = results["methods"][0] if results["methods"] else {"steps": 0, "positions": 0}
    title = f"students ({first['method']}: {first['steps']} steps, {first['positions']} positions)"
    return _table(title, rows, ["", *heads], [*[".1f"] * 10, ".1e"])


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
    heads = ["ours", "against", "its fit\nms", "ratio\n(wall)", "ratio\n(busy)"]
    title = "how much faster a fit is than that of APM's release (float32)"
    return _table(title, rows, heads, ["", ".1f", ".2f", ".2f"])


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
    return _table(title, rows, heads, [".1f"] * (len(heads) - 1))


def _end_to_end(results: Results) -> str:
    return "\n\n".join(_stages(row, results["settings"]) for row in results["end_to_end"])


def _stages(row: Results, settings: Results) -> str:
    """One scene: milliseconds per image and share of the total, by stage and method."""
    methods = row["methods"]
    stages = next(iter(methods.values()))
    wholes = {method: by_stage["total"]["ms"] for method, by_stage in methods.items()}
    rows: list[list[Any]] = []
    for stage in stages:
        took = {method: by_stage[stage]["ms"] for method, by_stage in methods.items()}
        if any(took.values()):
            pairs = ([ms, 100 * ms / wholes[method]] for method, ms in took.items())
            rows.append([stage, *(value for pair in pairs for value in pair)])
    busy = ([by_stage["total"]["busy_ms"], None] for by_stage in methods.values())
    rows.append(["processor time", *(value for pair in busy for value in pair)])
    title = (
        f"{row['scene']}: from an image file to its stored result, milliseconds per image and % of "
        f"the total. {row['teacher']} in {row['precision']}, {row['image_size'][0]} px, "
        f"{row['classes']} classes, {', '.join(row['outputs'])}; "
        f"{counted(row['images'], 'image')}, batch {row['batch']}, medians over "
        f"{counted(settings['repeats'], 'run')}."
    )
    heads = [head for method in methods for head in (f"{method}\nms", "\n%")]
    return _table(title, rows, ["", *heads], [".2f", ".1f"] * len(methods))


def _times(times: Mapping[str, float]) -> list[float]:
    return [times["median_ms"], times["p95_ms"], times["busy_ms"]]

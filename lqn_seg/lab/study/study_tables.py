"""A study's tables, made of what ``results.json`` holds: `results` of the study, `numbers` of one
of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.evaluation.bootstrap import PairedDifference
from lqn_seg.lab.report.report import CORRUPTED
from lqn_seg.lab.report.segmentation import STAGES
from lqn_seg.lab.report.wording import (
    counted,
    difference_table,
    interval_heading,
    interval_text,
    number,
    p_text,
    rank_text,
    short_name,
    table,
    title,
    wrapped,
)
from lqn_seg.lab.study.study_file import FOCUS
from lqn_seg.lab.study.study_numbers import Numbers, short_title


def intervals(by_group: Mapping[str, Numbers]) -> dict[str, PairedDifference]:
    return {group: PairedDifference(**x) for group, x in by_group.items()}


def units(results: Numbers, numbers: Numbers) -> int:
    """How many images, or blocks of neighbours, the bootstrap draws from."""
    return numbers["images"] // results["block"]


def compared_groups(numbers: Numbers) -> list[str]:
    """Clean, and what is compared."""
    return list(dict.fromkeys((CLEAN, numbers["compared"])))


def p_of(numbers: Numbers, x: Numbers) -> str:
    """A method's p-value after Holm; "-" of the baseline, and of too few images."""
    if not numbers["has_intervals"] or x.get("p") is None or x["p"] != x["p"]:
        return "-"
    is_least = x["p"] <= numbers["smallest_p"]  # no resample was on the other side
    return p_text(x["p_holm"], x["p_holm"] if is_least else 0)


def section(results: Numbers, numbers: Numbers) -> str:
    """Everything about one table: the comparison, scores, differences, classes, costs."""
    metric, baseline, methods = results["metric"], results["baseline"], numbers["methods"]
    count = units(results, numbers)
    parts = [f"## {numbers['heading']}", wrapped(comparison_heading(results, numbers))]
    parts += [comparison_table(results, numbers, "pipe"), *settings_note(numbers)]
    parts.append(_score_table(metric, methods))
    to_baseline = {m: x["minus_baseline"] for m, x in methods.items() if m != baseline}
    whose = f"that of {short_title(baseline)}"
    differences = {f"{metric} minus {whose}, {interval_heading(count)}": to_baseline}
    differences[f"{metric} of {short_title(FOCUS)} minus that of each other method, likewise"] = (
        numbers["focus_minus"]
    )
    for also, x in numbers["also"].items():
        differences[f"{also} minus {whose}, likewise"] = x["minus_baseline"]
    for heading, by_method in differences.items():
        if by_method:
            found = {m: intervals(x) for m, x in by_method.items()}
            name = partial(_title, numbers)
            shown = difference_table(found, count, short_name, name, style="pipe")
            parts += [wrapped(heading), shown]
    if to_baseline and numbers["classes"]["scores"][baseline]:
        parts += [wrapped(_class_heading(results, numbers)), _class_table(results, numbers)]
    parts += [_cost_table(methods), *_chosen(methods)]
    failed = "{title}: {fallbacks} fits failed; their images keep the teacher's prediction."
    parts += [failed.format(**x) for x in methods.values() if x["fallbacks"]]
    return "\n\n".join(parts)


def settings_note(numbers: Numbers) -> list[str]:
    """The settings that titles leave out, and which methods are continual, each in a sentence."""
    missing = [
        title(method)
        for method, x in numbers["methods"].items()
        if "(" in method and "=" not in method.partition("(")[0] and "(" not in x["title"]
    ]
    notes = [f"Settings: {'; '.join(missing)}."] if missing else []
    if names := [_title(numbers, method) for method in numbers["continual"]]:
        notes.append(
            f"{', '.join(names)}: continual, from image to image in the data set's order, anew for "
            "each condition. All other methods start afresh for every image."
        )
    return list(map(wrapped, notes))


def _title(numbers: Numbers, method: str) -> str:
    return numbers["methods"][method]["title"]


# ---- comparison ----------------------------------------------------------------------------------


def comparison_heading(results: Numbers, numbers: Numbers) -> str:
    """What the columns of `comparison_table` mean."""
    group, unit = short_name(numbers["compared"]), short_title(numbers["budget_unit"])
    comparisons = counted(len(numbers["methods"]) - 1, "comparison")
    tests = ""
    if numbers["has_intervals"]:
        tests = (
            "p of no difference (two-sided, bootstrap) after Holm's correction over "
            f"{comparisons}; rank with its 95% interval; "
        )
    return (
        f"{results['metric']}, compared on {group}: {tests}passes are multiply-adds, and time is "
        f"milliseconds, over those of {unit}; *: on the Pareto front, nothing reaches as much for "
        "less."
    )


def comparison_table(results: Numbers, numbers: Numbers, style: str = "simple") -> str:
    """A row per method: scores, the difference that is compared, p, rank, budget."""
    group, count = numbers["compared"], units(results, numbers)
    groups = compared_groups(numbers)
    heads = ["", *(g.replace(CORRUPTED, "mean\ncorrupted") for g in groups)]
    heads += [f"minus\n{short_title(results['baseline'])}", "p (Holm)", "rank"]
    heads += ["teacher\npasses", "time"]
    heads += [head for metric in numbers["also"] for head in (metric, "its\nminus")]
    if style == "pipe":
        heads = [head.replace("\n", " ") for head in heads]
    rows = [
        [x["title"], *(x["scores"][g] for g in groups), *_judged(numbers, x, group, count)]
        + [text for also in numbers["also"].values() for text in _other(also, m, group, count)]
        for m, x in numbers["methods"].items()
    ]
    fronts = numbers["front"]
    for row, method in zip(rows, numbers["methods"]):
        for k, axis in enumerate(fronts, start=len(groups) + 4):
            cost = number(numbers["methods"][method]["budget"][axis], ".2f")
            row[k] = f"{cost}{'*' if method in fronts[axis] else ' '}"
    return table(rows, heads, labels="right" if style == "pipe" else "left", style=style)


def _judged(numbers: Numbers, x: Numbers, group: str, count: int) -> list[Any]:
    """Difference, p and rank of a method; its budget is filled in by the caller."""
    difference = "-"
    if "minus_baseline" in x:
        difference = interval_text(PairedDifference(**x["minus_baseline"][group]), count)
    return [difference, p_of(numbers, x), rank_text(**x["rank"], images=count), "", ""]


def _other(also: Numbers, method: str, group: str, count: int) -> list[Any]:
    """Score and difference of another metric."""
    difference = also["minus_baseline"].get(method, {}).get(group)
    text = interval_text(PairedDifference(**difference), count) if difference else "-"
    return [also["scores"][method][group], text]


def _chosen(methods: Mapping[str, Numbers]) -> list[str]:
    """Which settings of a tuned method answered where."""
    sentences = []
    for x in methods.values():
        if "tuned" in x:
            where: dict[str, list[str]] = {}
            for condition, variant in x["tuned"]["chosen"].items():
                where.setdefault(variant, []).append(short_name(condition))
            used = "; ".join(f"{name} on {', '.join(names)}" for name, names in where.items())
            text = f"{x['title']}: settings that are best on the other corruptions: {used}."
            sentences.append(wrapped(text))
    return sentences


# ---- classes, scores, costs ----------------------------------------------------------------------


def _class_heading(results: Numbers, numbers: Numbers) -> str:
    group, baseline = short_name(numbers["compared"]), short_title(results["baseline"])
    return f"{results['metric']} of each class on {group}, and the difference to that of {baseline}"


def _class_table(results: Numbers, numbers: Numbers) -> str:
    by_method, count = numbers["classes"]["minus_baseline"], units(results, numbers)
    base = results["baseline"]
    rows = [
        [
            name,
            score,
            *(interval_text(PairedDifference(**x[name]), count) for x in by_method.values()),
        ]
        for name, score in numbers["classes"]["scores"][base].items()
    ]
    heads = ["class", short_title(base), *(_title(numbers, m) for m in by_method)]
    return table(rows, heads, labels="right", style="pipe")


def _score_table(metric: str, methods: Mapping[str, Numbers]) -> str:
    rows, spread = [], ""
    for x in methods.values():
        texts = {group: number(score) for group, score in x["scores"].items()}
        for group, deviation in x.get("deviation_over_seeds", {}).items():
            texts[group] += f" ± {number(deviation)}"
            spread = ", mean ± deviation over seeds"
        rows.append([x["title"], *texts.values()])
    shown = table(rows, ["", *map(short_name, texts)], labels="right", style="pipe")
    return f"{metric} (0-100{spread})\n\n{shown}"


def _cost_table(methods: Mapping[str, Numbers]) -> str:
    counts = {"gmacs_total": "GMACs", "gmacs_paper_convention": "GMACs (paper's)"}
    rows, keys = [], list(next(iter(methods.values()))["statistics"][CLEAN])
    for x in methods.values():
        sides = [x["statistics"][group] for group in (CLEAN, CORRUPTED) if group in x["statistics"]]
        means = [" / ".join(number(means[key], ".3f") for means in sides) for key in keys]
        gmacs = [number(x["gmacs"].get(key), ".2f") for key in counts]
        rows.append([x["title"], *x["milliseconds"].values(), *gmacs, *means])
    heads = ["", *(f"ms {stage}" for stage in (*STAGES, "total")), *counts.values(), *keys]
    shown = table(rows, heads, labels="right", style="pipe")
    heading = (
        "Cost per image: milliseconds (mean over all conditions), GMACs (multiply-add = 1, "
        "forward and backward; -: not counted). Other columns are means over images, clean / "
        "corrupted."
    )
    return f"{wrapped(heading)}\n\n{shown}"


# ---- sweep ---------------------------------------------------------------------------------------


def sweep_table(results: Numbers) -> str:
    """A table per curve (teacher, run, severity): a row per method, images, and value."""
    sweep, baseline = results["sweep"], short_title(results["baseline"])
    curves: dict[Any, list[Numbers]] = {}
    for numbers in results["tables"]:
        key = numbers["teacher"], numbers["run"], numbers["severity"]
        curves.setdefault(key, []).append(numbers)
    heads = ["method", "images", sweep["label"], results["metric"], f"minus {baseline}"]
    heads += ["paper"] if sweep["paper"] else []
    parts = [f"paper: {sweep['paper_label']}"] if sweep["paper"] else []
    for (teacher, run, severity), tables in curves.items():
        damage = "" if severity is None else f", severity {severity}"
        rows = [
            _sweep_cells(results, numbers, method, group)
            for method, x in tables[0]["methods"].items()
            for group in (CLEAN, CORRUPTED)
            if group in x["scores"]
            for numbers in tables
        ]
        parts.append(f"teacher {teacher}, {tables[0]['name'] or f'run {run}'}{damage}")
        parts.append(table(rows, heads, style="pipe"))
    return "\n\n".join(parts)


def _sweep_cells(results: Numbers, numbers: Numbers, method: str, group: str) -> list[str]:
    sweep, x, difference = results["sweep"], numbers["methods"][method], "-"
    if "minus_baseline" in x:
        interval = PairedDifference(**x["minus_baseline"][group])
        difference = interval_text(interval, units(results, numbers))
    cells = [x["title"], group, numbers["value_name"], number(x["scores"][group]), difference]
    if sweep["paper"]:  # of the whole method, on images as they are
        published = {str(value): score for value, score in sweep["paper"]}
        is_theirs = method == FOCUS and group == CLEAN
        cells.append(number(published.get(str(numbers["value"])) if is_theirs else None))
    return cells

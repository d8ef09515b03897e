"""The numbers of a study's tables: scores, differences, p-values, ranks, budgets.

One table per teacher, run, severity and value of the sweep. Scores are averaged over seeds; images
are resampled with all their seeds and conditions, so that every difference is paired and the mean
over corruptions has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES, paired_interval, resampled_totals
from lqn_seg.evaluation.comparisons import best_elsewhere, bootstrap_p, holm, ranks, smallest_p
from lqn_seg.lab.report.budget import budgets, fronts
from lqn_seg.lab.report.report import CORRUPTED, Scores, as_dicts, minus
from lqn_seg.lab.report.segmentation import STAGES
from lqn_seg.lab.report.wording import title
from lqn_seg.lab.study.study import Finished
from lqn_seg.lab.study.study_file import FOCUS, LOWER_IS_BETTER, Study, value_name, variants

Numbers = dict[str, Any]
Array = NDArray[np.float64]
UNIT = "teacher"  # whose cost is 1
_CLASSES = "by class"  # beside the names of metrics
# Statistics with columns of their own, or that say nothing about a method.
_SHOWN = {*(f"{stage}_ms" for stage in STAGES), "fallback", "windows"}


@dataclass
class Row:
    """A method of a table: what it is called, which method answers under each condition, and its
    scores by metric, (1 + samples, seeds, conditions) of all images and of each resample."""

    name: str
    title: str  # without settings, where no other row has the same
    sources: list[str]
    values: dict[str, Array]
    classes: Array  # (1 + samples, classes), of the conditions that are compared
    variants: list[str]  # that the sources were chosen from, if it was tuned

    def by_group(self, metric: str, groups: Mapping[str, list[int]]) -> dict[str, Array]:
        """(1 + samples,) means over the conditions of each group, and over seeds."""
        values = self.values[metric]
        return {group: values[:, :, columns].mean((1, 2)) for group, columns in groups.items()}


def short_title(method: str) -> str:
    """A method in a table; a study's teachers may be of several kinds."""
    return method if method == UNIT else title(method)


def table_heading(study: Study, jobs: Sequence[Finished], severity: int | None) -> str:
    job, sweep = jobs[0].job, study.sweep
    name = study.runs[job.run].name
    parts = [f"teacher {job.teacher}", f"run {job.run + 1}{f' ({name})' if name else ''}"]
    if sweep and job.value is not None:
        parts.append(f"{sweep.label} = {value_name(sweep.values[job.value])}")
    if severity is not None:
        parts.append(f"severity {severity}")
    seeds = [str(finished.job.seed) for finished in jobs]
    parts.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
    return f"{', '.join(parts)}, {job.images} images"


def table_numbers(study: Study, jobs: Sequence[Finished], severity: int | None) -> Numbers:
    """A teacher, run, severity and value of the sweep; a job per seed."""
    job, run, sweep = jobs[0].job, study.runs[jobs[0].job.run], study.sweep
    names = [CLEAN, *(str(c) for c in job.conditions[1:] if c.severity == severity)]
    groups = {name: [k] for k, name in enumerate(names)}
    if len(names) > 1:
        groups[CORRUPTED] = list(range(1, len(names)))
    rows = _rows(study, jobs, names)
    value = sweep.values[job.value] if sweep and job.value is not None else None
    return {
        "teacher": job.teacher,
        "heading": table_heading(study, jobs, severity),
        "run": job.run + 1,
        "name": run.name,
        "severity": severity,
        "value": value,
        "value_name": value_name(value) if sweep else None,
        "seeds": [finished.job.seed for finished in jobs],
        "images": job.images,
        "has_intervals": job.images // study.block >= FEWEST_IMAGES,
        "overrides": [list(pair) for pair in run.pairs],
        "compared": list(groups)[-1],
        "continual": [row.name for row in rows if jobs[0].continual & {*row.sources}],
        **_compared(study, jobs, rows, names, groups),
    }


# ---- rows ----------------------------------------------------------------------------------------


def _rows(study: Study, jobs: Sequence[Finished], names: Sequence[str]) -> list[Row]:
    """A row per method, and one of all settings of a method that is tuned, where its first was."""
    methods = jobs[0].job.methods
    rows: list[Row] = []
    taken: set[str] = set()
    for method in methods:
        base = method.partition("(")[0]
        settings = variants(base, methods) if base in study.tuned else []
        if method in taken:
            continue
        taken.update(settings)
        is_tuned = len(settings) > 1
        rows.append(_row(study, jobs, names, method, settings if is_tuned else []))
    return rows


def _row(
    study: Study, jobs: Sequence[Finished], names: Sequence[str], method: str, settings: list[str]
) -> Row:
    found = [_values(study, jobs, names, source) for source in settings or [method]]
    corrupted = list(range(1, len(names)))
    base = method.partition("(")[0]
    if settings:  # the choice is made again in every resample, so that intervals hold it
        means = np.stack([values[study.metric].mean(1) for values in found])
        chosen = best_elsewhere(means, corrupted, study.metric in LOWER_IS_BETTER)
        sources = [settings[k] for k in chosen[0]]
        values = {metric: _picked([v[metric] for v in found], chosen) for metric in found[0]}
        name, shown = f"{base}, tuned", f"{short_title(base)}, tuned"
    else:
        values, sources = found[0], [method] * len(names)
        is_alone = len(variants(base, jobs[0].job.methods)) == 1
        name, shown = method, short_title(base if is_alone else method)
    by_class = values.pop(_CLASSES)[:, :, corrupted or [0]].mean((1, 2))
    return Row(name, shown, sources, values, by_class, settings)


def _picked(arrays: Sequence[Array], chosen: NDArray[np.int64]) -> Array:
    """Of (1 + samples, seeds, conditions, ...) arrays, for each resample and condition the one that
    is chosen there."""
    index = chosen[None, :, None, :]
    stacked = np.stack(arrays)
    index = index.reshape(*index.shape, *[1] * (stacked.ndim - index.ndim))
    return np.take_along_axis(stacked, index, axis=0)[0]


def _values(
    study: Study, jobs: Sequence[Finished], names: Sequence[str], method: str
) -> dict[str, Array]:
    """(1 + samples, seeds, conditions) scores by metric, and (..., classes) of the first metric:
    of all images, then of each resample."""
    result: dict[str, Array] = {}
    for metric, evaluator in jobs[0].evaluators.items():
        by_name = []
        for name in names:  # one condition's images in memory at a time
            stack = np.stack([f.lines[name][method].stacks[metric] for f in jobs], axis=1)
            by_name.append(resampled_totals(stack, study.bootstrap_samples, block=study.block))
        totals = np.stack(by_name, axis=2)
        result[metric] = evaluator.metric(totals)
        if metric == study.metric:
            result[_CLASSES] = evaluator.per_class(totals)
    return result


# ---- comparisons ---------------------------------------------------------------------------------


def _compared(
    study: Study,
    jobs: Sequence[Finished],
    rows: Sequence[Row],
    names: Sequence[str],
    groups: Mapping[str, list[int]],
) -> Numbers:
    """What a table says of its rows, one by one and against each other."""
    group, lower = list(groups)[-1], study.metric in LOWER_IS_BETTER
    scores = {row.name: row.by_group(study.metric, groups) for row in rows}
    compared = [row.name for row in rows if row.name != study.baseline]
    p_values = [bootstrap_p(scores[m][group], scores[study.baseline][group]) for m in compared]
    p_of = dict(zip(compared, zip(p_values, holm(p_values))))
    ranked = ranks(np.stack([scores[row.name][group] for row in rows]), lower)
    differences = as_dicts({m: minus(scores, m, study.baseline) for m in compared})
    keys = _statistics(jobs, rows)
    methods: dict[str, Numbers] = {}
    for row, rank in zip(rows, ranked):
        methods[row.name] = {
            "title": row.title,
            **_scores(study, jobs, row, groups),
            "rank": rank._asdict(),
            **_costs(jobs, row, names, groups, keys),
        }
        if row.name in compared:
            raw, adjusted = p_of[row.name]
            methods[row.name] |= {
                "minus_baseline": differences[row.name],
                "p": raw,
                "p_holm": adjusted,
            }
        if row.variants:
            methods[row.name]["tuned"] = {
                "variants": row.variants,
                "chosen": dict(zip(names, row.sources)),
            }
    rivals = [m for m in compared if m != FOCUS and FOCUS in compared]
    return {
        "smallest_p": smallest_p(study.bootstrap_samples),
        **_budget(study, methods, group),
        "methods": methods,
        "focus_minus": as_dicts({m: minus(scores, FOCUS, m) for m in rivals}),
        "also": {metric: _also(study, rows, metric, groups) for metric in study.also},
        "classes": _by_class(study, jobs, rows),
    }


def _scores(
    study: Study, jobs: Sequence[Finished], row: Row, groups: Mapping[str, list[int]]
) -> Numbers:
    """Of all images: means over seeds, each seed's, and their deviation."""
    scores = row.by_group(study.metric, groups)
    first = row.values[study.metric][0]  # (seeds, conditions)
    by_seed = {group: first[:, columns].mean(-1) for group, columns in groups.items()}
    result: Numbers = {
        "scores": {group: float(values[0]) for group, values in scores.items()},
        "scores_by_seed": {
            str(f.job.seed): {group: float(values[k]) for group, values in by_seed.items()}
            for k, f in enumerate(jobs)
        },
    }
    if len(jobs) > 1:
        deviations = {group: float(values.std(ddof=1)) for group, values in by_seed.items()}
        result["deviation_over_seeds"] = deviations
    return result


def _also(
    study: Study, rows: Sequence[Row], metric: str, groups: Mapping[str, list[int]]
) -> Numbers:
    """Scores and differences of another metric, by method and group."""
    scores: Scores = {row.name: row.by_group(metric, groups) for row in rows}
    compared = [m for m in scores if m != study.baseline]
    return {
        "scores": {
            m: {group: float(values[0]) for group, values in by_group.items()}
            for m, by_group in scores.items()
        },
        "minus_baseline": as_dicts({m: minus(scores, m, study.baseline) for m in compared}),
    }


def _by_class(study: Study, jobs: Sequence[Finished], rows: Sequence[Row]) -> Numbers:
    """Scores and differences of each class that occurs, by method."""
    values = {row.name: row.classes for row in rows}
    base = values[study.baseline]
    names = {
        k: name
        for k, name in enumerate(jobs[0].evaluators[study.metric].classes)
        if not np.isnan(base[0, k])
    }
    return {
        "scores": {m: {n: float(x[0, k]) for k, n in names.items()} for m, x in values.items()},
        "minus_baseline": as_dicts(
            {
                m: {n: paired_interval(x[:, k], base[:, k]) for k, n in names.items()}
                for m, x in values.items()
                if m != study.baseline
            }
        ),
    }


# ---- costs ---------------------------------------------------------------------------------------


def _statistics(jobs: Sequence[Finished], rows: Sequence[Row]) -> list[str]:
    """Statistics that any method has."""
    clean = jobs[0].lines[CLEAN]
    present = dict.fromkeys(key for row in rows for s in clean[row.sources[0]].stats for key in s)
    return [key for key in present if key not in _SHOWN]


def _costs(
    jobs: Sequence[Finished],
    row: Row,
    names: Sequence[str],
    groups: Mapping[str, list[int]],
    keys: Sequence[str],
) -> Numbers:
    """Milliseconds, GMACs, failed fits and statistics: means of what answered under each
    condition."""

    # Lines may lie on a disk: each is asked for once.
    by_name = [[s for f in jobs for s in f.lines[n][m].stats] for n, m in zip(names, row.sources)]
    every = [s for stats in by_name for s in stats]
    times = {stage: _mean(every, f"{stage}_ms") for stage in STAGES}
    return {
        "milliseconds": {**times, "total": sum(ms for ms in times.values() if ms == ms)},
        "gmacs": _mean_gmacs(jobs[0].gmacs, row.sources),
        "statistics": {
            group: {key: _mean([s for k in columns for s in by_name[k]], key) for key in keys}
            for group, columns in groups.items()
        },
        "fallbacks": int(sum(s.get("fallback", 0) for s in every)),
    }


def _mean_gmacs(gmacs: Mapping[str, dict[str, float]], sources: Sequence[str]) -> dict[str, float]:
    """Over the conditions; empty where one is not counted."""
    used = [gmacs.get(source, {}) for source in sources]
    if len(set(sources)) == 1 or not all(used):
        return used[0] if all(used) else {}
    return {key: float(np.mean([counts[key] for counts in used])) for key in used[0]}


def _mean(stats: Sequence[dict[str, float]], key: str) -> float:
    """Over the images that have the statistic; NaN without any."""
    values = [s[key] for s in stats if key in s]
    return float(np.mean(values)) if values else float("nan")


def _budget(study: Study, methods: dict[str, Numbers], group: str) -> Numbers:
    """Adds each method's ``budget``; returns whose cost is 1, and the methods on the fronts."""
    unit = UNIT if UNIT in methods else study.baseline
    gmacs = {m: x["gmacs"].get("gmacs_total", float("nan")) for m, x in methods.items()}
    costs = budgets(gmacs, {m: x["milliseconds"]["total"] for m, x in methods.items()}, unit)
    sign = -1 if study.metric in LOWER_IS_BETTER else 1
    gains = {}
    for method, x in methods.items():
        x["budget"] = costs[method]
        gains[method] = sign * x["scores"][group]
    return {"budget_unit": unit, "front": fronts(costs, gains)}

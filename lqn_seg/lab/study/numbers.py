"""What a study found, as ``results.json`` holds it: tables and plots are made from these numbers.

One table per teacher, run, severity and value of the sweep. Scores are averaged over seeds; images
are resampled with all their seeds and conditions, so that every difference is paired and the mean
over corruptions has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES, resampled_totals
from lqn_seg.lab.report.report import CORRUPTED, Scores, as_dicts, minus
from lqn_seg.lab.report.segmentation import STAGES
from lqn_seg.lab.report.wording import title
from lqn_seg.lab.study.study import Finished
from lqn_seg.lab.study.study_file import FOCUS, Study, value_name

# Statistics with columns of their own, or that say nothing about a method.
_SHOWN = {*(f"{stage}_ms" for stage in STAGES), "fallback", "windows"}


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


def table_numbers(study: Study, jobs: Sequence[Finished], severity: int | None) -> dict[str, Any]:
    """A teacher, a run, a severity (None of clean images alone) and a value of the sweep; a job per
    seed."""
    job, run, sweep = jobs[0].job, study.runs[jobs[0].job.run], study.sweep
    names = [CLEAN, *(str(c) for c in job.conditions[1:] if c.severity == severity)]
    groups = {name: [k] for k, name in enumerate(names)}
    if len(names) > 1:
        groups[CORRUPTED] = list(range(1, len(names)))
    # Method -> (1 + samples, seeds, conditions) scores: of all images, then of each resample.
    quality = {}
    for method in job.methods:
        stacks = [[f.lines[name][method].stack for name in names] for f in jobs]
        images_first = np.stack([np.stack(by_name, axis=1) for by_name in stacks], axis=1)
        totals = resampled_totals(images_first, study.bootstrap_samples, block=study.block)
        quality[method] = jobs[0].metric(totals)
    scores: Scores = {
        method: {group: values[:, :, columns].mean((1, 2)) for group, columns in groups.items()}
        for method, values in quality.items()
    }
    compared = [method for method in job.methods if method != study.baseline]
    differences = as_dicts({m: minus(scores, m, study.baseline) for m in compared})
    rivals = [m for m in compared if m != FOCUS and FOCUS in compared]
    methods: dict[str, dict[str, Any]] = {}
    for method in job.methods:
        by_seed = {g: quality[method][0][:, columns].mean(-1) for g, columns in groups.items()}
        methods[method] = {
            "title": title(method),
            "scores": {group: float(values[0]) for group, values in scores[method].items()},
            "scores_by_seed": {
                str(f.job.seed): {group: float(values[k]) for group, values in by_seed.items()}
                for k, f in enumerate(jobs)
            },
            **_costs(jobs, job.methods, method, names, groups),
        }
        if len(jobs) > 1:
            deviations = {group: float(values.std(ddof=1)) for group, values in by_seed.items()}
            methods[method]["deviation_over_seeds"] = deviations
        if method in compared:
            methods[method]["minus_baseline"] = differences[method]
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
        "methods": methods,
        "focus_minus": as_dicts({m: minus(scores, FOCUS, m) for m in rivals}),
    }


def _costs(
    jobs: Sequence[Finished],
    methods: Sequence[str],
    method: str,
    names: Sequence[str],
    groups: dict[str, list[int]],
) -> dict[str, Any]:
    """Milliseconds, GMACs, failed fits, and means of the statistics that any method has."""

    def stats(columns: Sequence[int]) -> list[dict[str, float]]:
        return [s for f in jobs for k in columns for s in f.lines[names[k]][method].stats]

    every, clean = stats(range(len(names))), jobs[0].lines[CLEAN]
    present = dict.fromkeys(key for m in methods for s in clean[m].stats for key in s)
    keys = [key for key in present if key not in _SHOWN]
    times = {stage: _mean(every, f"{stage}_ms") for stage in STAGES}
    total = sum(ms for ms in times.values() if ms == ms)
    return {
        "milliseconds": {**times, "total": total},
        "gmacs": jobs[0].gmacs.get(method, {}),
        "statistics": {
            group: {key: _mean(stats(columns), key) for key in keys}
            for group, columns in groups.items()
        },
        "fallbacks": int(sum(s.get("fallback", 0) for s in every)),
    }


def _mean(stats: Sequence[dict[str, float]], key: str) -> float:
    """Over the images that have the statistic; NaN without any."""
    values = [s[key] for s in stats if key in s]
    return float(np.mean(values)) if values else float("nan")

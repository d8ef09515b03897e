"""What is printed, written and drawn of a study: Markdown, ``results.json``, a plot.

One table per teacher, run, severity and value of the sweep. Scores are averaged over seeds; images
are resampled with all their seeds and conditions, so that every difference is paired and the mean
over corruptions has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.engine.store import write_atomically
from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES, PairedDifference, resampled_totals
from lqn_seg.lab.report.attempt import attempt, made
from lqn_seg.lab.report.provenance import environment, json_numbers, write_json
from lqn_seg.lab.report.report import CORRUPTED, Scores, as_dicts, minus
from lqn_seg.lab.report.segmentation import STAGES
from lqn_seg.lab.report.wording import (
    difference_table,
    interval_heading,
    interval_text,
    number,
    short_name,
    table,
    title,
    verdict_on,
    wrapped,
)
from lqn_seg.lab.study.study import NONE, Finished, check_frozen, plan, run_jobs, study_hashes
from lqn_seg.lab.study.study_file import FOCUS, LOWER_IS_BETTER, Study, load_study, value_name

Numbers = dict[str, Any]
# Statistics with columns of their own, or that say nothing about a method.
_SHOWN = {*(f"{stage}_ms" for stage in STAGES), "fallback", "windows"}


def _title(method: str) -> str:
    """A method in a table; a study's teachers may be of several kinds."""
    return method if method == "teacher" else title(method)


class StudyReport:
    """What is printed, written and drawn about a finished study of `total` images; ``results.json``
    holds its `results`, and `failed` a sentence for each part that could not be made."""

    def __init__(
        self,
        study: Study,
        finished: Sequence[Finished],
        hashes: dict[str, str],
        total: int,
        failed: list[str],
    ) -> None:
        self.study, self.failed = study, failed
        tables: list[Numbers] = []
        for _, group in groupby(finished, lambda f: (f.job.teacher, f.job.run, f.job.value)):
            jobs = list(group)
            for severity in dict.fromkeys(c.severity for c in jobs[0].job.conditions[1:]) or [None]:
                complaint = f"there are no numbers of {table_heading(study, jobs, severity)}"
                find = partial(table_numbers, study, jobs, severity)
                tables += filter(None, [attempt(complaint, find, None, failed)])
        keys = ("config", "dataset", "metric", "baseline", "splits", "block", "bootstrap_samples")
        self.results: Numbers = {
            "study": study.name,
            "environment": environment(finished[0].job.cfg.MODEL.LQN.EVAL.THREADS),
            **{key: getattr(study, key) for key in keys},
            "focus": FOCUS,
            "images_in_dataset": total,
            "hashes": hashes,
            "frozen": sorted(study.frozen),
            "sweep": study.sweep and structs.asdict(study.sweep),
            "tables": tables,
            "report_failures": failed,
        }

    # ---- text ------------------------------------------------------------------------------------

    def markdown(self) -> str:
        makers = {"the sweep": self._sweep_table} if self.study.sweep else {}
        for numbers in self.results["tables"]:
            makers[numbers["heading"]] = partial(self._section, numbers)
        parts = (made(name, make, self.failed) for name, make in makers.items())
        return "\n\n".join([*self._head(), *filter(None, parts)]) + "\n"

    def summary(self) -> str:
        """A sentence on each table, and of each its scores, one difference and one cost; of a sweep
        its table."""
        makers = {"the sweep": self._sweep_table} if self.study.sweep else {}
        for numbers in () if makers else self.results["tables"]:
            makers[numbers["heading"]] = partial(self._summary_of, numbers)
        parts = (made(name, make, self.failed) for name, make in makers.items())
        return "\n\n".join([f"study {self.study.name}: {self._counts()}", *filter(None, parts)])

    def _counts(self) -> str:
        study = self.study
        of = _of(study.classes)
        return f"{study.metric}{of} on {study.dataset} ({self.results['images_in_dataset']} images)"

    def _summary_of(self, numbers: Numbers) -> str:
        methods, baseline = numbers["methods"], _title(self.study.baseline)
        units = numbers["images"] // self.study.block
        groups = [
            g for g in (CLEAN, CORRUPTED) if g in numbers["methods"][self.study.baseline]["scores"]
        ]
        gmacs = {m: x["gmacs"].get("gmacs_total", float("nan")) for m, x in methods.items()}
        factors = {m: value / gmacs[self.study.baseline] for m, value in gmacs.items()}
        found = {
            m: _differences(x["minus_baseline"])
            for m, x in methods.items()
            if "minus_baseline" in x
        }
        rows = []
        for method, x in methods.items():
            text = interval_text(found[method][groups[-1]], units) if method in found else "-"
            rows.append([x["title"], *(x["scores"][g] for g in groups), text, factors[method]])
        shown = table(rows, ["", *groups, f"minus\n{baseline}", f"multiply-adds,\nx {baseline}"])
        sentence = ""
        if FOCUS in found:
            count, by_group = len(found[FOCUS]) - len(groups), found[FOCUS]
            corrupted = (count, by_group[CORRUPTED]) if count else None
            where = numbers["images"], by_group[CLEAN], corrupted, f" {self.study.metric}"
            other = "its teacher" if self.study.baseline == "teacher" else baseline
            how = factors[FOCUS], other, units, self.study.metric in LOWER_IS_BETTER
            sentence = verdict_on(_title(FOCUS), *where, *how)
        parts = filter(None, [numbers["heading"], sentence])
        return "\n\n".join([*map(wrapped, parts), shown])

    def _head(self) -> list[str]:
        study, machine, hashes = self.study, self.results["environment"], self.results["hashes"]
        blocks = "" if study.block == 1 else f" in blocks of {study.block} neighbours"
        head = [
            f"# Study {study.name}: {study.dataset}",
            f"{self._counts()}, starting from `{study.config}`, scored by the native engine. "
            "Differences are paired. Their 95% intervals are percentiles of "
            f"{study.bootstrap_samples} bootstrap resamples of the images{blocks}, each image with "
            "all its conditions and seeds.",
            f"Machine: {machine['device']}, {machine['threads']} threads, torch "
            f"{machine['torch']}.",
        ]
        if study.splits:
            head.append(f"Splits: {' '.join(study.splits.split())}")
        frozen = {name: " (frozen)" for name in study.frozen}
        sums = [f"- {name}: `{x}`{frozen.get(name, '')}" for name, x in hashes.items()]
        bare = [name for name in study.teachers if hashes[f"calibration/{name}"] == NONE]
        if bare:
            head.append(
                f"Without a calibration (teacher {', '.join(bare)}) nothing is aligned, and a "
                "method mixed by noise predicts what its teacher predicts. `lqn-seg calibrate` "
                "makes a calibration."
            )
        return [*map(wrapped, head), "\n".join(["SHA-256:", "", *sums])]

    def _section(self, numbers: Numbers) -> str:
        """A table of scores, two of differences, and one of costs."""
        metric, baseline, methods = self.study.metric, self.study.baseline, numbers["methods"]
        units = numbers["images"] // self.study.block
        parts = [f"## {numbers['heading']}", _score_table(metric, methods)]
        to_baseline = {m: x["minus_baseline"] for m, x in methods.items() if m != baseline}
        to_others = numbers["focus_minus"]
        for heading, differences in (
            (f"{metric} minus that of {_title(baseline)}, {interval_heading(units)}", to_baseline),
            (f"{metric} of {_title(FOCUS)} minus that of each other method, likewise", to_others),
        ):
            if differences:
                intervals = {m: _differences(by_group) for m, by_group in differences.items()}
                shown = difference_table(intervals, units, short_name, style="pipe")
                parts += [wrapped(heading), shown]
        parts.append(_cost_table(methods))
        failed = "{title}: {fallbacks} fits failed; their images keep the teacher's prediction."
        parts += [failed.format(**x) for x in methods.values() if x["fallbacks"]]
        return "\n\n".join(parts)

    def _sweep_table(self) -> str:
        """A table per curve (teacher, run, severity): a row per method, images, and value."""
        sweep, baseline = self.study.sweep, self.study.baseline
        assert sweep is not None
        curves: dict[Any, list[Numbers]] = {}
        for numbers in self.results["tables"]:
            key = numbers["teacher"], numbers["run"], numbers["severity"]
            curves.setdefault(key, []).append(numbers)
        heads = ["method", "images", sweep.label, self.study.metric, f"minus {_title(baseline)}"]
        heads += ["paper"] if sweep.paper else []
        parts = [f"paper: {sweep.paper_label}"] if sweep.paper else []
        for (teacher, run, severity), tables in curves.items():
            damage = "" if severity is None else f", severity {severity}"
            rows = [
                self._sweep_cells(numbers, method, group)
                for method, x in tables[0]["methods"].items()
                for group in (CLEAN, CORRUPTED)
                if group in x["scores"]
                for numbers in tables
            ]
            parts.append(f"teacher {teacher}, {tables[0]['name'] or f'run {run}'}{damage}")
            parts.append(table(rows, heads, style="pipe"))
        return "\n\n".join(parts)

    def _sweep_cells(self, numbers: Numbers, method: str, group: str) -> list[str]:
        sweep, x, difference = self.study.sweep, numbers["methods"][method], "-"
        assert sweep is not None
        if "minus_baseline" in x:
            interval = PairedDifference(**x["minus_baseline"][group])
            difference = interval_text(interval, numbers["images"] // self.study.block)
        cells = [x["title"], group, numbers["value_name"], number(x["scores"][group]), difference]
        if sweep.paper:  # of the whole method, on images as they are
            published = {str(value): score for value, score in sweep.paper}
            is_theirs = method == FOCUS and group == CLEAN
            cells.append(number(published.get(str(numbers["value"])) if is_theirs else None))
        return cells

    # ---- files -----------------------------------------------------------------------------------

    def conclude(self, full: bool) -> list[Path]:
        """Write ``results.json``, print the summary and, if `full`, the tables, write them as
        ``table.md``, and draw ``plot.png``; an InputError if something cannot be written comes
        after the tables. Returns what was written."""
        from lqn_seg.visualization.curves import draw_study, draw_sweep

        folder, results = Path(self.study.output_dir), json_numbers(self.results)
        write = partial(write_json, folder / "results.json", results)
        attempt("the numbers are not written yet", write, None, self.failed)
        text = self.markdown()
        print(f"\n{self.summary()}\n", flush=True)
        if full:
            print(text, flush=True)
        written = [write(), folder / "table.md"]
        write_atomically(written[1], text)
        draw = partial(draw_sweep if self.study.sweep else draw_study, results, folder / "plot")
        written += attempt("the plot could not be drawn", draw, [], self.failed)
        return written


# ---- numbers -------------------------------------------------------------------------------------


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
    """A teacher, run, severity and value of the sweep; a job per seed."""
    job, run, sweep = jobs[0].job, study.runs[jobs[0].job.run], study.sweep
    names = [CLEAN, *(str(c) for c in job.conditions[1:] if c.severity == severity)]
    groups = {name: [k] for k, name in enumerate(names)}
    if len(names) > 1:
        groups[CORRUPTED] = list(range(1, len(names)))
    quality = {method: _quality(study, jobs, names, method) for method in job.methods}
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
            "title": _title(method),
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


def _of(classes: Sequence[str]) -> str:
    return f" of {', '.join(classes)}" if classes else ""


def _quality(
    study: Study, jobs: Sequence[Finished], names: Sequence[str], method: str
) -> NDArray[np.float64]:
    """(1 + samples, seeds, conditions) scores: of all images, then of each resample."""
    stacks = [[f.lines[name][method].stack for name in names] for f in jobs]
    images_first = np.stack([np.stack(by_name, axis=1) for by_name in stacks], axis=1)
    totals = resampled_totals(images_first, study.bootstrap_samples, block=study.block)
    return jobs[0].metric(totals)


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


# ---- tables --------------------------------------------------------------------------------------


def _differences(by_group: Mapping[str, Numbers]) -> dict[str, PairedDifference]:
    return {group: PairedDifference(**x) for group, x in by_group.items()}


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


def run_study(
    path: str, overrides: Sequence[str] = (), resume: bool = False, full: bool = False
) -> StudyReport | None:
    """Run a study's file; print and write its report, and return it in the main process. Every
    process that `launch.joined` has joined takes its share of the images; `full` prints all
    tables, not the summary alone."""
    with launch.together():
        study = load_study(path, overrides)
        dataset = get_dataset(study.dataset)
        total = len(dataset.records(strict=False))
        jobs = plan(study, total)
        hashes = study_hashes(study, dataset)
        check_frozen(study, hashes)
    failed: list[str] = []
    finished = run_jobs(study, jobs, dataset, resume, failed)
    if not launch.is_main():
        return None
    report = StudyReport(study, finished, hashes, total, failed)
    for written in report.conclude(full):
        print(f"written: {written}")
    return report

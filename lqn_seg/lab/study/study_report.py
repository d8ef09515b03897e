"""What a study shows: tables in Markdown, ``results.json`` and a plot.

One table per teacher, run, severity and value of the sweep. Scores are averaged over seeds; images
are resampled with all their seeds and conditions, so that every difference is paired and the mean
over corruptions has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from tabulate import tabulate

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.engine.store import write_atomically
from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES, resampled_totals
from lqn_seg.lab.report.attempt import attempt, made
from lqn_seg.lab.report.provenance import environment, json_numbers, write_json
from lqn_seg.lab.report.report import CORRUPTED, Differences, Scores, as_dicts, minus
from lqn_seg.lab.report.segmentation import STAGES
from lqn_seg.lab.report.wording import (
    difference_table,
    interval_heading,
    interval_text,
    number,
    short_name,
    table,
    title,
)
from lqn_seg.lab.study.study import NONE, Finished, check_frozen, plan, run_jobs, study_hashes
from lqn_seg.lab.study.study_file import FOCUS, Study, load_study, value_name

# Statistics with columns of their own, or that say nothing about a method.
_SHOWN = {*(f"{stage}_ms" for stage in STAGES), "fallback", "windows"}


class StudyTable:
    """A teacher, a run, a severity and a value of the sweep, over all seeds.

    Attributes:
        jobs: one per seed.
        severity: of the corruptions; None where only clean images were evaluated.
        names: conditions, clean first.
        groups: columns by name: of each condition, and of the mean over corruptions.
        value: of the sweep; None without one.
    """

    def __init__(self, study: Study, jobs: Sequence[Finished], severity: int | None) -> None:
        self.study, self.jobs, self.severity = study, jobs, severity
        job = jobs[0].job
        self.teacher, self.run, self.images = job.teacher, job.run, job.images
        self.methods, self.name = job.methods, study.runs[job.run].name
        self.value = (
            study.sweep.values[job.value] if study.sweep and job.value is not None else None
        )
        self.seeds = [f.job.seed for f in jobs]
        damaged = [c for c in job.conditions[1:] if c.severity == severity]
        self.names = [CLEAN, *map(str, damaged)]
        self.groups = {name: [k] for k, name in enumerate(self.names)}
        if damaged:
            self.groups[CORRUPTED] = list(range(1, len(self.names)))
        self.compared = [m for m in self.methods if m != study.baseline]

    @cached_property
    def quality(self) -> dict[str, NDArray[np.float64]]:
        """Method -> (1 + samples, seeds, conditions) scores: all images, then each resample."""
        study, scores = self.study, {}
        for method in self.methods:
            stacks = [[f.lines[name][method].stack for name in self.names] for f in self.jobs]
            images_first = np.stack([np.stack(by_name, axis=1) for by_name in stacks], axis=1)
            totals = resampled_totals(images_first, study.bootstrap_samples, block=study.block)
            scores[method] = self.jobs[0].metric(totals)
        return scores

    @cached_property
    def scores(self) -> Scores:
        """Method -> group -> (1 + samples,) means over seeds and over the group's conditions."""
        return {
            method: {g: quality[:, :, k].mean((1, 2)) for g, k in self.groups.items()}
            for method, quality in self.quality.items()
        }

    def score(self, method: str, group: str) -> float:
        return float(self.scores[method][group][0])

    def spread(self, method: str, group: str) -> float:
        """Standard deviation over seeds (n - 1); NaN for one seed."""
        by_seed = self.quality[method][0][:, self.groups[group]].mean(-1)
        return float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")

    @property
    def differences(self) -> Differences:
        """To the baseline: method -> group -> difference."""
        return {m: minus(self.scores, m, self.study.baseline) for m in self.compared}

    @property
    def lead(self) -> Differences:
        """What the focus has over each other method, where it is there itself."""
        rivals = [m for m in self.compared if m != FOCUS and FOCUS in self.compared]
        return {m: minus(self.scores, FOCUS, m) for m in rivals}

    @property
    def units(self) -> int:
        """How many images, or blocks of neighbours, the bootstrap resamples."""
        return self.images // self.study.block

    def statistic(self, method: str, key: str, names: Sequence[str]) -> float:
        """Mean of one of `Prediction.stats` over images, seeds and conditions that have it."""
        values = [
            stats[key]
            for f in self.jobs
            for name in names
            for stats in f.lines[name][method].stats
            if key in stats
        ]
        return float(np.mean(values)) if values else float("nan")

    def fallbacks(self, method: str) -> int:
        """Fits that failed, over all seeds and conditions."""
        lines = (f.lines[name][method] for f in self.jobs for name in self.names)
        return int(sum(stats.get("fallback", 0) for held in lines for stats in held.stats))

    @cached_property
    def statistics(self) -> list[str]:
        """Statistics of any method that have no column of their own, in order of appearance."""
        clean = self.jobs[0].lines[CLEAN]
        keys = (key for method in self.methods for stats in clean[method].stats for key in stats)
        return [key for key in dict.fromkeys(keys) if key not in _SHOWN]

    def milliseconds(self, method: str) -> dict[str, float]:
        """Mean time per image over all conditions, by stage, and their ``total``."""
        times = {stage: self.statistic(method, f"{stage}_ms", self.names) for stage in STAGES}
        return {**times, "total": sum(value for value in times.values() if value == value)}

    def gmacs(self, method: str) -> dict[str, float]:
        return self.jobs[0].gmacs.get(method, {})

    # ---- text ------------------------------------------------------------------------------------

    @property
    def heading(self) -> str:
        name, sweep = f" ({self.name})" if self.name else "", self.study.sweep
        parts = [f"teacher {self.teacher}", f"run {self.run + 1}{name}"]
        if sweep:
            parts.append(f"{sweep.label} = {value_name(self.value)}")
        if self.severity is not None:
            parts.append(f"severity {self.severity}")
        seeds = "seed" if len(self.seeds) == 1 else "seeds"
        parts.append(f"{seeds} {', '.join(map(str, self.seeds))}")
        return f"{', '.join(parts)}, {self.images} images"

    def markdown(self) -> str:
        metric, baseline = self.study.metric, self.study.baseline
        spread = ", mean ± deviation over seeds" if len(self.seeds) > 1 else ""
        parts = [
            f"## {self.heading}",
            f"{metric} (0-100{spread})",
            self._score_table(),
        ]
        for heading, differences in (
            (
                f"{metric} minus that of {title(baseline)}, {interval_heading(self.units)}",
                self.differences,
            ),
            (f"{metric} of {title(FOCUS)} minus that of each other method, likewise", self.lead),
        ):
            if differences:
                shown = difference_table(differences, self.units, short_name, style="pipe")
                parts += [heading, shown]
        parts += [
            "Cost per image: milliseconds (mean over all conditions), GMACs (multiply-add = 1, "
            "forward and backward; -: not counted); other columns are means over images, clean / "
            "corrupted",
            self._cost_table(),
        ]
        parts += [
            f"{title(method)}: {count} fits failed; the teacher's prediction stands in for them."
            for method in self.methods
            if (count := self.fallbacks(method))
        ]
        return "\n\n".join(parts)

    def _score_table(self) -> str:
        rows = [
            [title(m), *(number(self.score(m, g)) + self._deviation(m, g) for g in self.groups)]
            for m in self.methods
        ]
        return table(rows, ["", *map(short_name, self.groups)], labels="right", style="pipe")

    def _deviation(self, method: str, group: str) -> str:
        spread = self.spread(method, group)
        return f" ± {number(spread)}" if spread == spread else ""

    def _cost_table(self) -> str:
        counts = {"gmacs_total": "GMACs", "gmacs_paper_convention": "GMACs (paper's)"}
        sides = [[CLEAN], self.names[1:]] if self.names[1:] else [[CLEAN]]
        rows = []
        for method in self.methods:
            means = [
                " / ".join(number(self.statistic(method, key, names), ".3f") for names in sides)
                for key in self.statistics
            ]
            gmacs = [number(self.gmacs(method).get(key), ".2f") for key in counts]
            rows.append([title(method), *self.milliseconds(method).values(), *gmacs, *means])
        heads = [f"ms {stage}" for stage in (*STAGES, "total")]
        heads = ["", *heads, *counts.values(), *self.statistics]
        return table(rows, heads, labels="right", style="pipe")

    # ---- numbers ---------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds of this table."""
        return {
            "teacher": self.teacher,
            "heading": self.heading,
            "run": self.run + 1,
            "name": self.name,
            "severity": self.severity,
            "value": self.value,
            "value_name": value_name(self.value) if self.study.sweep else None,
            "seeds": self.seeds,
            "images": self.images,
            "has_intervals": self.units >= FEWEST_IMAGES,
            "overrides": [list(pair) for pair in self.study.runs[self.run].pairs],
            "methods": {method: self._method_results(method) for method in self.methods},
            "focus_minus": as_dicts(self.lead),
        }

    def _method_results(self, method: str) -> dict[str, Any]:
        scores = self.quality[method][0]
        results: dict[str, Any] = {
            "title": title(method),
            "scores": {group: self.score(method, group) for group in self.groups},
            "scores_by_seed": {
                str(seed): {g: float(scores[k, c].mean()) for g, c in self.groups.items()}
                for k, seed in enumerate(self.seeds)
            },
            "milliseconds": self.milliseconds(method),
            "gmacs": self.gmacs(method),
            "statistics": {
                group: {
                    key: self.statistic(method, key, [self.names[c] for c in columns])
                    for key in self.statistics
                }
                for group, columns in self.groups.items()
            },
            "fallbacks": self.fallbacks(method),
        }
        if len(self.seeds) > 1:
            results["deviation_over_seeds"] = {g: self.spread(method, g) for g in self.groups}
        if method in self.compared:
            results["minus_baseline"] = as_dicts(self.differences)[method]
        return results


class StudyReport:
    """Everything that is printed, written and drawn about a finished study.

    Args:
        study: its file.
        finished: all jobs.
        hashes: as `study_hashes`.
        total: images in the data set.
        failed: what could not be made so far: a sentence each.
    """

    def __init__(
        self,
        study: Study,
        finished: Sequence[Finished],
        hashes: dict[str, str],
        total: int,
        failed: list[str],
    ) -> None:
        self.study, self.hashes, self.total, self.failed = study, hashes, total, failed
        self.environment = environment(finished[0].job.cfg.MODEL.LQN.EVAL.THREADS)
        by_seed: dict[Any, list[Finished]] = {}
        for f in finished:
            by_seed.setdefault((f.job.teacher, f.job.run, f.job.value), []).append(f)
        self.tables = []
        for jobs in by_seed.values():
            severities = dict.fromkeys(c.severity for c in jobs[0].job.conditions[1:])
            self.tables += [StudyTable(study, jobs, s) for s in severities or (None,)]

    def markdown(self) -> str:
        """The whole report, as it is printed."""
        makers = {"the sweep": self._sweep_table} if self.study.sweep else {}
        makers |= {table.heading: table.markdown for table in self.tables}
        parts = (made(name, make, self.failed) for name, make in makers.items())
        return "\n\n".join([*self._head(), *filter(None, parts)]) + "\n"

    def _head(self) -> list[str]:
        study, machine = self.study, self.environment
        blocks = "" if study.block == 1 else f" in blocks of {study.block} neighbours"
        head = [
            f"# Study {study.name}: {study.dataset}",
            f"{study.metric} on {study.dataset} ({self.total} images), starting from "
            f"`{study.config}`, outputs scored by the native engine. Differences are paired; their "
            f"95% intervals are percentiles of {study.bootstrap_samples} bootstrap resamples of "
            f"the images{blocks}, each image with all its conditions and seeds.",
            f"Machine: {machine['device']}, {machine['threads']} threads, torch "
            f"{machine['torch']}.",
        ]
        if study.splits:
            head.append(f"Splits: {' '.join(study.splits.split())}")
        rows = [
            [name, f"`{value}`", "yes" if name in study.frozen else "no"]
            for name, value in self.hashes.items()
        ]
        head.append(tabulate(rows, ["what", "SHA-256", "frozen"], tablefmt="pipe"))
        bare = [name for name in study.teachers if self.hashes[f"calibration/{name}"] == NONE]
        if bare:
            head.append(
                f"Without a calibration (teacher {', '.join(bare)}) nothing is restored, and a "
                "method whose gauge decides answers as its teacher does "
                "(tools/calibrate.py makes one)."
            )
        return head

    def _sweep_table(self) -> str:
        """A row per curve (teacher, run, severity, method), images, and value."""
        sweep, study = self.study.sweep, self.study
        assert sweep is not None
        curves: dict[Any, list[StudyTable]] = {}
        for t in self.tables:
            curves.setdefault((t.teacher, t.run, t.severity), []).append(t)
        rows = []
        for (teacher, run, severity), tables in curves.items():
            damage = "" if severity is None else f", severity {severity}"
            where = f"teacher {teacher}, {tables[0].name or f'run {run + 1}'}{damage}"
            groups = [group for group in (CLEAN, CORRUPTED) if group in tables[0].groups]
            rows += [
                [where, *self._sweep_cells(table, method, group)]
                for method in tables[0].methods
                for group in groups
                for table in tables
            ]
        heads = [
            "",
            "method",
            "images",
            sweep.label,
            study.metric,
            f"minus {title(study.baseline)}",
        ]
        if sweep.paper:
            heads.append(f"paper: {sweep.paper_label}")
        return tabulate(rows, heads, tablefmt="pipe", disable_numparse=True)

    def _sweep_cells(self, table: StudyTable, method: str, group: str) -> list[str]:
        sweep, baseline = self.study.sweep, self.study.baseline
        assert sweep is not None
        difference = "-"
        if method != baseline:
            interval = minus(table.scores, method, baseline)[group]
            difference = interval_text(interval, table.units)
        score = number(table.score(method, group))
        cells = [title(method), group, value_name(table.value), score, difference]
        if sweep.paper:  # of the whole method, on images as they are
            is_theirs = method == FOCUS and group == CLEAN
            theirs = [score for value, score in sweep.paper if is_theirs and value == table.value]
            cells.append(number(theirs[0] if theirs else None))
        return cells

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        study = self.study
        none: dict[str, Any] = {}
        tables = [
            attempt(f"there are no numbers of {table.heading}", table.results, none, self.failed)
            for table in self.tables
        ]
        return {
            "study": study.name,
            "environment": self.environment,
            "config": study.config,
            "dataset": study.dataset,
            "images_in_dataset": self.total,
            "metric": study.metric,
            "baseline": study.baseline,
            "focus": FOCUS,
            "splits": study.splits,
            "hashes": self.hashes,
            "frozen": sorted(study.frozen),
            "block": study.block,
            "bootstrap_samples": study.bootstrap_samples,
            "sweep": study.sweep and structs.asdict(study.sweep),
            "tables": [table for table in tables if table],
            "report_failures": self.failed,
        }

    def conclude(self) -> list[Path]:
        """Write ``results.json``, print the tables and write them as ``table.md``, and draw
        ``plot.png``; tables and plot may fail alone.

        Returns:
            What was written.

        Raises:
            InputError: there is no room, or the folder cannot be written to; the tables are printed
                all the same.
        """
        from lqn_seg.visualization.curves import draw_study, draw_sweep

        folder = Path(self.study.output_dir)
        results = json_numbers(self.results())
        write = partial(write_json, folder / "results.json", results)
        attempt("the numbers are not written yet", write, None, self.failed)
        text = self.markdown()
        print(f"\n{text}", flush=True)
        written = [write(), folder / "table.md"]
        write_atomically(written[1], text)
        draw = partial(draw_sweep if self.study.sweep else draw_study, results, folder / "plot")
        none: list[Path] = []
        return [*written, *attempt("the plot could not be drawn", draw, none, self.failed)]


def run_study(path: str, overrides: Sequence[str] = (), resume: bool = False) -> StudyReport | None:
    """Run a study's file; print and write its report.

    Every process that `launch.joined` has joined takes its share of the images.

    Returns:
        The report, in the main process.

    Raises:
        InputError: something from outside is missing or wrong.
    """
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
    for written in report.conclude():
        print(f"written: {written}")
    return report

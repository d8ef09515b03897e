"""What a study found: tables in Markdown, ``results.json`` and a plot.

One table per teacher, run, severity and value of the sweep. Scores are averaged over seeds; images
are resampled with all their seeds and conditions, so that every difference is paired and the mean
over corruptions has an interval of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.evaluate import CLEAN, Condition
from lqn_seg.engine.store import write_atomically
from lqn_seg.evaluation.bootstrap import (
    FEWEST_IMAGES,
    PairedDifference,
    paired_interval,
    resampled_totals,
)
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.provenance import environment, json_numbers
from lqn_seg.lab.report.report import CORRUPTED, STAGES, made
from lqn_seg.lab.report.wording import interval_heading, interval_text, number, short_name, title
from lqn_seg.lab.study.study import NONE, Finished, check_frozen, plan, run_jobs, study_hashes
from lqn_seg.lab.study.study_file import METRICS, Study, load_study, value_name

# Statistics with columns of their own, or that say nothing about a method.
_SHOWN = {*(f"{stage}_ms" for stage in STAGES), "fallback", "windows"}
_FORMS = {"score": ".1f", "ms": ".1f", "gmacs": ".2f", "statistic": ".3f"}


class StudyTable:
    """A teacher, a run, a severity and a value of the sweep, over all seeds.

    Attributes:
        jobs: one per seed.
        severity: of the corruptions; None where only clean images were evaluated.
        names: conditions, clean first.
        corrupted: conditions without clean.
    """

    def __init__(self, study: Study, jobs: Sequence[Finished], severity: int | None) -> None:
        self.study, self.jobs, self.severity = study, jobs, severity
        job = jobs[0].job
        self.teacher, self.run, self.value = job.teacher, job.run, job.value
        self.images, self.methods = job.images, job.methods
        self.seeds = [f.job.seed for f in jobs]
        damaged = [c for c in job.conditions if c.corruption != CLEAN and c.severity == severity]
        self.names = [str(Condition()), *map(str, damaged)]
        self.corrupted = self.names[1:]
        self.groups = {name: [k] for k, name in enumerate(self.names)}
        if len(self.corrupted) > 0:
            self.groups[CORRUPTED] = list(range(1, len(self.names)))

    @cached_property
    def quality(self) -> dict[str, NDArray[np.float64]]:
        """Method -> (1 + samples, seeds, conditions) scores: all images, then each resample."""
        study, found = self.study, {}
        for method in self.methods:
            stack = np.stack(
                [
                    np.stack([f.lines[name][method].stack for name in self.names], axis=1)
                    for f in self.jobs
                ],
                axis=1,
            )
            totals = resampled_totals(stack, study.bootstrap_samples, block=study.block)
            found[method] = self.jobs[0].metric(totals)
        return found

    def score(self, method: str, group: str) -> float:
        """Mean over seeds, and over the group's conditions."""
        return float(self.quality[method][0][:, self.groups[group]].mean())

    def spread(self, method: str, group: str) -> float:
        """Standard deviation over seeds (n - 1); NaN for one seed."""
        if len(self.seeds) < 2:
            return float("nan")
        by_seed = self.quality[method][0][:, self.groups[group]].mean(-1)
        return float(by_seed.std(ddof=1))

    def difference(self, method: str, other: str, group: str) -> PairedDifference:
        """Score of a method minus another's, with its 95% interval."""
        columns = self.groups[group]
        a, b = (self.quality[m][:, :, columns].mean((1, 2)) for m in (method, other))
        return paired_interval(a, b)

    @property
    def units(self) -> int:
        """How many images, or blocks of neighbours, the bootstrap resamples."""
        return self.images // self.study.block

    def difference_text(self, method: str, other: str, group: str) -> str:
        """`difference` in words; without an interval where there are too few `units`."""
        return interval_text(self.difference(method, other, group), self.units)

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

    def statistic_keys(self) -> list[str]:
        """Statistics of any method that have no column of their own, in order of appearance."""
        found: dict[str, None] = {}
        for method in self.methods:
            for stats in self.jobs[0].lines[CLEAN][method].stats:
                found.update(dict.fromkeys(key for key in stats if key not in _SHOWN))
        return list(found)

    def milliseconds(self, method: str) -> dict[str, float]:
        """Mean time per image over all conditions, by stage, and their ``total``."""
        found = {stage: self.statistic(method, f"{stage}_ms", self.names) for stage in STAGES}
        return {**found, "total": sum(value for value in found.values() if value == value)}

    def gmacs(self, method: str) -> dict[str, float]:
        return self.jobs[0].gmacs.get(method, {})

    @property
    def compared(self) -> list[str]:
        """Methods other than the baseline."""
        return [method for method in self.methods if method != self.study.baseline]

    @property
    def controls(self) -> list[str]:
        """What the focus is compared with: every other method, where it is there itself."""
        focus = self.study.focus
        if focus not in self.methods or focus == self.study.baseline:
            return []
        return [m for m in self.methods if m not in (focus, self.study.baseline)]

    # ---- text ------------------------------------------------------------------------------------

    def heading(self) -> str:
        sweep = self.study.sweep
        name = self.study.runs[self.run].name
        parts = [f"teacher {self.teacher}", f"run {self.run + 1}{f' ({name})' if name else ''}"]
        if sweep and self.value is not None:
            parts.append(f"{sweep.label} = {value_name(sweep.values[self.value])}")
        if self.severity is not None:
            parts.append(f"severity {self.severity}")
        seeds = "seed" if len(self.seeds) == 1 else "seeds"
        parts.append(f"{seeds} {', '.join(map(str, self.seeds))}")
        return f"{', '.join(parts)}, {self.images} images"

    def markdown(self) -> str:
        study, metric = self.study, self.study.metric
        spread = ", mean ± deviation over seeds" if len(self.seeds) > 1 else ""
        parts = [
            f"## {self.heading()}",
            f"{metric} (0-100{spread})",
            self._grid(self.methods, self._score_text),
        ]
        if self.compared:
            parts += [
                f"{metric} minus that of {title(study.baseline)}, {interval_heading(self.units)}",
                self._grid(self.compared, lambda m, g: self.difference_text(m, study.baseline, g)),
            ]
        if self.controls:
            parts += [
                f"{metric} of {title(study.focus)} minus that of each other method, likewise",
                self._grid(self.controls, lambda m, g: self.difference_text(study.focus, m, g)),
            ]
        parts += [
            "Cost per image: milliseconds (mean over all conditions), GMACs (multiply-add = 1, "
            "forward and backward; -: not counted); other columns are means over images, clean / "
            "corrupted",
            self._cost_table(),
        ]
        for method in self.methods:
            if self.fallbacks(method):
                parts.append(
                    f"{title(method)}: {self.fallbacks(method)} fits failed; the teacher's "
                    "prediction stands in for them."
                )
        return "\n\n".join(parts)

    def _grid(self, methods: Sequence[str], cell: Callable[[str, str], str]) -> str:
        rows = [[title(m), *(cell(m, group) for group in self.groups)] for m in methods]
        head = ["", *map(short_name, self.groups)]
        return tabulate(rows, head, tablefmt="pipe", disable_numparse=True, stralign="right")

    def _score_text(self, method: str, group: str) -> str:
        score, spread = self.score(method, group), self.spread(method, group)
        return _number(score, "score") + (f" ± {number(spread)}" if spread == spread else "")

    def _cost_table(self) -> str:
        keys, rows = self.statistic_keys(), []
        for method in self.methods:
            times, gmacs = self.milliseconds(method), self.gmacs(method)
            row = [title(method), *(_number(value, "ms") for value in times.values())]
            for key in ("gmacs_total", "gmacs_paper_convention"):
                row.append(_number(gmacs.get(key, float("nan")), "gmacs"))
            for key in keys:
                groups = [[CLEAN], *([self.corrupted] if self.corrupted else [])]
                values = [self.statistic(method, key, names) for names in groups]
                row.append(" / ".join(_number(value, "statistic") for value in values))
            rows.append(row)
        head = ["", *(f"ms {stage}" for stage in (*STAGES, "total")), "GMACs", "GMACs (paper's)"]
        return tabulate(
            rows, [*head, *keys], tablefmt="pipe", disable_numparse=True, stralign="right"
        )

    # ---- numbers ---------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds of this table."""
        sweep, study = self.study.sweep, self.study
        by_method = {}
        for method in self.methods:
            first = self.quality[method][0]
            entry: dict[str, Any] = {
                "title": title(method),
                "scores": {group: self.score(method, group) for group in self.groups},
                "scores_by_seed": {
                    str(seed): {g: float(first[k, c].mean()) for g, c in self.groups.items()}
                    for k, seed in enumerate(self.seeds)
                },
                "milliseconds": self.milliseconds(method),
                "gmacs": self.gmacs(method),
                "statistics": {
                    group: {
                        key: self.statistic(method, key, [self.names[c] for c in columns])
                        for key in self.statistic_keys()
                    }
                    for group, columns in self.groups.items()
                },
                "fallbacks": self.fallbacks(method),
            }
            if len(self.seeds) > 1:
                entry["deviation_over_seeds"] = {g: self.spread(method, g) for g in self.groups}
            if method != study.baseline:
                entry["minus_baseline"] = self._differences(method, study.baseline)
            by_method[method] = entry
        return {
            "teacher": self.teacher,
            "heading": self.heading(),
            "run": self.run + 1,
            "name": self.study.runs[self.run].name,
            "severity": self.severity,
            "value": sweep.values[self.value] if sweep and self.value is not None else None,
            "value_name": value_name(sweep.values[self.value])
            if sweep and self.value is not None
            else None,
            "seeds": self.seeds,
            "images": self.images,
            "has_intervals": self.units >= FEWEST_IMAGES,
            "overrides": [list(pair) for pair in study.runs[self.run].overrides],
            "methods": by_method,
            "focus_minus": {m: self._differences(study.focus, m) for m in self.controls},
        }

    def _differences(self, method: str, other: str) -> dict[str, dict[str, float]]:
        return {g: self.difference(method, other, g)._asdict() for g in self.groups}


def _number(value: float, kind: str) -> str:
    return number(value, _FORMS[kind])


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
        failed: list[str] | None = None,
    ) -> None:
        self.study, self.hashes, self.total = study, hashes, total
        self.failed = [] if failed is None else failed
        self.environment = environment(finished[0].job.cfg.MODEL.LQN.EVAL.THREADS)
        by_seed: dict[tuple[str, int, int | None], list[Finished]] = {}
        for found in finished:
            key = (found.job.teacher, found.job.run, found.job.value)
            by_seed.setdefault(key, []).append(found)
        self.tables = [
            StudyTable(study, jobs, severity)
            for jobs in by_seed.values()
            for severity in _severities(jobs[0])
        ]

    def markdown(self) -> str:
        """The whole report, as it is printed."""
        study = self.study
        blocks = "" if study.block == 1 else f" in blocks of {study.block} neighbours"
        machine = self.environment
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
        makers = {"the sweep": self._sweep_table} if study.sweep else {}
        makers |= {table.heading(): table.markdown for table in self.tables}
        return "\n\n".join([*head, *made(makers, self.failed)]) + "\n"

    def curves(self) -> Iterator[tuple[str, str, list[StudyTable]]]:
        """Of a sweep: (title, method, its tables in the order of the values)."""
        kinds: dict[tuple[str, int, int | None], list[StudyTable]] = {}
        for table in self.tables:
            kinds.setdefault((table.teacher, table.run, table.severity), []).append(table)
        for (teacher, run, severity), tables in kinds.items():
            damage = "" if severity is None else f", severity {severity}"
            for method in tables[0].methods:
                name = self.study.runs[run].name or f"run {run + 1}"
                yield f"teacher {teacher}, {name}{damage}", method, tables

    def _sweep_table(self) -> str:
        sweep, study = self.study.sweep, self.study
        assert sweep is not None
        rows = []
        for where, method, tables in self.curves():
            for group in (CLEAN, CORRUPTED):
                if group not in tables[0].groups:
                    continue
                for table in tables:
                    assert table.value is not None
                    value = sweep.values[table.value]
                    difference = "-"
                    if method != study.baseline:
                        difference = table.difference_text(method, study.baseline, group)
                    # Published scores are of the whole method, on images as they are.
                    ours = method == study.focus and group == CLEAN
                    theirs = [number(score) for v, score in sweep.paper if ours and v == value]
                    rows.append(
                        [
                            where,
                            title(method),
                            group,
                            value_name(value),
                            _number(table.score(method, group), "score"),
                            difference,
                            *([theirs[0] if theirs else "-"] if sweep.paper else []),
                        ]
                    )
        head = ["", "method", "images", sweep.label, study.metric]
        head.append(f"minus {title(study.baseline)}")
        if sweep.paper:
            head.append(f"paper: {sweep.paper_label}")
        return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        study = self.study
        return {
            "study": study.name,
            "environment": self.environment,
            "config": study.config,
            "dataset": study.dataset,
            "images_in_dataset": self.total,
            "metric": study.metric,
            "baseline": study.baseline,
            "focus": study.focus,
            "splits": study.splits,
            "hashes": self.hashes,
            "frozen": sorted(study.frozen),
            "block": study.block,
            "bootstrap_samples": study.bootstrap_samples,
            "sweep": study.sweep
            and {
                "key": study.sweep.key,
                "label": study.sweep.label,
                "values": list(study.sweep.values),
                "paper": [list(pair) for pair in study.sweep.paper],
                "paper_label": study.sweep.paper_label,
            },
            "tables": [found for found in map(self._table_results, self.tables) if found],
            "report_failures": self.failed,
        }

    def _table_results(self, table: StudyTable) -> dict[str, Any]:
        complaint = f"there are no numbers of {table.heading()}"
        none: dict[str, Any] = {}
        return attempt(complaint, table.results, none, self.failed)

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
        numbers, tables = folder / "results.json", folder / "table.md"
        results = json_numbers(self.results())
        text = f"{json.dumps(results, indent=1)}\n"
        early = "the numbers are not written yet"
        attempt(early, partial(write_atomically, numbers, text), None, self.failed)
        print(f"\n{self.markdown()}", flush=True)
        write_atomically(numbers, text)
        write_atomically(tables, self.markdown())
        draw = partial(draw_sweep if self.study.sweep else draw_study, results, folder / "plot")
        none: list[Path] = []
        return [numbers, tables, *attempt("the plot could not be drawn", draw, none, self.failed)]


def _severities(found: Finished) -> list[int | None]:
    """Of a job's conditions, in its order; [None] where there are only clean images."""
    damaged = [c.severity for c in found.job.conditions if c.corruption != CLEAN]
    return list(dict.fromkeys(damaged)) or [None]


def run_study(
    path: str, overrides: Sequence[str] = (), resume: bool = False, progress: bool = True
) -> StudyReport | None:
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
        jobs = plan(study, len(dataset.records(strict=False)))
        hashes = study_hashes(study, dataset)
        check_frozen(study, hashes)
    failed: list[str] = []
    finished = run_jobs(jobs, dataset, resume, METRICS[study.metric][0], progress, failed)
    if not launch.is_main():
        return None
    report = StudyReport(study, finished, hashes, len(dataset.records(strict=False)), failed)
    for written in report.conclude():
        print(f"written: {written}")
    return report

"""What is printed, written and drawn of a study: Markdown, ``results.json``, plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from msgspec import structs

from lqn_seg.engine import launch
from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.engine.store import write_atomically
from lqn_seg.lab.report.attempt import attempt, made
from lqn_seg.lab.report.provenance import environment, json_numbers, write_json
from lqn_seg.lab.report.report import CORRUPTED
from lqn_seg.lab.report.wording import verdict_on, wrapped
from lqn_seg.lab.study.export import csv_text, latex_text
from lqn_seg.lab.study.schema import SCHEMA
from lqn_seg.lab.study.study import NONE, Finished, open_study, run_jobs
from lqn_seg.lab.study.study_file import FOCUS, LOWER_IS_BETTER, Study
from lqn_seg.lab.study.study_numbers import Numbers, short_title, table_heading, table_numbers
from lqn_seg.lab.study.study_tables import (
    comparison_table,
    intervals,
    section,
    settings_note,
    sweep_table,
    units,
)


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
            "schema": SCHEMA,
            "study": study.name,
            "environment": environment(finished[0].job.cfg.MODEL.LQN.EVAL.THREADS),
            **{key: getattr(study, key) for key in keys},
            "focus": FOCUS,
            "lower_is_better": study.metric in LOWER_IS_BETTER,
            "images_in_dataset": total,
            "hashes": hashes,
            "frozen": sorted(study.frozen),
            "sweep": study.sweep and structs.asdict(study.sweep),
            "tables": tables,
            "report_failures": failed,
        }

    # ---- text ------------------------------------------------------------------------------------

    def markdown(self) -> str:
        makers = {"the sweep": self._sweep} if self.study.sweep else {}
        for numbers in self.results["tables"]:
            makers[numbers["heading"]] = partial(section, self.results, numbers)
        parts = (made(name, make, self.failed) for name, make in makers.items())
        return "\n\n".join([*self._head(), *filter(None, parts)]) + "\n"

    def summary(self) -> str:
        """A sentence on each table, and of each its scores, one difference and one cost; of a sweep
        its table."""
        makers = {"the sweep": self._sweep} if self.study.sweep else {}
        for numbers in () if makers else self.results["tables"]:
            makers[numbers["heading"]] = partial(self._summary_of, numbers)
        parts = (made(name, make, self.failed) for name, make in makers.items())
        return "\n\n".join([f"study {self.study.name}: {self._counts()}", *filter(None, parts)])

    def _sweep(self) -> str:
        return sweep_table(self.results)

    def _counts(self) -> str:
        study = self.study
        of = f" of {', '.join(study.classes)}" if study.classes else ""
        return f"{study.metric}{of} on {study.dataset} ({self.results['images_in_dataset']} images)"

    def _summary_of(self, numbers: Numbers) -> str:
        parts = filter(None, [numbers["heading"], self._sentence(numbers)])
        shown = comparison_table(self.results, numbers)
        return "\n\n".join([*map(wrapped, parts), shown, *settings_note(numbers)])

    def _sentence(self, numbers: Numbers) -> str:
        """On the focus against the baseline; empty where one of them is not there."""
        methods, baseline = numbers["methods"], self.study.baseline
        if "minus_baseline" not in methods.get(FOCUS, {}):
            return ""
        found = intervals(methods[FOCUS]["minus_baseline"])
        corrupted = (len(found) - 2, found[CORRUPTED]) if CORRUPTED in found else None
        where = numbers["images"], found[CLEAN], corrupted, f" {self.study.metric}"
        other = "its teacher" if baseline == "teacher" else short_title(baseline)
        passes = [methods[m]["budget"]["passes"] for m in (FOCUS, baseline)]
        how = passes[0] / passes[1], other, units(self.results, numbers)
        return verdict_on(short_title(FOCUS), *where, *how, self.study.metric in LOWER_IS_BETTER)

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

    # ---- files -----------------------------------------------------------------------------------

    def conclude(self, full: bool) -> list[Path]:
        """Write ``results.json``, print the summary and, if `full`, the tables, write them as
        ``table.md``, ``table.csv`` and ``table.tex``, and draw ``plot.png`` and ``pareto.png``; an
        InputError if something cannot be written comes after the tables. Returns what was
        written."""
        from lqn_seg.visualization.curves import draw_study, draw_sweep
        from lqn_seg.visualization.pareto import draw_pareto

        plots = (
            {"plot": draw_sweep}
            if self.study.sweep
            else {"plot": draw_study, "pareto": draw_pareto}
        )
        folder, results = Path(self.study.output_dir), json_numbers(self.results)
        write = partial(write_json, folder / "results.json", results)
        attempt("the numbers are not written yet", write, None, self.failed)
        text = self.markdown()
        print(f"\n{self.summary()}\n", flush=True)
        if full:
            print(text, flush=True)
        written = [write(), folder / "table.md"]
        write_atomically(written[1], text)
        for name, make in {"table.csv": csv_text, "table.tex": latex_text}.items():
            write_text = partial(self._write_text, folder / name, make, results)
            written += attempt(f"{name} could not be written", write_text, [], self.failed)
        for name, draw in plots.items():
            complaint = f"the plot could not be drawn ({name}.png)"
            written += attempt(complaint, partial(draw, results, folder / name), [], self.failed)
        return written

    def _write_text(
        self, path: Path, make: Callable[[Numbers], str], results: Numbers
    ) -> list[Path]:
        write_atomically(path, make(results))
        return [path]


def run_study(
    path: str, overrides: Sequence[str] = (), resume: bool = False, full: bool = False
) -> StudyReport | None:
    """Run a study's file; print and write its report, and return it in the main process. Every
    process that `launch.joined` has joined takes its share of the images; `full` prints all
    tables, not the summary alone."""
    with launch.together():
        opened = open_study(path, overrides)
    failed: list[str] = []
    finished = run_jobs(opened.study, opened.jobs, opened.dataset, resume, failed)
    if not launch.is_main():
        return None
    report = StudyReport(opened.study, finished, opened.hashes, opened.images, failed)
    for written in report.conclude(full):
        print(f"written: {written}")
    return report

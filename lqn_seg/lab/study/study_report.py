"""What is printed, written and drawn of a study's numbers: Markdown, ``results.json``, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from msgspec import structs
from tabulate import tabulate

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.engine.store import write_atomically
from lqn_seg.evaluation.bootstrap import PairedDifference
from lqn_seg.lab.report.attempt import attempt, made
from lqn_seg.lab.report.provenance import environment, json_numbers, write_json
from lqn_seg.lab.report.report import CORRUPTED
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
from lqn_seg.lab.study.numbers import table_heading, table_numbers
from lqn_seg.lab.study.study import NONE, Finished, check_frozen, plan, run_jobs, study_hashes
from lqn_seg.lab.study.study_file import FOCUS, Study, load_study

Numbers = dict[str, Any]


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

    def _head(self) -> list[str]:
        study, machine, hashes = self.study, self.results["environment"], self.results["hashes"]
        blocks = "" if study.block == 1 else f" in blocks of {study.block} neighbours"
        head = [
            f"# Study {study.name}: {study.dataset}",
            f"{study.metric} on {study.dataset} ({self.results['images_in_dataset']} images), "
            f"starting from `{study.config}`, outputs scored by the native engine. Differences are "
            f"paired; their 95% intervals are percentiles of {study.bootstrap_samples} bootstrap "
            f"resamples of the images{blocks}, each image with all its conditions and seeds.",
            f"Machine: {machine['device']}, {machine['threads']} threads, torch "
            f"{machine['torch']}.",
        ]
        if study.splits:
            head.append(f"Splits: {' '.join(study.splits.split())}")
        frozen = {True: "yes", False: "no"}
        rows = [[name, f"`{x}`", frozen[name in study.frozen]] for name, x in hashes.items()]
        head.append(tabulate(rows, ["what", "SHA-256", "frozen"], tablefmt="pipe"))
        bare = [name for name in study.teachers if hashes[f"calibration/{name}"] == NONE]
        if bare:
            head.append(
                f"Without a calibration (teacher {', '.join(bare)}) nothing is restored, and a "
                "method whose gauge decides answers as its teacher does "
                "(tools/calibrate.py makes one)."
            )
        return head

    def _section(self, numbers: Numbers) -> str:
        """A table of scores, two of differences, and one of costs."""
        metric, baseline, methods = self.study.metric, self.study.baseline, numbers["methods"]
        units = numbers["images"] // self.study.block
        parts = [f"## {numbers['heading']}", _score_table(metric, methods)]
        to_baseline = {m: x["minus_baseline"] for m, x in methods.items() if m != baseline}
        to_others = numbers["focus_minus"]
        for heading, differences in (
            (f"{metric} minus that of {title(baseline)}, {interval_heading(units)}", to_baseline),
            (f"{metric} of {title(FOCUS)} minus that of each other method, likewise", to_others),
        ):
            if differences:
                intervals = {
                    method: {group: PairedDifference(**x) for group, x in by_group.items()}
                    for method, by_group in differences.items()
                }
                parts += [heading, difference_table(intervals, units, short_name, style="pipe")]
        parts.append(_cost_table(methods))
        failed = "{title}: {fallbacks} fits failed; the teacher's prediction stands in for them."
        parts += [failed.format(**x) for x in methods.values() if x["fallbacks"]]
        return "\n\n".join(parts)

    def _sweep_table(self) -> str:
        """A row per curve (teacher, run, severity, method), images, and value."""
        sweep, baseline = self.study.sweep, self.study.baseline
        assert sweep is not None
        curves: dict[Any, list[Numbers]] = {}
        for numbers in self.results["tables"]:
            key = numbers["teacher"], numbers["run"], numbers["severity"]
            curves.setdefault(key, []).append(numbers)
        rows = []
        for (teacher, run, severity), tables in curves.items():
            damage = "" if severity is None else f", severity {severity}"
            where = f"teacher {teacher}, {tables[0]['name'] or f'run {run}'}{damage}"
            rows += [
                [where, *self._sweep_cells(numbers, method, group)]
                for method, x in tables[0]["methods"].items()
                for group in (CLEAN, CORRUPTED)
                if group in x["scores"]
                for numbers in tables
            ]
        heads = ["", "method", "images", sweep.label, self.study.metric]
        heads.append(f"minus {title(baseline)}")
        if sweep.paper:
            heads.append(f"paper: {sweep.paper_label}")
        return tabulate(rows, heads, tablefmt="pipe", disable_numparse=True)

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

    def conclude(self) -> list[Path]:
        """Write ``results.json``, print the tables and write them as ``table.md``, and draw
        ``plot.png``; tables and plot may fail alone. Returns what was written.

        Raises:
            InputError: something cannot be written; the tables are printed all the same.
        """
        from lqn_seg.visualization.curves import draw_study, draw_sweep

        folder = Path(self.study.output_dir)
        results = json_numbers(self.results)
        write = partial(write_json, folder / "results.json", results)
        attempt("the numbers are not written yet", write, None, self.failed)
        text = self.markdown()
        print(f"\n{text}", flush=True)
        written = [write(), folder / "table.md"]
        write_atomically(written[1], text)
        draw = partial(draw_sweep if self.study.sweep else draw_study, results, folder / "plot")
        none: list[Path] = []
        return [*written, *attempt("the plot could not be drawn", draw, none, self.failed)]


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
    return (
        "Cost per image: milliseconds (mean over all conditions), GMACs (multiply-add = 1, "
        "forward and backward; -: not counted); other columns are means over images, clean / "
        f"corrupted\n\n{shown}"
    )


def run_study(path: str, overrides: Sequence[str] = (), resume: bool = False) -> StudyReport | None:
    """Run a study's file; print and write its report, and return it in the main process. Every
    process that `launch.joined` has joined takes its share of the images."""
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

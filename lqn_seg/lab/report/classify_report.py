"""From the lines of a classification run to ``results.json``, tables and one honest sentence.

As in `lqn_seg.lab.report.report` scores come first, and whatever else fails does so alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from lqn_seg.adapt.classification_methods import CONTROLS
from lqn_seg.classification.classifier import Classifier
from lqn_seg.classification.published import DATASETS, NOT_RUN, TEACHER, published
from lqn_seg.config.nodes import load_classification_cfg
from lqn_seg.core.threads import fixed_threads
from lqn_seg.engine import launch
from lqn_seg.engine.classify import Classification, classifications
from lqn_seg.engine.evaluate import CLEAN, Condition
from lqn_seg.engine.store import write_atomically
from lqn_seg.evaluation.bootstrap import (
    FEWEST_IMAGES,
    PairedDifference,
    paired_interval,
    resampled_totals,
)
from lqn_seg.evaluation.classification import BINS
from lqn_seg.lab.cost.cost import Cost, measure
from lqn_seg.lab.cost.speed import peak_gmacs_per_ms
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.provenance import environment, json_numbers
from lqn_seg.lab.report.report import count_images, failed_images, left_out, made
from lqn_seg.lab.report.run import check_written, conclude, execute
from lqn_seg.lab.report.wording import (
    comparison,
    counted,
    interval_heading,
    interval_text,
    number,
    table,
    too_few,
)

BASELINE = "zero-shot"
CORRUPTED = "mean of corruptions"
AVERAGE = "mean of data sets"
TITLES = {
    "zero-shot": "zero-shot, one prompt",
    "ensemble": "zero-shot, 80 prompts",
    "apm": "APM",
    "lqn-src": "LQN-[src]",
    "lqn": "LQN",
    "teacher": "views, not restored",
    "restore": "restored, no student",
    "zero": "ZERO",
    "mta": "MTA",
    "tps": "TPS",
    "gs-bias": "GS-Bias",
    "tpt": "TPT",
    "tda": "TDA (history)",
}
STAGES = ("views", "teacher", "method")
_COUNTS = ("forward_gmacs", "backward_gmacs", "peak_mib", "roofline")
_NAN = float("nan")


def title(method: str) -> str:
    """``lqn@paper:mean`` is "LQN, recipe: paper, read-out: mean"."""
    rest, _, readout = method.partition(":")
    variant, _, recipe = rest.partition("@")
    name = TITLES.get(variant, variant)
    name += f", recipe: {recipe}" if recipe else ""
    return name + (f", read-out: {readout}" if readout else "")


@dataclass(frozen=True)
class Stream:
    """One data set under one condition: what a column of figures is about."""

    run: Classification
    condition: Condition
    alone: bool

    @property
    def dataset(self) -> str:
        return self.run.dataset.metadata.name

    def __str__(self) -> str:
        return str(self.condition) if self.alone else f"{self.dataset} {self.condition}"


class ClassificationReport:
    """Everything that is printed and written about finished runs, one for each data set.

    Attributes:
        failed: a sentence for each part that could not be made.
    """

    def __init__(self, runs: Sequence[Classification]) -> None:
        self.runs, self.first, self.failed = list(runs), runs[0], list[str]()
        self.cfg, self.classifier = self.first.cfg, self.first.classifier
        self.recipes = self.classifier.methods
        self.methods = list(self.recipes)
        self.streams = [
            Stream(run, condition, len(runs) == 1) for run in runs for condition in run.conditions
        ]
        self.metrics = {
            str(stream): {m: stream.run.metrics(stream.condition, m) for m in self.methods}
            for stream in self.streams
        }
        # Groups of streams that are also averaged; images are resampled with all their conditions.
        self.groups: dict[str, list[Stream]] = {str(stream): [stream] for stream in self.streams}
        damaged = [s for s in self.streams if s.condition.corruption != CLEAN]
        clean = [s for s in self.streams if s.condition.corruption == CLEAN]
        if damaged and len(runs) == 1:
            self.groups[CORRUPTED] = damaged
        if len(clean) > 1:
            self.groups[AVERAGE] = clean
        self.focus = self._focus()
        self.differences: dict[str, dict[str, PairedDifference]] = {}
        self.lead: dict[str, dict[str, PairedDifference]] = {}
        attempt("the intervals could not be found", self._compare, None, self.failed)
        self._counted: dict[str, tuple[Cost, float] | None] = {}

    def _compare(self) -> None:
        """Find `differences`, to the baseline, and `lead`, of the focus over the other methods."""
        # Of each group that has the same images under every condition, resampled once per method.
        self._resampled = {
            method: {
                group: self._accuracies(method, streams)
                for group, streams in self.groups.items()
                if len({stream.dataset for stream in streams}) == 1
            }
            for method in self.methods
        }
        self.differences = {m: self._minus(m, BASELINE) for m in self.methods if m != BASELINE}
        # What that method has over each other one, those of the table above excepted.
        self.lead = {
            method: self._minus(self.focus, method)
            for method in self.methods
            if self.focus and method not in (self.focus, BASELINE, *CONTROLS)
        }

    @cached_property
    def costs(self) -> dict[str, tuple[Cost, float] | None]:
        """`classification_cost` of each method, None where it cannot be counted; they run when they
        are first asked for."""
        with fixed_threads(self.cfg.MODEL.LQN.EVAL.THREADS):
            for method in self.methods:
                self._counted[method] = attempt(
                    f"the cost of {title(method)} could not be counted",
                    partial(classification_cost, self.first, method),
                    None,
                    self.failed,
                )
        return self._counted

    @cached_property
    def peak(self) -> float:
        """The device's GMACs per millisecond in the fastest precision in use; NaN if unknown."""
        teacher = self.classifier.teacher
        used = {teacher.precision, *self._precisions()}

        def fastest() -> float:
            return max(peak_gmacs_per_ms(teacher.device, precision) for precision in used)

        with fixed_threads(self.cfg.MODEL.LQN.EVAL.THREADS):
            complaint = "the device's speed could not be measured"
            return attempt(complaint, fastest, float("nan"), self.failed)

    def images(self, group: str) -> int:
        """How many images a group's differences are of."""
        return min(len(stream.run.scored) for stream in self.groups[group])

    def _accuracies(self, method: str, streams: Sequence[Stream]) -> NDArray[np.float64]:
        """(1 + samples,) top-1 accuracy on one data set's images, and on each resample of them."""
        evaluator = streams[0].run.evaluator
        rows = [stream.run.lines(stream.condition, method) for stream in streams]
        stacked = [evaluator.stack([r[evaluator.task] for r in row]) for row in rows]
        # (images, streams, 2): hits and images, whatever the class.
        counts = np.stack(stacked, 1).reshape(len(stacked[0]), len(rows), 2, -1).sum(-1)
        samples = self.cfg.MODEL.LQN.EVAL.BOOTSTRAP_SAMPLES
        return evaluator.metric(resampled_totals(counts, samples)).mean(-1)

    def _minus(self, method: str, other: str) -> dict[str, PairedDifference]:
        """By group, one method's top-1 accuracy minus another's."""
        own, others = self._resampled[method], self._resampled[other]
        return {group: paired_interval(own[group], others[group]) for group in own}

    def _focus(self) -> str:
        """The method that the sentence is about: LQN, or else the last one with a student, or that
        restores, or with a recipe at all, which is the unadapted control."""
        own = {name: recipe for name, recipe in self.recipes.items() if recipe is not None}
        students = [name for name, recipe in own.items() if recipe.has_student]
        restoring = [name for name, recipe in own.items() if recipe.restores]
        last = (students or restoring or [*own])[-1:]
        return "lqn" if "lqn" in students else "".join(last)

    def value(self, group: str, method: str, key: str, task: str = "classification") -> float:
        """One number; for a mean, the mean of its streams'."""
        return float(np.mean([self.metrics[str(s)][method][task][key] for s in self.groups[group]]))

    # ---- text ------------------------------------------------------------------------------------

    def text(self) -> str:
        """The tables and the sentence, as they are printed."""
        return "\n\n".join([*self.score_parts, *self.cost_parts])

    @cached_property
    def score_parts(self) -> list[str]:
        """What is printed of the scores, table by table."""
        makers: dict[str, Callable[[], str]] = {
            name: partial(self._score_table, name, key)
            for name, key in (
                ("top-1 accuracy", "acc1"),
                ("top-5 accuracy", "acc5"),
                (f"expected calibration error ({BINS} bins; lower is better)", "ECE"),
            )
        }
        few = min(map(self.images, self.groups))
        if self.differences:
            name = f"top-1 accuracy minus {BASELINE}'s, {interval_heading(few)}"
            makers[name] = partial(self._difference_table, name, self.differences)
        if self.lead:
            name = (
                f"top-1 accuracy of {title(self.focus)} minus that of each other method, likewise"
            )
            makers[name] = partial(self._difference_table, name, self.lead)
        return [self._heading(), *made(makers, self.failed)]

    @cached_property
    def cost_parts(self) -> list[str]:
        """What is printed of the costs, what is to be known of the figures, and the sentence."""
        notes = [*self._notes(), *(text for run in self.runs for text in left_out(run))]
        sentence = made({"sentence": self.sentence}, self.failed)
        return [*made({"costs": self._cost_table}, self.failed), *notes, *sentence]

    def _heading(self) -> str:
        counts = [
            f"{run.dataset.metadata.name}: {count_images(run)}, "
            f"{len(run.evaluator.classes)} classes"
            for run in self.runs
        ]
        own, severity = self.cfg.CLASSIFICATION, self.cfg.MODEL.LQN.EVAL.SEVERITY
        return (
            f"{'; '.join(counts)}\nscores 0-100; prompts of every method but the zero-shot rows: "
            f"{own.PROMPTS}; {own.VIEWS} views; corruptions at severity {severity}"
        )

    def _score_table(self, name: str, key: str) -> str:
        groups = list(self.groups)
        rows: list[list[Any]] = [
            [title(m), *(self.value(group, m, key) for group in groups)] for m in self.methods
        ]
        if key == "acc1":
            rows.extend(self._published_rows())
        return f"{name}\n{table(rows, ['', *map(_short, groups)], '.1f')}"

    def _published_rows(self) -> list[list[Any]]:
        """Other people's figures on the same data set and teacher, marked as such."""
        if TEACHER not in self.cfg.MODEL.LQN.TEACHER.CONFIG:
            return []
        shown = [s.dataset if s.condition.corruption == CLEAN else "" for s in self.streams]
        if not set(shown) & set(DATASETS):
            return []
        names = [*(m for m in self.methods if m in published(DATASETS[0])), *NOT_RUN]
        blank = [None] * (len(self.groups) - len(shown))
        return [
            [f"{title(name)}, published", *(published(s).get(name) for s in shown), *blank]
            for name in names
        ]

    def _difference_table(
        self, name: str, differences: Mapping[str, Mapping[str, PairedDifference]]
    ) -> str:
        groups = list(next(iter(differences.values())))
        rows = [
            [title(method), *(interval_text(found[g], self.images(g)) for g in groups)]
            for method, found in differences.items()
        ]
        heads = ["", *map(_short, groups)]
        return f"{name}\n{tabulate(rows, heads, stralign='right', disable_numparse=True)}"

    def _cost_heading(self) -> str:
        about = environment(self.cfg.MODEL.LQN.EVAL.THREADS)
        students = " and ".join(sorted(self._precisions())) or "none"
        return (
            "cost per image: milliseconds (means over this run) on "
            f"{about['device']}, {about['threads']} threads, teacher in "
            f"{self.classifier.teacher.precision}, students in {students};\nGMACs "
            "(multiply-add = 1) and peak memory of what one image makes, counted while the method "
            "ran alone, a student included\nif the gauge asked for one in any image; % is that "
            "image's share, views left out, of the speed of a large matrix product in the\nfastest "
            f"precision in use ({number(self.peak, '.3g')} GMACs/ms)"
        )

    def _precisions(self) -> set[str]:
        """What the students' matrix products are computed in."""
        return set(self.classifier.precisions.values())

    def _ms(self, method: str, stage: str) -> float:
        streams = [str(stream) for stream in self.streams]
        return float(np.mean([self.metrics[s][method]["lqn"][f"{stage}_ms"] for s in streams]))

    def cost_lines(self) -> dict[str, dict[str, float]]:
        """Each method's cost, by name and unit; NaN where it is not counted."""
        lines = {}
        for method in self.methods:
            times = {f"{s}_ms": self._ms(method, s) for s in STAGES}
            times["total_ms"] = sum(times.values())
            lines[method] = times | dict.fromkeys(_COUNTS, _NAN)
            if counted := self._counted.get(method):
                cost, busy = counted
                gmacs = cost.forward_gmacs + cost.backward_gmacs
                roofline = 100 * gmacs / max(busy, 1e-9) / self.peak
                values = (cost.forward_gmacs, cost.backward_gmacs, cost.peak_bytes / 2**20)
                lines[method] |= zip(_COUNTS, (*values, roofline))
        return lines

    def _cost_table(self) -> str:
        _ = self.costs  # counted now
        rows = [[title(method), *line.values()] for method, line in self.cost_lines().items()]
        heads = [
            *(f"ms {stage}" for stage in (*STAGES, "total")),
            *("GMACs forward", "GMACs backward", "MiB peak", "% of peak"),
        ]
        head = ["", *(h.replace(" ", "\n", 1) for h in heads)]
        shown = table(rows, head, [*[".1f"] * 4, ".3f", ".3f", ".1f", ".0f"])
        return f"{self._cost_heading()}\n{shown}"

    def _notes(self) -> list[str]:
        notes = []
        for method in self.methods:
            failed = sum(
                self.metrics[str(s)][method]["lqn"].get("fallback", 0) for s in self.streams
            )
            if failed:
                notes.append(
                    f"{title(method)}: {counted(round(failed), 'fit')} failed (non-finite loss or "
                    "out of memory); the teacher's answer stands in for them"
                )
        if "tda" in self.methods:
            notes.append(
                "TDA learns from the images before: its figures are those of this order of images. "
                "All other rows do not depend on order or company"
            )
        fits = {m: sum(run.fitted(m) for run in self.runs) for m in self.classifier.precisions}
        if fits:
            total = sum(len(run.conditions) * len(run.scored) for run in self.runs)
            counts = ", ".join(f"{title(method)} {count}" for method, count in fits.items())
            notes.append(f"students fitted, of {counted(total, 'image')}: {counts}")
        return notes

    def sentence(self) -> str:
        """What the table shows about `focus`, in one sentence without flattery."""
        if self.focus not in self.differences:
            return ""
        shown = {
            group: found
            for group, found in self.differences[self.focus].items()
            if group == CORRUPTED or group.endswith(CLEAN)
        }
        parts = [
            comparison(found, self.images(group), BASELINE, f"on {_short(group)}")
            for group, found in shown.items()
        ]
        few = min(map(self.images, shown))
        note = f"; no interval: {too_few(few)}" if few < FEWEST_IMAGES else ""
        return f"{title(self.focus)} {', and '.join(parts)}, in points of top-1 accuracy{note}."

    # ---- files -----------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds; ``classification`` has ``ACC-<class>`` for every class."""
        return {
            "environment": {
                **environment(self.cfg.MODEL.LQN.EVAL.THREADS),
                "seed": max(self.cfg.SEED, 0),
            },
            "runs": {
                run.dataset.metadata.name: {
                    **run.fingerprint,
                    "images": len(run.scored),
                    "subset_of": run.total if run.is_subset else None,
                    "failed": failed_images(run),
                }
                for run in self.runs
            },
            "warnings": list(self.classifier.ineffective.values()),
            "prompts": self.cfg.CLASSIFICATION.PROMPTS,
            "policy": {
                "reset": "everything is fresh for every image, TDA's caches excepted",
                "order": "results do not depend on it, TDA's excepted",
            },
            "metrics": self.metrics,
            "differences_to_zero_shot": _as_dicts(self.differences),
            "focus": self.focus,
            "focus_minus": _as_dicts(self.lead),
            "costs": self.cost_lines(),
            "report_failures": self.failed,
            "sentence": self.sentence(),
        }

    def write_results(self) -> Path:
        """``inference/results.json``, with the costs that are counted.

        Raises:
            InputError: there is no room, or the place cannot be written to.
        """
        path = Path(self.cfg.OUTPUT_DIR) / "inference" / "results.json"
        write_atomically(path, json.dumps(json_numbers(self.results()), indent=1) + "\n")
        return path

    def write(self) -> Path:
        """``inference/results.json``, ``config.yaml`` and ``log.txt``.

        Raises:
            InputError: there is no room, or the place cannot be written to.
        """
        output, text = Path(self.cfg.OUTPUT_DIR), self.text()
        path = self.write_results()
        write_atomically(output / "config.yaml", self.cfg.dump())
        write_atomically(output / "log.txt", f"{text}\n")
        return path


def classification_cost(run: Classification, method: str) -> tuple[Cost, float]:
    """What a method costs on one image alone, and its milliseconds without views.

    The image asks for a student if any image did: the most that was paid.

    Raises:
        UncountedOperatorError: an operator that multiplies matrices has no rule.
    """
    whole = run.classifier
    calibration = whole.calibration
    if calibration is not None and run.fitted(method):
        calibration = calibration.alarmed()
    recipes, config = {method: whole.methods[method]}, replace(whole.config, batch=1)
    names, text = whole.class_names, whole.text
    alone = Classifier(whole.teacher, names, text, recipes, config, calibration)
    image = run.image(run.conditions[-1], run.scored[0])
    alone([image])  # storage and tables that outlive an image are not the image's cost
    alone.reset()
    stats = alone([image])[0][method].stats
    alone.reset()
    return measure(lambda: alone([image])), stats["teacher_ms"] + stats["method_ms"]


def _as_dicts(differences: Mapping[str, Mapping[str, PairedDifference]]) -> dict[str, Any]:
    return {
        method: {group: found._asdict() for group, found in by_group.items()}
        for method, by_group in differences.items()
    }


def _short(name: str) -> str:
    return name.removesuffix(f" {CLEAN}").replace("_", " ")


def classify(
    config_file: str,
    overrides: Sequence[str] = (),
    device: str = "",
    resume: bool = False,
    strict: bool = False,
) -> ClassificationReport | None:
    """Run a configuration, print the report and write it.

    Every process that `launch.joined` has joined takes its share of the images.

    Args:
        config_file, overrides, device, resume, strict: as `lqn_seg.lab.report.run.evaluate`.

    Returns:
        the report, in the main process.

    Raises:
        InputError: something from outside is missing or wrong, or there is no room for results.
    """
    with launch.together():
        cfg = load_classification_cfg(config_file, overrides, device)
        runs = list(classifications(cfg, resume, strict).values())
    execute(runs)
    if not launch.is_main():
        return None
    with fixed_threads(cfg.MODEL.LQN.EVAL.THREADS):
        report = ClassificationReport(runs)
    conclude(report)
    check_written(runs)
    return report

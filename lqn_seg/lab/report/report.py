"""From the stored lines of finished runs to one sentence, tables and ``results.json``.

A `Report` is what segmentation and classification have in common: methods side by side on streams
of images (a data set under a condition), paired differences to a baseline, and costs. A part that
fails is named and left out; what cannot be counted is "-", and null in JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.engine.evaluate import CLEAN, DatasetRun
from lqn_seg.engine.store import write_atomically
from lqn_seg.evaluation.bootstrap import PairedDifference, paired_interval, resampled_totals
from lqn_seg.evaluation.classification import ClassificationEvaluator
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.evaluation.semantic import SemanticEvaluator
from lqn_seg.lab.report.attempt import attempt, made
from lqn_seg.lab.report.provenance import environment, write_json
from lqn_seg.lab.report.wording import (
    UNDEFINED,
    counted,
    interval_text,
    table,
    title,
    wrapped,
)

CORRUPTED = "mean of corruptions"
AVERAGE = "mean of data sets"
NAMED = 10  # failures that are printed; results.json has them all
# Metrics of sums over images. AP is none: it is of a ranking over all of them.
Additive = PanopticEvaluator | SemanticEvaluator | ClassificationEvaluator
Column = tuple[str, str, str, str]  # head, group, task, key
Scores = dict[str, dict[str, NDArray[np.float64]]]
Differences = dict[str, dict[str, PairedDifference]]


class Report(ABC):
    """Everything that is printed and written about finished runs, one for each data set."""

    titles: Mapping[str, str]
    baseline: str
    reference: str  # the baseline's, in words
    stages: tuple[str, ...]  # whose milliseconds are known
    task: str  # of the headline score
    key: str  # the headline score
    score_name: str

    def __init__(self, runs: Sequence[DatasetRun], methods: Iterable[str]) -> None:
        self.runs, self.methods = list(runs), list(methods)
        self.failed: list[str] = []  # a sentence for each part that could not be made
        self.cfg, self.model = runs[0].cfg, runs[0].model
        self.images = min(len(run.scored) for run in runs)
        self.environment = environment(self.cfg.MODEL.LQN.EVAL.THREADS)
        self.streams = {
            str(c) if len(runs) == 1 else f"{run.dataset.metadata.name} {c}": (run, c)
            for run in runs
            for c in run.conditions
        }
        # Stream -> method -> task -> key -> score, 0..100; ``lqn`` has means of statistics.
        self.metrics = {
            name: {method: run.metrics(condition, method) for method in self.methods}
            for name, (run, condition) in self.streams.items()
        }
        clean = [name for name in self.streams if name.endswith(CLEAN)]
        self.corrupted = [name for name in self.streams if name not in clean]
        self.groups = {name: [name] for name in self.streams}  # and those that are averaged
        if self.corrupted and len(runs) == 1:
            self.groups[CORRUPTED] = self.corrupted
        if len(clean) > 1:
            self.groups[AVERAGE] = clean
        self.costs: dict[str, Any] = {}  # None where it cannot be counted; empty before `summary`
        # Method -> group -> (1 + samples,) headline scores: of all images, of each resample.
        self.scores: Scores = attempt(
            "the intervals could not be computed", self._resample, {}, self.failed
        )
        others = [method for method in self.scores if method != self.baseline]
        self.differences = {m: minus(self.scores, m, self.baseline) for m in others}

    # ---- what a task adds ------------------------------------------------------------------------

    @abstractmethod
    def heading(self) -> str:
        """What stands above all tables: data sets, images, conventions."""

    @abstractmethod
    def score_tables(self) -> dict[str, Callable[[], str]]:
        """Tables of scores and differences, by their headings."""

    @abstractmethod
    def cost(self, method: str) -> Any:
        """What a method costs on an image; may raise `UncountedOperatorError`."""

    @abstractmethod
    def gmacs(self, method: str) -> float:
        """A method's multiply-adds per image; NaN where they are not counted."""

    @abstractmethod
    def cost_table(self) -> str:
        """Of `costs` and `milliseconds`, with its heading."""

    @abstractmethod
    def sentence(self) -> str:
        """What the tables show about one method; empty without such a method."""

    def draw(self) -> list[Path]:
        """Pictures of some images; each may fail alone."""
        return []

    # ---- numbers ---------------------------------------------------------------------------------

    def title(self, method: str) -> str:
        return title(method, self.titles)

    def value(self, group: str, method: str, key: str, task: str = "") -> float:
        """One number, by default of the headline's task; of several streams, the mean."""
        tasks = [self.metrics[name][method] for name in self.groups[group]]
        return float(np.mean([scores[task or self.task][key] for scores in tasks]))

    def statistics(self, method: str) -> list[dict[str, float]]:
        return [by_method[method]["lqn"] for by_method in self.metrics.values()]

    def milliseconds(self, method: str) -> dict[str, float]:
        """Means over all streams, by stage, and their total."""
        means = self.statistics(method)
        times = {s: float(np.mean([x[f"{s}_ms"] for x in means])) for s in self.stages}
        return {**times, "total": sum(times.values())}

    @property
    def fallbacks(self) -> dict[str, int]:
        """How many fits of each method failed."""
        return {m: int(sum(x.get("fallback", 0) for x in self.statistics(m))) for m in self.methods}

    def lines(self, stream: str, method: str) -> Iterator[dict[str, Any]]:
        run, condition = self.streams[stream]
        return run.lines(condition, method)

    def stack(self, stream: str, method: str, task: str) -> NDArray[np.float64]:
        """(images, ...) statistics, of whose sums the metric is."""
        evaluator = self.streams[stream][0].evaluators[task]
        assert isinstance(evaluator, Additive)
        return evaluator.stack([line[task] for line in self.lines(stream, method)])

    def _resample(self) -> Scores:
        """An image is drawn with all its conditions, so that their mean has an interval."""
        scores: Scores = {method: {} for method in self.methods}
        for run in self.runs:
            evaluator = run.evaluators[self.task]
            if self.baseline not in scores or not isinstance(evaluator, Additive):
                return {}
            names = [name for name, (other, _) in self.streams.items() if other is run]
            for method, by_group in scores.items():
                stacked = np.stack([self.stack(name, method, self.task) for name in names], axis=1)
                samples = self.cfg.MODEL.LQN.EVAL.BOOTSTRAP_SAMPLES
                by_name = evaluator.metric(resampled_totals(stacked, samples))
                for group, members in self.groups.items():
                    if set(members) <= set(names):
                        columns = [names.index(name) for name in members]
                        by_group[group] = by_name.take(columns, axis=1).mean(-1)
        return scores

    # ---- text ------------------------------------------------------------------------------------

    def summary(self) -> Iterator[str]:
        """What is always printed: a sentence, a table, and what qualifies them. Counts costs."""
        yield wrapped(self.heading())
        yield from filter(None, map(left_out, self.runs))
        for method in self.methods:
            complaint = f"the cost of {self.title(method)} could not be counted"
            count = partial(self.cost, method)
            self.costs[method] = attempt(complaint, count, None, self.failed)
        sentence = made("sentence", self.sentence, self.failed)
        shown = made("summary", self.summary_table, self.failed)
        yield from filter(None, [wrapped(sentence), shown, *map(wrapped, self.notes())])

    def summary_table(self) -> str:
        """A row per method: clean, under corruption, the difference there, the cost."""
        clean = AVERAGE if AVERAGE in self.groups else next(iter(self.streams))
        groups = {clean: f"{self.score_name}\n{AVERAGE if clean == AVERAGE else CLEAN}"}
        if CORRUPTED in self.groups:
            corruptions = counted(len(self.corrupted), "corruption")
            groups[CORRUPTED] = f"mean of\n{corruptions}"
        last = [*groups][-1]
        compared = {
            m: by_group[last] for m, by_group in self.differences.items() if last in by_group
        }
        heads = [*groups.values(), *([f"minus\n{self.reference}"] if compared else [])]
        rows: list[list[Any]] = []
        for m in self.methods:
            row: list[Any] = [self.title(m), *(self.value(g, m, self.key) for g in groups)]
            if compared:
                text = interval_text(compared[m], self.images) if m in compared else UNDEFINED
                row.append(text)
            rows.append([*row, self.cost_factor(m)])
        return table(rows, ["", *heads, f"multiply-adds,\nx {self.reference}"])

    def cost_factor(self, method: str) -> float:
        """A method's multiply-adds over the baseline's; NaN where they are not counted."""
        base = self.gmacs(self.baseline) if self.baseline in self.methods else float("nan")
        return self.gmacs(method) / base

    def tables(self) -> Iterator[str]:
        """All tables, after `summary`."""
        for heading, make in self.score_tables().items():
            if body := made(heading, make, self.failed):
                yield f"{wrapped(heading)}\n{body}"
        costs = made("costs", self.cost_table, self.failed)
        yield from filter(None, [costs, self.fitted_note()])

    def score_table(self, columns: Sequence[Column], further: Sequence[Sequence[Any]] = ()) -> str:
        rows = [
            [self.title(m), *(self.value(group, m, key, task) for _, group, task, key in columns)]
            for m in self.methods
        ]
        heads = ["", *(head for head, *_ in columns)]
        forms = [".3f" if key == "token_cos" else ".1f" for *_, key in columns]
        return table([*rows, *further], heads, forms)

    def fitted_note(self) -> str:
        """How many students each method fitted; empty without a method that has one."""
        total = sum(len(run.conditions) * len(run.scored) for run in self.runs)
        with_student = [method for method in self.methods if method in self.model.precisions]
        counts = {m: sum(run.fitted(m) for run in self.runs) for m in with_student}
        fitted = ", ".join(f"{self.title(method)} {count}" for method, count in counts.items())
        return wrapped(f"students fitted, of {counted(total, 'image')}: {fitted}") if fitted else ""

    def notes(self) -> list[str]:
        """What qualifies the scores: failed fits, whose images keep the teacher's prediction."""
        return [
            f"{self.title(method)}: {counted(count, 'fit')} failed (non-finite loss or out of "
            "memory); these images keep the teacher's prediction"
            for method, count in self.fallbacks.items()
            if count
        ]

    @property
    def precisions(self) -> str:
        """What the students' matrix products are computed in, in words."""
        return " and ".join(sorted(set(self.model.precisions.values()))) or "none"

    # ---- files -----------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds; the sentence may name a cost, and waits for them."""
        return {
            "environment": self.environment,
            "warnings": list(self.model.ineffective.values()),
            "metrics": self.metrics,
            "report_failures": self.failed,
            "sentence": self.sentence() if self.costs else "",
        }

    def write(self, text: str = "") -> Path:
        """``inference/results.json``, ``config.yaml``, and the text as ``log.txt``."""
        output = Path(self.cfg.OUTPUT_DIR)
        path = write_json(output / "inference" / "results.json", self.results())
        write_atomically(output / "config.yaml", self.cfg.dump())
        write_atomically(output / "log.txt", text)
        return path


def describe(run: DatasetRun) -> dict[str, Any]:
    """What ``results.json`` says of a run: its fingerprint, and which images have no result."""
    return {
        **run.fingerprint,
        "images": len(run.scored),
        "subset_of": run.total if run.is_subset else None,
        "failed": [
            {"condition": name, "image_id": key, "reason": reason}
            for (name, key), reason in run.failures.items()
        ],
    }


def count_images(run: DatasetRun) -> str:
    """How many images the numbers are of, and what is missing, in capitals."""
    subset = f"SUBSET of {run.total}: " if run.is_subset else ""
    failed = len(run.records) - len(run.scored)
    missing = f", of which {failed} FAILED" if failed else ""
    return f"{subset}{counted(len(run.records), 'image')}{missing}"


def left_out(run: DatasetRun) -> str:
    """What could not be evaluated: how much, and the first few by name; empty for nothing."""
    problems = run.dataset.problems
    failures = [f"image {key} ({name}): {why}" for (name, key), why in run.failures.items()]
    lines = [*failures, *problems]
    if not lines:
        return ""
    more = [f"... and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    head = (
        f"LEFT OUT of every number: {counted(len(run.records) - len(run.scored), 'image')} that "
        f"failed, {counted(len(problems), 'entry')} of the data set that could not be listed"
    )
    return "\n".join([head, *(f"  {line}" for line in [*lines[:NAMED], *more])])


def minus(scores: Scores, method: str, other: str) -> dict[str, PairedDifference]:
    """By group, the scores of a method minus another's, with its interval."""
    a, b = scores[method], scores[other]
    return {group: paired_interval(a[group], b[group]) for group in a}


def as_dicts(differences: Differences) -> dict[str, dict[str, dict[str, float]]]:
    return {
        method: {group: interval._asdict() for group, interval in by_group.items()}
        for method, by_group in differences.items()
    }

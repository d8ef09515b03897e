"""What a report on classification shows: accuracies, calibration errors, measured costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.adapt.classification_methods import CONTROLS
from lqn_seg.classification.published import DATASETS, NOT_RUN, TEACHER, published
from lqn_seg.engine.classify import Classification
from lqn_seg.engine.evaluate import CLEAN
from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES
from lqn_seg.evaluation.classification import BINS
from lqn_seg.lab.cost.speed import peak_gmacs_per_ms
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.budget import budgets, fronts
from lqn_seg.lab.report.costs import classification_cost
from lqn_seg.lab.report.provenance import json_numbers
from lqn_seg.lab.report.report import (
    AVERAGE,
    CORRUPTED,
    Differences,
    Report,
    as_dicts,
    count_images,
    describe,
    minus,
)
from lqn_seg.lab.report.wording import (
    CLASSIFICATION_TITLES,
    comparison,
    counted,
    difference_table,
    interval_heading,
    no_interval,
    number,
    table,
    wrapped,
)

_SCORES = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "ECE": f"expected calibration error ({BINS} bins; lower is better)",
}
_COUNTS = ("forward_gmacs", "backward_gmacs", "peak_mib", "roofline")


class ClassificationReport(Report):
    """Of a run for each data set; the headline score is top-1 accuracy."""

    titles, baseline, reference = CLASSIFICATION_TITLES, "zero-shot", "zero-shot's"
    stages, task = ("views", "teacher", "method"), "classification"
    key, score_name = "acc1", "top-1"

    def __init__(self, runs: Sequence[Classification]) -> None:
        self.first, self.classifier = runs[0], runs[0].classifier
        super().__init__(runs, self.classifier.methods)
        recipes = {name: r for name, r in self.classifier.methods.items() if r is not None}
        students = [name for name, recipe in recipes.items() if recipe.has_student]
        restoring = [name for name, recipe in recipes.items() if recipe.aligns]
        last = (students or restoring or [*recipes])[-1:]
        self.focus = "lqn" if "lqn" in students else "".join(last)
        known = (self.focus, self.baseline, *CONTROLS)
        rivals = [m for m in self.differences if self.focus and m not in known]
        self.lead = {method: minus(self.scores, self.focus, method) for method in rivals}

    def heading(self) -> str:
        counts = "; ".join(
            f"{run.dataset.metadata.name}: {count_images(run)}, "
            f"{len(run.dataset.metadata.class_names)} classes"
            for run in self.runs
        )
        settings, severity = self.cfg.CLASSIFICATION, self.cfg.MODEL.LQN.EVAL.SEVERITY
        return (
            f"{counts}\nscores 0-100; prompts of every method but the zero-shot rows: "
            f"{settings.PROMPTS}; {settings.VIEWS} views; corruptions at severity {severity}"
        )

    def stack(self, stream: str, method: str, task: str) -> NDArray[np.float64]:
        """(images, 2): whether the class is right, and 1; the accuracy needs no more."""
        lines = [line[task] for line in self.lines(stream, method)]
        return np.array([[line["label"] == line["predicted"], 1] for line in lines], float)

    def score_tables(self) -> dict[str, Callable[[], str]]:
        tables: dict[str, Callable[[], str]] = {}
        for key, heading in _SCORES.items():
            columns = [(_short(group), group, self.task, key) for group in self.groups]
            further = self.published_rows() if key == "acc1" else []
            tables[heading] = partial(self.score_table, columns, further)
        if self.differences:
            heading = f"top-1 accuracy minus {self.baseline}'s, {interval_heading(self.images)}"
            tables[heading] = self._differences(self.differences)
        if self.lead:
            focus = self.title(self.focus)
            heading = f"top-1 accuracy of {focus} minus that of each other method, likewise"
            tables[heading] = self._differences(self.lead)
        return tables

    def _differences(self, differences: Differences) -> Callable[[], str]:
        return partial(difference_table, differences, self.images, _short, self.title)

    def published_rows(self) -> list[list[Any]]:
        """Other people's scores with the same teacher on the same clean images, marked as such."""
        if TEACHER not in self.cfg.MODEL.LQN.TEACHER.CONFIG:
            return []
        clean = {n: run for n, (run, _) in self.streams.items() if n.endswith(CLEAN)}
        of_group = {n: published(run.dataset.metadata.name) for n, run in clean.items()}
        columns = [of_group.get(group, {}) for group in self.groups]
        if not any(columns):
            return []
        names = [*(m for m in self.methods if m in published(DATASETS[0])), *NOT_RUN]
        return [[f"{self.title(m)}, published", *(c.get(m) for c in columns)] for m in names]

    # ---- costs -----------------------------------------------------------------------------------

    def cost(self, method: str) -> dict[str, float]:
        cost, busy_ms = classification_cost(self.first, method)
        roofline = 100 * cost.gmacs / max(busy_ms, 1e-9) / self.peak
        values = (cost.forward_gmacs, cost.backward_gmacs, cost.peak_bytes / 2**20, roofline)
        return dict(zip(_COUNTS, values))

    def gmacs(self, method: str) -> float:
        cost = self.costs.get(method) or {}
        return cost.get("forward_gmacs", float("nan")) + cost.get("backward_gmacs", 0)

    @cached_property
    def peak(self) -> float:
        """The device's GMACs per millisecond in the fastest precision in use; NaN if unknown."""
        teacher, complaint = self.classifier.teacher, "the device's speed could not be measured"
        used = {teacher.precision, *self.classifier.precisions.values()}
        peaks = partial(peak_gmacs_per_ms, teacher.device)
        return attempt(complaint, lambda: max(map(peaks, used)), float("nan"), self.failed)

    def cost_lines(self) -> dict[str, dict[str, float]]:
        """Each method's cost, by name and unit; NaN where it is not counted."""
        unknown = dict.fromkeys(_COUNTS, float("nan"))
        lines = {}
        for method in self.methods:
            times = {f"{stage}_ms": ms for stage, ms in self.milliseconds(method).items()}
            lines[method] = {**times, **(self.costs.get(method) or unknown)}
        return lines

    def cost_table(self) -> str:
        front = self.budget_table()["front"].values() if self.differences else ()
        rows = [
            [self.title(m) + "*" * (m in set().union(*front)), *line.values()]
            for m, line in self.cost_lines().items()
        ]
        heads = [f"ms\n{stage}" for stage in (*self.stages, "total")]
        heads += ["GMACs\nforward", "GMACs\nbackward", "MiB\npeak", "%\nof peak"]
        shown = table(rows, ["", *heads], [*[".1f"] * 4, ".3f", ".3f", ".1f", ".0f"])
        threads = counted(int(self.environment["threads"]), "thread")
        heading = (
            f"cost per image: milliseconds (means over this run) on {self.environment['device']}, "
            f"{threads}, teacher in {self.classifier.teacher.precision}, students in "
            f"{self.precisions}. GMACs (multiply-add = 1) and peak memory are of one image, "
            "counted while the method ran alone, with a student if alignment asked for one in any "
            "image. % of peak: that image's speed, views left out, over the speed of a large "
            f"matrix product in the fastest precision in use ({number(self.peak, '.3g')} GMACs/ms)."
            " *: on the Pareto front of pareto.png, by GMACs or by time: nothing reaches as much "
            "for less."
        )
        return f"{wrapped(heading)}\n{shown}"

    def budget_table(self) -> dict[str, Any]:
        """What `draw_pareto` takes as a table: gains against costs, those of zero-shot being 1."""
        costs = budgets(
            {m: self.gmacs(m) for m in self.methods},
            {m: self.milliseconds(m)["total"] for m in self.methods},
            self.baseline,
        )
        group = next(
            g for g in (CORRUPTED, AVERAGE, *self.groups) if g in self.scores[self.baseline]
        )
        gains = {m: float(by_group[group][0]) for m, by_group in self.scores.items()}
        compared = as_dicts(self.differences)
        return {
            "heading": ", ".join(run.dataset.metadata.name for run in self.runs),
            "compared": group,
            "has_intervals": self.images >= FEWEST_IMAGES,
            "budget_unit": self.baseline,
            "front": fronts(costs, gains),
            "methods": {
                m: {"title": self.title(m), "budget": costs[m]}
                | ({"minus_baseline": compared[m]} if m in compared else {})
                for m in self.methods
            },
        }

    def draw(self) -> list[Path]:
        """``pareto.png``, where there are methods to compare."""
        from lqn_seg.visualization.pareto import draw_pareto

        if not self.differences:
            return []

        def draw() -> list[Path]:
            shown = {"metric": _SCORES[self.key], "baseline": self.title(self.baseline)}
            results = {**shown, "tables": [self.budget_table()]}
            return draw_pareto(json_numbers(results), Path(self.cfg.OUTPUT_DIR) / "pareto")

        return attempt("the plot pareto could not be drawn", draw, [], self.failed)

    # ---- words -----------------------------------------------------------------------------------

    def notes(self) -> list[str]:
        history = (
            "TDA learns from the images before it, so its scores depend on the order of the "
            "images. No other row depends on the order or on the other images of a batch."
        )
        return [*super().notes(), *([history] if "tda" in self.methods else [])]

    def sentence(self) -> str:
        if self.focus not in self.differences:
            return ""
        parts = [
            comparison(difference, self.images, self.baseline, f"on {_short(group)}")
            for group, difference in self.differences[self.focus].items()
            if group == CORRUPTED or group.endswith(CLEAN)
        ]
        text = f"{self.title(self.focus)} {', and '.join(parts)}"
        return f"{text}, in points of top-1 accuracy{no_interval(self.images)}."

    def results(self) -> dict[str, Any]:
        """``classification`` has ``ACC-<class>`` for every class."""
        return {
            **super().results(),
            "environment": {**self.environment, "seed": max(self.cfg.SEED, 0)},
            "runs": {run.dataset.metadata.name: describe(run) for run in self.runs},
            "prompts": self.cfg.CLASSIFICATION.PROMPTS,
            "policy": {
                "reset": "everything is fresh for every image, TDA's caches excepted",
                "order": "results do not depend on it, TDA's excepted",
            },
            "differences_to_zero_shot": as_dicts(self.differences),
            "focus": self.focus,
            "focus_minus": as_dicts(self.lead),
            "costs": self.cost_lines(),
            "budget": self.budget_table() if self.costs and self.differences else {},
        }


def _short(group: str) -> str:
    return group.removesuffix(f" {CLEAN}").replace("_", " ")

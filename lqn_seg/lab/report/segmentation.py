"""What a report on segmentation shows: panoptic, instance and semantic scores, GMACs by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lqn_seg.engine.evaluate import CLEAN, Evaluation
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.lab.report.pictures import Panels
from lqn_seg.lab.report.report import CORRUPTED, Additive, Report, as_dicts, count_images, describe
from lqn_seg.lab.report.wording import (
    TITLES,
    counted,
    difference_table,
    interval_heading,
    short_name,
    table,
    verdict_on,
    wrapped,
)

HEADLINE = {"panoptic_seg": "PQ", "sem_seg": "mIoU", "segm": "AP"}  # the first that is there
STAGES = ("teacher", "fit", "query", "head")
_PANOPTIC = [f"{key}{group}" for group in ("", "_th", "_st") for key in ("PQ", "SQ", "RQ")]
_QUALITY = [("panoptic_seg", key) for key in _PANOPTIC]
_QUALITY += [("segm", "AP"), ("sem_seg", "mIoU"), ("lqn", "token_cos")]


class SegmentationReport(Report):
    baseline, reference, stages = "teacher", "the teacher's", STAGES

    def __init__(self, evaluation: Evaluation, panels: Panels | None = None) -> None:
        self.panels = Panels(evaluation) if panels is None else panels
        self.evaluation, self.segmenter = evaluation, evaluation.segmenter
        self.titles = {**TITLES, "teacher": f"{self.segmenter.teacher.name} (teacher)"}
        self.task = next(task for task in HEADLINE if task in evaluation.evaluators)
        self.key = self.score_name = HEADLINE[self.task]
        super().__init__([evaluation], evaluation.segmenter.methods)

    def heading(self) -> str:
        test, name = self.cfg.MODEL.MASK_FORMER.TEST, self.evaluation.dataset.metadata.name
        head = f"{name}, {count_images(self.evaluation)}, scores 0-100"
        if test.PANOPTIC_ON:  # no other output knows them
            head += f"; thresholds {test.OBJECT_MASK_THRESHOLD} / {test.OVERLAP_THRESHOLD}"
        return head

    def score_tables(self) -> dict[str, Callable[[], str]]:
        present = self.metrics[CLEAN][self.methods[0]]

        def quality(group: str) -> Callable[[], str]:
            columns = [(key, group, task, key) for task, key in _QUALITY if task in present]
            return partial(self.score_table, columns)

        tables = {CLEAN: quality(CLEAN)}
        if self.corrupted:
            count, severity = len(self.corrupted), self.cfg.MODEL.LQN.EVAL.SEVERITY
            tables[f"{CORRUPTED} ({count}, severity {severity})"] = quality(CORRUPTED)
            columns = [(short_name(name), name, self.task, self.key) for name in self.streams]
            tables[f"{self.key} by condition"] = partial(self.score_table, columns)
        if self.differences:
            heading = f"{self.key} minus the teacher's, {interval_heading(self.images)}"
            arguments = self.differences, self.images, short_name
            tables[heading] = partial(difference_table, *arguments, methods_down=False)
        return tables

    # ---- costs -----------------------------------------------------------------------------------

    def cost(self, method: str) -> dict[str, float]:
        """`count_gmacs` of the mean number of windows."""
        stats = dict(self.metrics[CLEAN][method]["lqn"])
        if "mixing_weight" in stats:
            stats["mixing_weight"] = float(self.evaluation.fitted(method) > 0)
        return count_gmacs(self.segmenter, method, stats)

    def gmacs(self, method: str, stage: str = "total") -> float:
        return (self.costs.get(method) or {}).get(f"gmacs_{stage}", float("nan"))

    def cost_table(self) -> str:
        names = {s: s for s in (*STAGES, "total")} | {"paper_convention": "(paper's)"}
        heads = [f"GMACs\n{name}" for name in names.values()]
        heads += [f"ms\n{stage}" for stage in (*STAGES, "total")]
        rows: list[list[Any]] = []
        for m in self.methods:
            counts = [self.gmacs(m, stage) for stage in names]
            rows.append([self.title(m), *counts, *self.milliseconds(m).values()])
        shown = table(rows, ["", *heads], [*[".2f"] * 6, *[".1f"] * 5])
        threads = counted(int(self.environment["threads"]), "thread")
        heading = (
            "cost per image: GMACs (multiply-add = 1, forward and backward) and milliseconds on "
            f"{self.environment['device']}, {threads}, students in {self.precisions}. Milliseconds "
            "are means over the conditions. A student that is mixed in by noise is fitted only "
            "where an image looks damaged; its GMACs are those of such an image, or 0 if there "
            "was none."
        )
        return f"{wrapped(heading)}\n{shown}"

    # ---- words -----------------------------------------------------------------------------------

    def sentence(self) -> str:
        """Of LQN, or else the last method beside the teacher and other models."""
        compared = [m for m in self.differences if m not in self.segmenter.baselines]
        if not compared:
            return ""
        method = "lqn" if "lqn" in compared else compared[-1]
        found, count = self.differences[method], len(self.corrupted)
        corrupted = (count, found[CORRUPTED]) if count else None
        numbers = found[CLEAN], corrupted, f" {self.key}", self.cost_factor(method)
        return verdict_on(self.title(method), self.images, *numbers)

    def tables(self) -> Iterator[str]:
        """Of a single method also Detectron2's lines for grep."""
        yield from super().tables()
        if len(self.methods) == 1:
            lines = []
            for task, values in self.metrics[CLEAN][self.methods[0]].items():
                main = {key: f"{value:.4f}" for key, value in values.items() if "-" not in key}
                lines.append(f"Task: {task} ({self.methods[0]})")
                lines += [",".join(main), ",".join(main.values())]
            yield "\n".join(f"copypaste: {line}" for line in lines)

    def draw(self) -> list[Path]:
        return self.panels.draw(self.failed)

    # ---- results.json ----------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        return {
            **super().results(),
            **describe(self.evaluation),
            "seed": self.segmenter.config.seed,
            "not_listed": self.evaluation.dataset.problems,
            "fallbacks": self.fallbacks,
            "policy": {
                "reset": "student, optimizer, scaler and random numbers are fresh for every image",
                "order": "results do not depend on it",
            },
            "gmacs": {method: self.costs.get(method) for method in self.methods},
            "differences_to_teacher": {self.key: as_dicts(self.differences)},
            "per_image": {
                name: {method: self._per_image(name, method) for method in self.methods}
                for name in self.streams
            },
        }

    def _per_image(self, stream: str, method: str) -> list[dict[str, Any]]:
        """Each image's PQ and mIoU, the hash of its masks, and its times and statistics."""
        scores = {
            HEADLINE[task]: evaluator.metric(self.stack(stream, method, task))
            for task, evaluator in self.evaluation.evaluators.items()
            if task in HEADLINE and isinstance(evaluator, Additive)
        }
        pairs = zip(self.evaluation.scored, self.lines(stream, method))
        return [
            {
                "image_id": record["image_id"],
                **{key: float(values[k]) for key, values in scores.items()},
                "mask_hash": line["mask_hash"],
                **line["lqn"],
            }
            for k, (record, line) in enumerate(pairs)
        ]

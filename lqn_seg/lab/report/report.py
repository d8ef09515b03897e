"""From the lines of an evaluation to ``results.json``, tables and one honest sentence.

Scores come first, and are written. Intervals, costs and tables are made from what is there: each
may fail alone, with a sentence, and a cost that cannot be counted is "-", and null in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from lqn_seg.adapt.ineffective import paid_recipe
from lqn_seg.adapt.methods import PixelControl
from lqn_seg.core.config import LQNConfig, with_variant
from lqn_seg.engine.evaluate import CLEAN, DatasetRun, Evaluation
from lqn_seg.engine.store import write_atomically
from lqn_seg.evaluation.bootstrap import (
    FEWEST_IMAGES,
    PairedDifference,
    paired_interval,
    resampled_totals,
)
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.evaluation.semantic import SemanticEvaluator
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.cost.flops import EomtShape, method_gmacs
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.provenance import environment, json_numbers
from lqn_seg.lab.report.wording import (
    comparison,
    counted,
    interval_heading,
    interval_text,
    number,
    short_name,
    table,
    title,
    too_few,
)
from lqn_seg.segmentation.segmenter import Segmenter

CORRUPTED = "mean of corruptions"
HEADLINE = {"panoptic_seg": "PQ", "sem_seg": "mIoU", "segm": "AP"}
# Columns of the quality tables: task, key.
COLUMNS = (
    *(("panoptic_seg", f"{k}{g}") for g in ("", "_th", "_st") for k in ("PQ", "SQ", "RQ")),
    ("segm", "AP"),
    ("sem_seg", "mIoU"),
    ("lqn", "token_cos"),
)
STAGES = ("teacher", "fit", "readout", "head")
NAMED = 10  # failures that are printed; results.json has them all


def count_gmacs(segmenter: Segmenter, method: str, stats: Mapping[str, float]) -> dict[str, float]:
    """Multiply-adds per image of one of a segmenter's methods, by stage: `method_gmacs`.

    What a control does to pixels is not counted; "flip" is a second pass of the teacher, "larger"
    one on more patches. Another model, which takes images of any size, is counted while it runs on
    one of the mean size.

    Args:
        stats: means over the images of `Prediction.stats`; where ``blend`` is 0, no image's student
            was asked, so that none was fitted.
    """
    if method in segmenter.comparators:
        return _comparator_gmacs(segmenter, method, stats)
    if segmenter.larger and method in segmenter.larger.methods:
        return count_gmacs(segmenter.larger, method, stats)
    windows = stats["windows"]
    shape = EomtShape.from_config(segmenter.teacher.model.config)
    recipe = segmenter.methods[method]
    if isinstance(recipe, LQNConfig):
        return method_gmacs(
            paid_recipe(recipe, segmenter.calibration is not None, stats.get("blend", 1) > 0),
            shape,
            windows=windows,
        )
    costs = method_gmacs(with_variant(LQNConfig(), "teacher"), shape, windows=windows)
    if isinstance(recipe, PixelControl) and recipe.name == "flip":
        second = costs["gmacs_teacher"]
        for stage in ("teacher", "total", "paper_convention"):
            costs[f"gmacs_{stage}"] += second
    return costs


def count_images(run: DatasetRun) -> str:
    """How many images the numbers are of, and what is missing, in capitals."""
    subset = f"SUBSET of {run.total}: " if run.is_subset else ""
    chosen, scored = len(run.records), len(run.scored)
    failed = f", of which {chosen - scored} FAILED" if scored < chosen else ""
    return f"{subset}{counted(chosen, 'image')}{failed}"


def left_out(run: DatasetRun) -> list[str]:
    """What could not be evaluated: one text with its number and the first few by name, or none."""
    failures, problems = run.failures, run.dataset.problems
    found = [
        *(f"image {key} ({name}): {why}" for (name, key), why in failures.items()),
        *problems,
    ]
    if not found:
        return []
    more = [f"... and {len(found) - NAMED} more"] if len(found) > NAMED else []
    images = len(run.records) - len(run.scored)
    head = (
        f"LEFT OUT of every number: {counted(images, 'image')} that failed, "
        f"{counted(len(problems), 'entry')} of the data set that could not be listed"
    )
    return ["\n".join([head, *(f"  {text}" for text in [*found[:NAMED], *more])])]


def made(makers: Mapping[str, Callable[[], str]], failed: list[str]) -> list[str]:
    """Tables and sentences by name, without those that cannot be made and those that are empty."""
    complaint = "what is printed under the name '{}' could not be made"
    texts = (attempt(complaint.format(name), make, "", failed) for name, make in makers.items())
    return [text for text in texts if text]


def failed_images(run: DatasetRun) -> list[dict[str, Any]]:
    """The failures as ``results.json`` lists them."""
    return [
        {"condition": name, "image_id": key, "reason": reason}
        for (name, key), reason in run.failures.items()
    ]


def _comparator_gmacs(
    segmenter: Segmenter, method: str, stats: Mapping[str, float]
) -> dict[str, float]:
    input_size = (round(stats["input_height"]), round(stats["input_width"]))
    model = segmenter.comparators[method]
    tasks = segmenter.tasks if model.task_tokens else segmenter.tasks[:1]
    total = sum(measure(partial(model.forward_size, input_size, task)).gmacs for task in tasks)
    stages = ("teacher", "restore", "fit", "readout", "head", "total", "paper_convention")
    whole = ("teacher", "total", "paper_convention")
    return {f"gmacs_{stage}": total if stage in whole else 0.0 for stage in stages}


class Report:
    """Everything that is printed and written about a finished evaluation.

    Attributes:
        failed: a sentence for each part that could not be made.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.failed = evaluation, list[str]()
        self.images = len(evaluation.scored)
        self.cfg = evaluation.cfg
        self.methods = list(evaluation.segmenter.methods)
        self.names = [str(condition) for condition in evaluation.conditions]
        self.corrupted = [name for name in self.names if name != CLEAN]
        self.task = next(task for task in HEADLINE if task in evaluation.evaluators)
        self.key = HEADLINE[self.task]
        self.metrics = {
            name: {method: evaluation.metrics(name, method) for method in self.methods}
            for name in self.names
        }
        self.fallbacks = {method: self._fallbacks(method) for method in self.methods}
        self.environment = environment(self.cfg.MODEL.LQN.EVAL.THREADS)
        none: dict[str, dict[str, PairedDifference]] = {}
        self.differences = attempt(
            "the intervals could not be found", self._differences, none, self.failed
        )
        self._counted: dict[str, dict[str, float] | None] = {}

    @cached_property
    def gmacs(self) -> dict[str, dict[str, float] | None]:
        """Multiply-adds per image of each method, by stage, for one window or the mean number that
        was run; None where they cannot be counted. Counted when they are first asked for."""
        for method in self.methods:
            stats = dict(self.metrics[CLEAN][method]["lqn"])
            if "blend" in stats:
                stats["blend"] = float(self.evaluation.fitted(method) > 0)
            self._counted[method] = attempt(
                f"the cost of {title(method)} could not be counted",
                partial(count_gmacs, self.evaluation.segmenter, method, stats),
                None,
                self.failed,
            )
        return self._counted

    def _cost(self, method: str, stage: str) -> float:
        """GMACs; NaN where they are not known."""
        return (self.gmacs.get(method) or {}).get(stage, float("nan"))

    def _fits(self) -> str:
        """How often each method with a student fitted one, in words; empty where none has any."""
        total = len(self.names) * len(self.evaluation.scored)
        counts = [
            f"{title(method)} {self.evaluation.fitted(method)}"
            for method in self.methods
            if method in self.evaluation.segmenter.precisions
        ]
        return (
            f"students fitted, of {counted(total, 'image')}: {', '.join(counts)}" if counts else ""
        )

    def _differences(self) -> dict[str, dict[str, PairedDifference]]:
        """Headline metric minus the teacher's: method -> condition -> interval.

        Images are resampled, each with all its conditions, so the mean over corruptions has an
        interval of its own.
        """
        evaluator = self.evaluation.evaluators[self.task]
        if "teacher" not in self.methods or not isinstance(
            evaluator, PanopticEvaluator | SemanticEvaluator
        ):
            return {}

        groups = {name: [k] for k, name in enumerate(self.names)}
        if self.corrupted:
            groups[CORRUPTED] = [self.names.index(name) for name in self.corrupted]
        samples = self.cfg.MODEL.LQN.EVAL.BOOTSTRAP_SAMPLES

        def means(method: str) -> dict[str, np.ndarray]:
            """By group, (1 + samples,) mean scores: of all images, then of each resample."""
            by_condition = [
                evaluator.stack([line[self.task] for line in self.evaluation.lines(name, method)])
                for name in self.names
            ]
            totals = resampled_totals(np.stack(by_condition, axis=1), samples)
            scores = evaluator.metric(totals)
            return {group: scores.take(k, axis=1).mean(-1) for group, k in groups.items()}

        teachers = means("teacher")
        return {
            method: {
                group: paired_interval(own, teachers[group]) for group, own in means(method).items()
            }
            for method in self.methods
            if method != "teacher"
        }

    def value(self, group: str, method: str, task: str, key: str) -> float:
        """One number; for the mean of corruptions, the mean of theirs."""
        names = self.corrupted if group == CORRUPTED else [group]
        return float(np.mean([self.metrics[name][method][task][key] for name in names]))

    # ---- text ------------------------------------------------------------------------------------

    def text(self) -> str:
        """The tables and the sentence, as they are printed."""
        return "\n\n".join([*self.score_parts, *self.cost_parts])

    @cached_property
    def score_parts(self) -> list[str]:
        """What is printed of the scores, table by table."""
        test = self.cfg.MODEL.MASK_FORMER.TEST
        evaluation = self.evaluation
        head = f"{evaluation.dataset.metadata.name}, {count_images(evaluation)}, scores 0-100"
        if test.PANOPTIC_ON:  # no other output knows them
            head += f"; thresholds {test.OBJECT_MASK_THRESHOLD} / {test.OVERLAP_THRESHOLD}"
        makers: dict[str, Callable[[], str]] = {}
        for group in [CLEAN, *([CORRUPTED] if self.corrupted else [])]:
            makers[group] = partial(self._quality_table, group)
        if self.corrupted:
            makers[f"{self.key} by condition"] = self._condition_table
        if self.differences:
            makers["differences"] = self._difference_table
        return [head, *left_out(evaluation), *made(makers, self.failed)]

    @cached_property
    def cost_parts(self) -> list[str]:
        """What is printed of the costs, and the sentence, which names one."""
        failures = [
            f"{title(method)}: {counted(count, 'fit')} failed (non-finite loss or out of memory); "
            "the teacher's prediction stands in for them"
            for method, count in self.fallbacks.items()
            if count
        ]
        sentence = made({"sentence": self.sentence}, self.failed)
        costs = made({"costs": self._cost_table}, self.failed)
        return [*costs, *filter(None, [self._fits()]), *failures, *sentence]

    def _precisions(self) -> str:
        found = sorted(set(self.evaluation.segmenter.precisions.values()))
        return " and ".join(found) or "none"

    def _fallbacks(self, method: str) -> int:
        return int(sum(self.metrics[name][method]["lqn"]["fallback"] for name in self.names))

    def _quality_table(self, group: str) -> str:
        columns = [c for c in COLUMNS if c[0] in self.metrics[CLEAN][self.methods[0]]]
        rows = [
            [title(method), *(self.value(group, method, task, key) for task, key in columns)]
            for method in self.methods
        ]
        forms = [".3f" if key == "token_cos" else ".1f" for _, key in columns]
        severity = self.cfg.MODEL.LQN.EVAL.SEVERITY
        extra = "" if group == CLEAN else f" ({len(self.corrupted)}, severity {severity})"
        return f"{group}{extra}\n{table(rows, ['', *(key for _, key in columns)], forms)}"

    def _condition_table(self) -> str:
        rows = [
            [
                title(method),
                *(self.value(name, method, self.task, self.key) for name in self.names),
            ]
            for method in self.methods
        ]
        heads = ["", *(short_name(name) for name in self.names)]
        return f"{self.key} by condition\n{table(rows, heads, '.1f')}"

    def _difference_table(self) -> str:
        groups = [*self.names, *([CORRUPTED] if self.corrupted else [])]
        rows = [
            [
                short_name(group),
                *(interval_text(self.differences[m][group], self.images) for m in self.differences),
            ]
            for group in groups
        ]
        heads = ["", *map(title, self.differences)]
        shown = tabulate(rows, heads, stralign="right", disable_numparse=True)
        return f"{self.key} minus the teacher's, {interval_heading(self.images)}\n{shown}"

    def _mean_ms(self, method: str, stage: str) -> float:
        """Over all conditions: how much a gauged method does depends on the image."""
        times = [self.value(name, method, "lqn", f"{stage}_ms") for name in self.names]
        return sum(times) / len(times)

    def _cost_table(self) -> str:
        rows = []
        for method in self.methods:
            times = [self._mean_ms(method, stage) for stage in STAGES]
            counted = (*STAGES, "total", "paper_convention")
            rows.append(
                [
                    title(method),
                    *(self._cost(method, f"gmacs_{stage}") for stage in counted),
                    *times,
                    sum(times),
                ]
            )
        heads = [
            *(f"GMACs {s}" for s in (*STAGES, "total", "(paper's)")),
            *(f"ms {s}" for s in STAGES),
        ]
        head = ["", *(h.replace(" ", "\n") for h in (*heads, "ms total"))]
        shown = table(rows, head, [*[".2f"] * 6, *[".1f"] * 5])
        return (
            "cost per image: GMACs (multiply-add = 1, forward and backward) and milliseconds on "
            f"{self.environment['device']}, {self.environment['threads']} thread(s), students in "
            f"{self._precisions()}.\nMilliseconds are means over the conditions: a gauged student "
            "is fitted where an image looks damaged (the GMACs are those of such an image, or none "
            f"where there was none)\n{shown}"
        )

    def sentence(self) -> str:
        """What the table shows about the last full method, in one sentence and without flattery.

        Empty where there is no method beside the teacher and other models.
        """
        own = [m for m in self.differences if m not in self.evaluation.segmenter.comparators]
        if not own:
            return ""
        method = "lqn" if "lqn" in own else own[-1]
        found, unit = self.differences[method], f" {self.key}"
        these = "this one image" if self.images == 1 else f"these {self.images} images"
        text = f"On {these} {title(method)} "
        text += comparison(found[CLEAN], self.images, "its teacher", "on clean images", unit)
        if self.corrupted:
            count = len(self.corrupted)
            where = f"on the mean of {count} corruption{'s' * (count > 1)}"
            text += f" and {comparison(found[CORRUPTED], self.images, 'it', where, unit)}"
        ratio = self._cost(method, "gmacs_total") / self._cost("teacher", "gmacs_total")
        cost = f", at {number(ratio)} times the teacher's multiply-adds" if ratio == ratio else ""
        few = f"; no interval: {too_few(self.images)}" if self.images < FEWEST_IMAGES else ""
        return f"{text}{cost}{few}."

    def copypaste(self) -> str:
        """Detectron2's lines for grep, one block per method and task, clean images."""
        lines = []
        for method in self.methods:
            for task, values in self.metrics[CLEAN][method].items():
                main = {k: v for k, v in values.items() if "-" not in k}
                lines.append(f"copypaste: Task: {task} ({method})")
                lines.append("copypaste: " + ",".join(main))
                figures = (number(v, ".4f") if v == v else "nan" for v in main.values())
                lines.append("copypaste: " + ",".join(figures))
        return "\n".join(lines)

    # ---- files -----------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        evaluation = self.evaluation
        return {
            "environment": self.environment,
            **evaluation.fingerprint,
            "seed": evaluation.segmenter.config.seed,
            "images": self.images,
            "subset_of": evaluation.total if evaluation.is_subset else None,
            "failed": failed_images(evaluation),
            "not_listed": evaluation.dataset.problems,
            "fallbacks": self.fallbacks,
            "warnings": list(evaluation.segmenter.ineffective.values()),
            "policy": {
                "reset": "student, optimizer, scaler and random numbers are fresh for every image",
                "order": "results do not depend on it",
            },
            "metrics": self.metrics,
            "gmacs": {method: self._counted.get(method) for method in self.methods},
            "report_failures": self.failed,
            "differences_to_teacher": {
                self.key: {
                    method: {group: d._asdict() for group, d in by_group.items()}
                    for method, by_group in self.differences.items()
                }
            },
            "sentence": self.sentence() if self._counted else "",
            "per_image": {
                name: {method: self._per_image(name, method) for method in self.methods}
                for name in self.names
            },
        }

    def _per_image(self, name: str, method: str) -> list[dict[str, Any]]:
        """Each image's own PQ or mIoU, the hash of its masks, and its times and readings.

        There is no AP of one image: COCO's is of a ranking over all of them.
        """
        lines = self.evaluation.lines(name, method)
        figures = {
            HEADLINE[task]: evaluator.metric(evaluator.stack([line[task] for line in lines]))
            for task, evaluator in self.evaluation.evaluators.items()
            if isinstance(evaluator, PanopticEvaluator | SemanticEvaluator)
        }
        return [
            {
                "image_id": record["image_id"],
                **{key: float(values[k]) for key, values in figures.items()},
                "mask_hash": line["mask_hash"],
                **line["lqn"],
            }
            for k, (record, line) in enumerate(zip(self.evaluation.scored, lines))
        ]

    def write_results(self) -> Path:
        """``inference/results.json``, with the costs that are counted.

        Raises:
            InputError: it cannot be written.
        """
        path = self.evaluation.folder / "results.json"
        write_atomically(path, json.dumps(json_numbers(self.results()), indent=1) + "\n")
        return path

    def write(self) -> Path:
        """``inference/results.json``, ``metrics.json``, ``config.yaml`` and ``log.txt``.

        Raises:
            InputError: one of them cannot be written.
        """
        output, text = Path(self.cfg.OUTPUT_DIR), self.text()
        path = self.write_results()
        flat = {
            f"{method}/{name}/{task}/{key}": value
            for name, by_method in self.metrics.items()
            for method, tasks in by_method.items()
            for task, values in tasks.items()
            for key, value in values.items()
            if "-" not in key
        }
        write_atomically(output / "metrics.json", json.dumps(json_numbers(flat)) + "\n")
        write_atomically(output / "config.yaml", self.cfg.dump())
        write_atomically(output / "log.txt", f"{text}\n\n{self.copypaste()}\n")
        return path

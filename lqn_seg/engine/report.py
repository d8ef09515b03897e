"""From the lines of an evaluation to tables, ``results.json``, one honest sentence and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from lqn_seg.core.fit import LQNConfig, with_variant
from lqn_seg.data.catalog import Category
from lqn_seg.engine.inference import CLEAN, Condition, DatasetRun, Evaluation
from lqn_seg.engine.provenance import environment, json_numbers
from lqn_seg.engine.sharded import write_atomically
from lqn_seg.evaluation.bootstrap import PairedDifference, paired_interval, resampled_totals
from lqn_seg.evaluation.flops import EomtShape, count_torch, method_gmacs
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.evaluation.semantic import SemanticEvaluator
from lqn_seg.segmentation.segmenter import Prediction, Segmenter
from lqn_seg.segmentation.views import PixelControl
from lqn_seg.visualization.panels import (
    DIFFERENCE_LEGEND,
    Segmentation,
    comparison_row,
    legend_entries,
    panel,
    save_png,
)

TITLES = {
    "teacher": "EoMT (teacher)",
    "apm": "APM",
    "lqn-src": "LQN-[src]",
    "lqn": "LQN",
    "restore": "restored, no student",
    "kernel": "kernel smoother",
    "ridge": "kernel ridge",
    "flip": "two views (flip)",
    "blur": "blurred pixels",
    "denoise": "denoised pixels",
    "standardise": "standardised pixels",
    "larger": "larger input",
    "untrained": "untrained student (0 steps)",
    "mask2former": "Mask2Former",
    "maskformer": "MaskFormer",
    "oneformer": "OneFormer",
}
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


def title(method: str) -> str:
    """A method's name as people write it: ``lqn@paper`` is "LQN, recipe: paper"."""
    label, is_comparator, _ = method.partition("=")
    if is_comparator:
        return TITLES.get(label, label)
    variant, _, recipe = method.partition("@")
    name = TITLES.get(variant, variant)
    return f"{name}, recipe: {recipe}" if recipe else name


def count_gmacs(segmenter: Segmenter, method: str, stats: Mapping[str, float]) -> dict[str, float]:
    """Multiply-adds per image of one of a segmenter's methods, by stage: `method_gmacs`.

    What a control does to pixels is not counted; "flip" is a second pass of the teacher, "larger"
    one on more patches. Another model, which takes images of any size, is counted while it runs on
    one of the mean size.

    Args:
        stats: means over the images of `Prediction.stats`.
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
            recipe,
            shape,
            windows=windows,
            query_rows=segmenter.query_rows,
            fit_per_image=segmenter.config.fit_per == "image",
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
    return f"{subset}{chosen} images{failed}"


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
        f"LEFT OUT of every number: {images} images that failed, {len(problems)} entries of "
        "the data set that could not be listed"
    )
    return ["\n".join([head, *(f"  {text}" for text in [*found[:NAMED], *more])])]


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
    total = sum(count_torch(partial(model.forward_size, input_size, task)).gmacs for task in tasks)
    stages = ("teacher", "restore", "fit", "readout", "head", "total", "paper_convention")
    whole = ("teacher", "total", "paper_convention")
    return {f"gmacs_{stage}": total if stage in whole else 0.0 for stage in stages}


class Report:
    """Everything that is printed, written and drawn about a finished evaluation."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
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
        self.gmacs = {method: self._gmacs(method) for method in self.methods}
        self.fallbacks = {method: self._fallbacks(method) for method in self.methods}
        self.environment = environment(self.cfg.MODEL.LQN.EVAL.THREADS)
        self.differences = self._differences()

    def _gmacs(self, method: str) -> dict[str, float]:
        """Multiply-adds per image; one window each, or the mean number that was run."""
        return count_gmacs(self.evaluation.segmenter, method, self.metrics[CLEAN][method]["lqn"])

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
        test = self.cfg.MODEL.MASK_FORMER.TEST
        evaluation = self.evaluation
        parts = [f"{evaluation.dataset.metadata.name}, {count_images(evaluation)}, scores 0-100"]
        if test.PANOPTIC_ON:  # no other output knows them
            parts[0] += f"; thresholds {test.OBJECT_MASK_THRESHOLD} / {test.OVERLAP_THRESHOLD}"
        parts += left_out(evaluation)
        for group in [CLEAN, *([CORRUPTED] if self.corrupted else [])]:
            severity = self.cfg.MODEL.LQN.EVAL.SEVERITY
            extra = "" if group == CLEAN else f" ({len(self.corrupted)}, severity {severity})"
            parts.append(f"{group}{extra}\n{self._quality_table(group)}")
        if self.corrupted:
            parts.append(f"{self.key} by condition\n{self._condition_table()}")
        if self.differences:
            parts.append(
                f"{self.key} minus the teacher's, with its 95% interval (paired bootstrap over "
                f"images)\n{self._difference_table()}"
            )
        parts.append(
            "cost per image: GMACs (multiply-add = 1, forward and backward) and milliseconds on "
            f"{self.environment['device']}, {self.environment['threads']} thread(s), students in "
            f"{self._precisions()}.\nMilliseconds are means over the conditions: a gauged student "
            "is fitted where an image looks damaged (the GMACs are those of such an image)\n"
            f"{self._cost_table()}"
        )
        parts += [
            f"{title(method)}: {number} fits failed (non-finite loss or out of memory); the "
            "teacher's prediction stands in for them"
            for method, number in self.fallbacks.items()
            if number
        ]
        if sentence := self.sentence():
            parts.append(sentence)
        return "\n\n".join(parts)

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
        formats = ["", *(".3f" if key == "token_cos" else ".1f" for _, key in columns)]
        return tabulate(rows, ["", *(key for _, key in columns)], floatfmt=formats)

    def _condition_table(self) -> str:
        rows = [
            [
                title(method),
                *(self.value(name, method, self.task, self.key) for name in self.names),
            ]
            for method in self.methods
        ]
        return tabulate(rows, ["", *(short_name(name) for name in self.names)], floatfmt=".1f")

    def _difference_table(self) -> str:
        groups = [*self.names, *([CORRUPTED] if self.corrupted else [])]
        rows = [
            [
                short_name(group),
                *(interval_text(self.differences[m][group]) for m in self.differences),
            ]
            for group in groups
        ]
        return tabulate(rows, ["", *map(title, self.differences)], stralign="right")

    def _mean_ms(self, method: str, stage: str) -> float:
        """Over all conditions: how much a gauged method does depends on the image."""
        times = [self.value(name, method, "lqn", f"{stage}_ms") for name in self.names]
        return sum(times) / len(times)

    def _cost_table(self) -> str:
        rows = []
        for method in self.methods:
            times = [self._mean_ms(method, stage) for stage in STAGES]
            costs = self.gmacs[method]
            rows.append(
                [
                    title(method),
                    *(costs[f"gmacs_{stage}"] for stage in (*STAGES, "total")),
                    costs["gmacs_paper_convention"],
                    *times,
                    sum(times),
                ]
            )
        heads = [
            *(f"GMACs {s}" for s in (*STAGES, "total", "(paper's)")),
            *(f"ms {s}" for s in STAGES),
        ]
        head = ["", *(h.replace(" ", "\n") for h in (*heads, "ms total"))]
        return tabulate(rows, head, floatfmt=["", *[".2f"] * 6, *[".1f"] * 5])

    def sentence(self) -> str:
        """What the table shows about the last full method, in one sentence and without flattery.

        Empty where there is no method beside the teacher and other models.
        """
        own = [m for m in self.differences if m not in self.evaluation.segmenter.comparators]
        if not own:
            return ""
        method = "lqn" if "lqn" in own else own[-1]
        clean = self.differences[method][CLEAN]
        text = (
            f"On these {len(self.evaluation.scored)} images {title(method)} {verdict(clean)} its "
            f"teacher on clean images ({interval_text(clean)} {self.key})"
        )
        if self.corrupted:
            damaged = self.differences[method][CORRUPTED]
            text += (
                f" and {verdict(damaged)} it on the mean of {len(self.corrupted)} corruptions "
                f"({interval_text(damaged)} {self.key})"
            )
        ratio = self.gmacs[method]["gmacs_total"] / self.gmacs["teacher"]["gmacs_total"]
        return f"{text}, at {ratio:.1f} times the teacher's multiply-adds."

    def copypaste(self) -> str:
        """Detectron2's lines for grep, one block per method and task, clean images."""
        lines = []
        for method in self.methods:
            for task, values in self.metrics[CLEAN][method].items():
                main = {k: v for k, v in values.items() if "-" not in k}
                lines.append(f"copypaste: Task: {task} ({method})")
                lines.append("copypaste: " + ",".join(main))
                lines.append("copypaste: " + ",".join(f"{v:.4f}" for v in main.values()))
        return "\n".join(lines)

    # ---- files -----------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        evaluation = self.evaluation
        return {
            "environment": self.environment,
            **evaluation.fingerprint,
            "seed": evaluation.segmenter.config.seed,
            "images": len(evaluation.scored),
            "subset_of": evaluation.total if evaluation.is_subset else None,
            "failed": failed_images(evaluation),
            "not_listed": evaluation.dataset.problems,
            "fallbacks": self.fallbacks,
            "policy": {
                "reset": "student, optimizer, scaler and random numbers are fresh for every image",
                "order": "results do not depend on it",
            },
            "metrics": self.metrics,
            "gmacs": self.gmacs,
            "differences_to_teacher": {
                self.key: {
                    method: {group: d._asdict() for group, d in by_group.items()}
                    for method, by_group in self.differences.items()
                }
            },
            "sentence": self.sentence(),
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

    def write(self) -> Path:
        """``inference/results.json``, ``metrics.json``, ``config.yaml`` and ``log.txt``.

        Raises:
            InputError: one of them cannot be written.
        """
        output = Path(self.cfg.OUTPUT_DIR)
        path = self.evaluation.folder / "results.json"
        write_atomically(path, json.dumps(json_numbers(self.results()), indent=1) + "\n")
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
        write_atomically(output / "log.txt", f"{self.text()}\n\n{self.copypaste()}\n")
        return path

    def draw_panels(self) -> Path | None:
        """A picture per image, a row per condition: truth, methods, and where they differ."""
        evaluation, wanted = self.evaluation, self.cfg.MODEL.LQN.EVAL
        chosen = [m for m in wanted.PANEL_METHODS or ("teacher", "apm", "lqn") if m in self.methods]
        if not wanted.PANEL_IMAGES or self.task != "panoptic_seg" or len(chosen) < 2:
            return None
        full = evaluation.segmenter
        segmenter = Segmenter(
            full.teacher,
            full.head,
            {method: full.methods[method] for method in chosen},
            full.thing_ids,
            full.config,
            full.calibration,
            {m: model for m, model in full.comparators.items() if m in chosen},
        )
        folder = Path(self.cfg.OUTPUT_DIR) / "panels"
        path = None
        for record in evaluation.scored[: wanted.PANEL_IMAGES]:
            path = save_png(
                self._panel(segmenter, record, chosen), folder / f"{record['image_id']}.png"
            )
        return path.parent if path else None

    def _panel(
        self, segmenter: Segmenter, record: Mapping[str, Any], chosen: Sequence[str]
    ) -> np.ndarray:
        evaluation, metadata = self.evaluation, self.evaluation.dataset.metadata
        truth = Segmentation(metadata.read_panoptic(record), record["segments_info"])
        evaluator = evaluation.evaluators["panoptic_seg"]

        def quality(prediction: Prediction) -> float:
            return evaluator.summarize([evaluator.statistics(record, prediction.output)])["PQ"]

        shown = panel_conditions(evaluation.conditions)
        images = [evaluation.image(condition, dict(record)) for condition in shown]
        seen = [
            Seen(
                image.permute(1, 2, 0).numpy(),
                {method: predictions[method] for method in chosen},
                truth,
                quality,
                condition.words,
            )
            for condition, image, predictions in zip(shown, images, segmenter(images))
        ]
        return comparison_panel(seen, metadata.categories, "PQ")


@dataclass(frozen=True)
class Seen:
    """An image and what methods made of it: a row of a panel.

    Attributes:
        pixels: (h, w, 3) uint8.
        predictions: by method.
        truth: ground truth, where there is any.
        score: of a prediction; None without ground truth.
        label: of the row.
    """

    pixels: np.ndarray
    predictions: Mapping[str, Prediction]
    truth: Segmentation | None
    score: Callable[[Prediction], float | None]
    label: str


def comparison_panel(
    seen: Sequence[Seen], categories: Sequence[Category], metric: str
) -> NDArray[np.uint8]:
    """A row per image: ground truth if there is any, the predictions, and where the last one
    differs from the first; scores are written, and how far each is from the first method's."""
    rows, drawn = [], []
    for image in seen:
        maps = {title(name): segmentation(p.output) for name, p in image.predictions.items()}
        scores = {title(name): image.score(p) for name, p in image.predictions.items()}
        names = list(maps)
        rows.append(
            comparison_row(
                image.pixels,
                image.truth,
                maps,
                categories,
                reference=names[0],
                compared=names[-1],
                label=image.label,
                figures=score_texts(scores, metric),
            )
        )
        drawn += [*maps.values(), *([image.truth] if image.truth else [])]
    return panel(rows, [*legend_entries(drawn, categories), *DIFFERENCE_LEGEND])


def segmentation(output: dict[str, Any]) -> Segmentation:
    """A panoptic map to draw; semantic output becomes one segment per class."""
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        return Segmentation(ids.cpu().numpy(), segments)
    ids = (output["sem_seg"].argmax(0).cpu().numpy() + 1).astype(np.int32)
    return Segmentation(ids, one_each(ids))


def one_each(ids: NDArray[np.int32]) -> list[dict[str, Any]]:
    """A segment per class of a map of classes + 1, 0 = void."""
    present = [int(i) for i in np.unique(ids) if i]
    return [{"id": i, "category_id": i - 1, "isthing": False} for i in present]


def panel_conditions(conditions: Sequence[Condition]) -> list[Condition]:
    """Clean and the two corruptions that look least alike: noise and fog where they are there."""
    preferred = [c for c in conditions if c.corruption in (CLEAN, "gaussian_noise", "fog")]
    return preferred if len(preferred) > 1 else list(conditions[:3])


def score_texts(scores: Mapping[str, float | None], metric: str) -> dict[str, str]:
    """ "PQ 61" for the first, "PQ 64 (+3)" for the others; nothing without ground truth."""
    first, *_ = scores.values()
    texts = {}
    for k, (name, score) in enumerate(scores.items()):
        if score is not None and first is not None:
            texts[name] = f"{metric} {score:.0f}" + (f" ({score - first:+.0f})" if k else "")
    return texts


def short_name(name: str) -> str:
    return name.rsplit("-", 1)[0].replace("_", " ")


def interval_text(difference: PairedDifference) -> str:
    return f"{difference.difference:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def verdict(difference: PairedDifference) -> str:
    if difference.low > 0:
        return "is better than"
    return "is worse than" if difference.high < 0 else "cannot be told apart from"

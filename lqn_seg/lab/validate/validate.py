"""Is a data set whole, and do our evaluators give on it what the reference implementations give?

Every image is checked against its annotations. Its ground truth as a prediction must score 100, a
damaged copy what the implementations in `references.py` give, and a prediction that is stored with
the demo what panopticapi and Detectron2's evaluators gave for it.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from lqn_seg.data.catalog import Dataset, Metadata, Record, get_dataset
from lqn_seg.data.images import read_id_map
from lqn_seg.data.shipped import shipped_root
from lqn_seg.engine.interruption import patient
from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import ImageEvaluator
from lqn_seg.evaluation.cityscapes import semantic_evaluator
from lqn_seg.evaluation.instance import InstanceEvaluator
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.lab.report.wording import counted
from lqn_seg.lab.validate.ground_truth import GroundTruth, damage, read_ground_truth, tasks_of
from lqn_seg.lab.validate.references import build_references

TOLERANCE = 1e-6  # of a score 0 .. 100
STORED_DATASET = "demo_panoptic_val"
_DATASETS = shipped_root() / "datasets"
STORED = _DATASETS / "demo" / "perturbed"
# What is printed of each task.
HEADLINES = {
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
    "segm": ("AP", "AP50", "AP75"),
    "sem_seg": ("mIoU", "pACC", "IoU", "iIoU"),
}
# Rows of the tables; those of references follow.
TRUTH, DAMAGED, REFERENCE = "ground truth as prediction", "damaged ground truth", "the same by "


@dataclass
class Validation:
    name: str
    images: int  # looked at
    total: int
    problems: list[str] = field(default_factory=list)  # an image with a problem is not scored
    notes: list[str] = field(default_factory=list)  # what is odd but harmless
    # Task -> row (`TRUTH`, `DAMAGED`, those of references) -> metrics.
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    # Metric -> our score of the stored prediction, and the reference's.
    stored: dict[str, tuple[float, float]] = field(default_factory=dict)
    beyond_ap: bool = False  # more instances than AP takes predictions: the truth has below 100
    interrupted: bool = False  # Ctrl-C came before the last image

    def text(self, most: int = 20) -> str:
        """The report, with at most so many problems spelled out."""
        subset = f", SUBSET of {self.total}" if self.images < self.total else ""
        images, problems = counted(self.images, "image"), counted(len(self.problems), "problem")
        lines = [f"{self.name}{subset}: {images}, {problems}"]
        for kind, sentences in (("problem", self.problems), ("note", self.notes)):
            lines += [f"{kind}: {sentence}" for sentence in sentences[:most]]
            if len(sentences) > most:
                lines.append(f"... and {len(sentences) - most} more {kind}s")
        tables = []
        for task, scores in self.scores.items():
            keys = [key for key in HEADLINES[task] if key in scores[TRUTH]]
            rows = [[row, *(metrics.get(k, "") for k in keys)] for row, metrics in scores.items()]
            tables.append((rows, [task, *keys]))
        if self.stored:
            titles = [f"stored prediction, {STORED_DATASET}", "here", "reference"]
            tables.append(([[key, *pair] for key, pair in self.stored.items()], titles))
        for rows, titles in tables:
            lines += ["", tabulate(rows, titles, floatfmt=".6f")]
        return "\n".join(lines)

    def disagreements(self) -> list[str]:
        """One sentence per score that is not what it must be."""
        sentences = [
            f"{TRUTH} scores {key} {value:.9f} ({task})"
            for task, scores in self.scores.items()
            if task != InstanceEvaluator.task or not self.beyond_ap
            for key, value in scores[TRUTH].items()
            if abs(value - 100) > TOLERANCE  # NaN where it is undefined
        ]
        pairs = [
            (DAMAGED, key, scores[DAMAGED][key], theirs, row.removeprefix(REFERENCE))
            for scores in self.scores.values()
            for row, metrics in scores.items()
            if row.startswith(REFERENCE)
            for key, theirs in metrics.items()
        ]
        who = "the reference implementation"
        pairs += [("stored prediction", key, *both, who) for key, both in self.stored.items()]
        return sentences + [
            f"the {what} scores {key} {ours:.9f} here and {theirs:.9f} by {source}"
            for what, key, ours, theirs, source in pairs
            if not np.isclose(ours, theirs, rtol=0, atol=TOLERANCE, equal_nan=True)
        ]


def validate(dataset: Dataset, max_images: int = 0, progress: bool = True) -> Validation:
    """Check the files of a data set's first images (0: of all), and score its ground truth, whole
    and damaged; after Ctrl-C, as far as it came."""
    dataset = dataset.with_instances().listed()
    metadata, records = dataset.metadata, dataset.records(strict=False)
    problems = [*dataset.problems, *_duplicates(records)]
    result = Validation(metadata.name, 0, len(records), problems, list(dataset.notes))
    if not records:
        return result
    scorers = {row: build_scorers(records[0], metadata) for row in (TRUTH, DAMAGED)}
    with tempfile.TemporaryDirectory() as folder:
        references = build_references(records[0], metadata, Path(folder))
        with patient() as stop:
            for record in tqdm(records[: max_images or None], unit="image", disable=not progress):
                if stop():
                    result.interrupted = True
                    break
                result.images += 1
                try:
                    truth = read_ground_truth(record, metadata)
                except InputError as error:
                    result.problems.append(str(error))
                    continue
                result.notes += truth.notes
                result.beyond_ap |= bool(truth.beyond_ap)
                copy = damage(truth, metadata)
                _process(scorers[TRUTH], record, truth)
                _process(scorers[DAMAGED], record, copy)
                for reference in references:
                    reference.add(record, copy)
        for row, evaluators in scorers.items():
            for evaluator in (e for e in evaluators if e.images):
                metrics = evaluator.evaluate()[evaluator.task]
                result.scores.setdefault(evaluator.task, {})[row] = metrics
        for reference in references if result.scores else ():
            result.scores[reference.task][f"{REFERENCE}{reference.source}"] = reference.scores()
    result.stored = score_stored()
    result.problems += result.disagreements()
    return result


def _duplicates(records: Iterable[Record]) -> list[str]:
    """One sentence per image id or image file that occurs twice; many images lie in one array."""
    entries = Counter(("image_id", record["image_id"], None) for record in records)
    entries += Counter(("file_name", x["file_name"], x.get("row")) for x in records)
    return [f"{key} {value!r} occurs twice" for (key, value, _), n in entries.items() if n > 1]


def build_scorers(record: Record, metadata: Metadata) -> list[ImageEvaluator]:
    """The evaluators that a data set has ground truth for; `record` is one of its."""
    build: dict[str, Callable[[Metadata], ImageEvaluator]] = {
        "panoptic_seg": PanopticEvaluator,
        "segm": InstanceEvaluator,
        "sem_seg": semantic_evaluator,
    }
    tasks = tasks_of(record, metadata)
    return [evaluator(metadata) for task, evaluator in build.items() if task in tasks]


def _process(scorers: Iterable[ImageEvaluator], record: Record, prediction: GroundTruth) -> None:
    for scorer in scorers:
        scorer.process([record], [prediction.output(len(scorer.metadata.class_names))])


def stored_predictions(folder: Path = STORED) -> list[tuple[Record, GroundTruth]]:
    """Records of the shipped demo, and the damaged predictions that are stored for them."""
    dataset = get_dataset(STORED_DATASET, root=_DATASETS)
    records = {record["image_id"]: record for record in dataset.records()}
    predictions = []
    for annotation in json.loads((folder / "predictions.json").read_text())["annotations"]:
        record, segments = records[annotation["image_id"]], annotation["segments_info"]
        ids = read_id_map(folder / annotation["file_name"])
        labels, instances = np.zeros_like(ids), []
        for segment in segments:
            mask, category = ids == segment["id"], segment["category_id"]
            labels[mask] = category
            if category in dataset.metadata.thing_ids:
                instances.append((mask, category, segment["score"]))
        prediction = GroundTruth(record["image_id"], ids.shape, (ids, segments), instances, labels)
        predictions.append((record, prediction))
    return predictions


def score_stored() -> dict[str, tuple[float, float]]:
    """Metric -> our score of the stored predictions, and the reference implementation's."""
    metadata = get_dataset(STORED_DATASET, root=_DATASETS).metadata
    predictions = stored_predictions()
    scorers = build_scorers(predictions[0][0], metadata)
    for record, prediction in predictions:
        _process(scorers, record, prediction)
    figures = json.loads((STORED / "reference.json").read_text())
    ours = {scorer.task: scorer.evaluate()[scorer.task] for scorer in scorers}
    return {
        key: (ours[task][key], value)
        for task, reference in figures.items()
        for key, value in reference["scores"].items()
    }

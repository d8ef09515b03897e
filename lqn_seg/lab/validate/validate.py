"""Is a data set whole, and do our evaluators give on it what the reference implementations give?

Every image is read and held against its annotations. Its ground truth is scored as a prediction,
which must give 100, and so is a damaged copy of it, which must give what the implementations in
`references.py` give. A damaged prediction that is stored with the demo, with the figures that
panopticapi and Detectron2's evaluators gave for it, is scored every time.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from lqn_seg.data.catalog import Dataset, Metadata, Record, get_dataset
from lqn_seg.data.images import read_id_map
from lqn_seg.engine.interruption import patient
from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import ImageEvaluator
from lqn_seg.evaluation.cityscapes import semantic_evaluator
from lqn_seg.evaluation.instance import InstanceEvaluator
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.lab.report.wording import counted
from lqn_seg.lab.validate.ground_truth import (
    GroundTruth,
    damage,
    has_instances,
    has_labels,
    read_ground_truth,
)
from lqn_seg.lab.validate.references import build_references

Metrics = dict[str, dict[str, float]]
TOLERANCE = 1e-6  # of a score 0 .. 100
STORED_DATASET = "demo_panoptic_val"
_DATASETS = Path(__file__).resolve().parents[3] / "datasets"
STORED = _DATASETS / "demo" / "perturbed"
# What is printed of each task.
HEADLINES = {
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
    "segm": ("AP", "AP50", "AP75"),
    "sem_seg": ("mIoU", "pACC", "IoU", "iIoU"),
}


@dataclass
class Validation:
    """What was found.

    Attributes:
        name: the data set's.
        images, total: images looked at, and images there are.
        problems: one sentence each; an image with a problem is not scored.
        notes: what is odd but harmless.
        truth, damaged: metrics of the ground truth as prediction, and of its damaged copy.
        references: implementation -> task and its scores of the damaged copy.
        stored: metric -> our score of the stored prediction, and the reference's.
        beyond_ap: an image has more instances than AP takes predictions, so that the ground truth
            has less than 100.
        interrupted: Ctrl-C came before the last image.
    """

    name: str
    images: int
    total: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    truth: Metrics = field(default_factory=dict)
    damaged: Metrics = field(default_factory=dict)
    references: dict[str, tuple[str, dict[str, float]]] = field(default_factory=dict)
    stored: dict[str, tuple[float, float]] = field(default_factory=dict)
    beyond_ap: bool = False
    interrupted: bool = False

    def text(self, most: int = 20) -> str:
        """The report, with at most so many problems spelled out."""
        subset = f", SUBSET of {self.total}" if self.images < self.total else ""
        looked, found = counted(self.images, "image"), counted(len(self.problems), "problem")
        lines = [f"{self.name}{subset}: {looked}, {found}"]
        for kind, sentences in (("problem", self.problems), ("note", self.notes)):
            lines += [f"{kind}: {sentence}" for sentence in sentences[:most]]
            if len(sentences) > most:
                lines.append(f"... and {len(sentences) - most} more {kind}s")
        for task, metrics in self.truth.items():
            keys = [key for key in HEADLINES[task] if key in metrics]
            rows: list[list[Any]] = [
                ["ground truth as prediction", *(metrics[k] for k in keys)],
                ["damaged ground truth", *(self.damaged[task][k] for k in keys)],
            ]
            rows += [
                [f"the same by {source}", *(scores.get(k, "") for k in keys)]
                for source, (of, scores) in self.references.items()
                if of == task
            ]
            lines += ["", tabulate(rows, [task, *keys], floatfmt=".6f")]
        if self.stored:
            titles = [f"stored prediction, {STORED_DATASET}", "here", "reference"]
            rows = [[key, *pair] for key, pair in self.stored.items()]
            lines += ["", tabulate(rows, titles, floatfmt=".6f")]
        return "\n".join(lines)


def validate(dataset: Dataset, max_images: int = 0, progress: bool = True) -> Validation:
    """Check a data set's files and score its ground truth, whole and damaged.

    Ctrl-C ends it early: what was looked at until then is reported.

    Args:
        dataset: what to check.
        max_images: look at the first so many; 0 is all.
        progress: whether to draw a bar.

    Raises:
        InputError: the data set cannot even be looked at.
    """
    dataset = dataset.with_instances().listed()
    metadata, records = dataset.metadata, dataset.records(strict=False)
    chosen = records[: max_images or None]
    problems = [*dataset.problems, *_duplicates(records)]
    found = Validation(metadata.name, 0, len(records), problems, list(dataset.notes))
    if not records:
        return found
    scorers = {kind: build_scorers(records[0], metadata) for kind in ("truth", "damaged")}
    with tempfile.TemporaryDirectory() as folder:
        references = build_references(records[0], metadata, Path(folder))
        with patient() as stop:
            for record in tqdm(chosen, unit="image", disable=not progress):
                if stop():
                    found.interrupted = True
                    break
                found.images += 1
                truth = _read(record, metadata, found)
                if truth is None:
                    continue
                found.beyond_ap |= bool(truth.beyond_ap)
                copy = damage(truth, metadata)
                for kind, given in (("truth", truth), ("damaged", copy)):
                    output = given.output(metadata.num_classes)
                    for scorer in scorers[kind].values():
                        scorer.process([record], [output])
                for reference in references:
                    reference.add(record, copy)
        if all(scorer.images for scorer in scorers["truth"].values()):
            found.truth, found.damaged = (_evaluate(scorers[k]) for k in ("truth", "damaged"))
            found.references = {r.source: (r.task, r.scores()) for r in references}
    found.stored = score_stored()
    found.problems += disagreements(found)
    return found


def _read(record: Record, metadata: Metadata, found: Validation) -> GroundTruth | None:
    """An image's ground truth, if nothing is wrong with it; what is, goes into `found`."""
    try:
        truth = read_ground_truth(record, metadata)
    except InputError as error:
        found.problems.append(str(error))
        return None
    found.notes += truth.notes
    return truth


def _duplicates(records: Iterable[Record]) -> list[str]:
    """One sentence per image id or image file that occurs twice."""
    problems = []
    for key in ("image_id", "file_name"):
        seen: set[Any] = set()
        for record in records:
            # Many images lie in one array.
            value = (record[key], record.get("row")) if key == "file_name" else record[key]
            if value in seen:
                problems.append(f"{key} {record[key]!r} occurs twice")
            seen.add(value)
    return problems


def build_scorers(record: Record, metadata: Metadata) -> dict[str, ImageEvaluator]:
    """The evaluators that a data set has ground truth for, by task; `record` is one of its."""
    chosen: list[ImageEvaluator] = []
    if "segments_info" in record:
        chosen.append(PanopticEvaluator(metadata))
    if has_instances(record, metadata):
        chosen.append(InstanceEvaluator(metadata))
    if has_labels(record):
        chosen.append(semantic_evaluator(metadata))
    return {scorer.task: scorer for scorer in chosen}


def _evaluate(scorers: Mapping[str, ImageEvaluator]) -> Metrics:
    return {task: scorer.evaluate()[task] for task, scorer in scorers.items()}


def stored_predictions(folder: Path = STORED) -> list[tuple[Record, GroundTruth]]:
    """Records of the shipped demo and the damaged predictions that are stored for them.

    They are in COCO panoptic layout, each segment with a score; its things are the instances, and
    every pixel has its segment's category.

    Raises:
        InputError: a file is missing.
    """
    dataset = get_dataset(STORED_DATASET, root=_DATASETS)
    records = {record["image_id"]: record for record in dataset.records()}
    predictions = []
    for annotation in json.loads((folder / "predictions.json").read_text())["annotations"]:
        record, segments = records[annotation["image_id"]], annotation["segments_info"]
        ids = read_id_map(folder / annotation["file_name"])
        labels = np.zeros_like(ids)
        for segment in segments:
            labels[ids == segment["id"]] = segment["category_id"]
        instances = [
            (ids == segment["id"], segment["category_id"], segment["score"])
            for segment in segments
            if segment["category_id"] in dataset.metadata.thing_ids
        ]
        prediction = GroundTruth(record["image_id"], ids.shape, (ids, segments), instances, labels)
        predictions.append((record, prediction))
    return predictions


def score_stored() -> dict[str, tuple[float, float]]:
    """Metric -> our score of the stored predictions, and the reference implementation's."""
    metadata = get_dataset(STORED_DATASET, root=_DATASETS).metadata
    predictions = stored_predictions()
    scorers = build_scorers(predictions[0][0], metadata)
    for record, prediction in predictions:
        for scorer in scorers.values():
            scorer.process([record], [prediction.output(metadata.num_classes)])
    figures = json.loads((STORED / "reference.json").read_text())
    ours = _evaluate(scorers)
    return {
        key: (ours[task][key], value)
        for task, reference in figures.items()
        for key, value in reference["scores"].items()
    }


def disagreements(found: Validation) -> list[str]:
    """One sentence per score that is not what it must be."""
    problems = [
        f"ground truth as prediction scores {key} {value:.9f} ({task})"
        for task, metrics in found.truth.items()
        if task != InstanceEvaluator.task or not found.beyond_ap
        for key, value in metrics.items()
        if not math.isnan(value) and not _equal(value, 100)
    ]
    pairs = [
        (f"the damaged ground truth scores {key}", found.damaged[task][key], theirs, source)
        for source, (task, scores) in found.references.items()
        for key, theirs in scores.items()
    ]
    pairs += [
        (f"the stored prediction scores {key}", *pair, "the reference implementation")
        for key, pair in found.stored.items()
    ]
    return problems + [
        f"{what} {ours:.9f} here and {theirs:.9f} by {source}"
        for what, ours, theirs, source in pairs
        if not _equal(ours, theirs)
    ]


def _equal(ours: float, theirs: float) -> bool:
    both_undefined = math.isnan(ours) and math.isnan(theirs)
    return both_undefined or abs(ours - theirs) <= TOLERANCE

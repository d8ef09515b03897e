"""Cityscapes' own evaluation of semantic segmentation: the functions of cityscapesscripts'
`evalPixelLevelSemanticLabeling`, which get the images one by one."""

import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import DatasetMetadata, Statistics, sparse
from lqn_seg.evaluation.semantic import SemanticAnswer, SemanticEvaluator, SemanticTruth

LABELS = "labelIds"


class CityscapesEvaluator(SemanticEvaluator):
    """`SemanticEvaluator` plus IoU, iIoU, IoU_sup and iIoU_sup as Detectron2 names them.

    `output["sem_seg"]` holds scores (19, H, W) by train id. Ground truth is the record's
    `sem_seg_file_name`, a file of label ids, and the file of instance ids beside it; iIoU weighs
    pixels by the size of their instance and is NaN where an image has no such file. An image's
    statistics are those of `SemanticEvaluator` and {"cityscapes": {"confusion": [[true label id,
    predicted label id, pixels], ...], "instances": {"classes" or "categories": {name: [weighted
    true positives, weighted false negatives]}} or None}}.

    IoU is the mean over classes in truth or prediction; mIoU only over classes in the truth.
    """

    def _read(self, record: Mapping[str, Any]) -> SemanticTruth:
        truth = super()._read(record)
        if LABELS not in Path(truth.path).name:
            raise InputError(
                f"Cityscapes' evaluation of image {truth.image_id} needs a file of {LABELS}, its "
                f"ground truth is {truth.path or 'no file'}"
            )
        return truth

    def count(self, truth: SemanticTruth, answer: SemanticAnswer) -> Statistics:
        has_instances = Path(_instance_file(truth.path)).is_file()
        matrix, weights = _count(train_to_label_ids()[answer.labels], truth.path, has_instances)
        more = {"confusion": sparse(matrix), "instances": weights if has_instances else None}
        return {**super().count(truth, answer), "cityscapes": more}

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """mIoU and its relatives, then IoU iIoU IoU_sup iIoU_sup, 0 .. 100, NaN where undefined."""
        result = super().summarize(statistics)
        script, arguments = _script(), _arguments(True)
        matrix = script.generateMatrix(arguments)
        totals = script.generateInstanceStats(arguments)
        parts = [image["cityscapes"] for image in statistics]
        has_instances = all(part["instances"] is not None for part in parts)
        for part in parts:
            for truth, predicted, pixels in part["confusion"]:
                matrix[truth, predicted] += np.ulonglong(pixels)
            for group in totals if has_instances else ():
                for name, (right, missed) in part["instances"][group].items():
                    totals[group][name]["tpWeighted"] += right
                    totals[group][name]["fnWeighted"] += missed
        labels, categories = train_to_label_ids().tolist(), list(script.category2labels)
        pixels_of, weights_of = (matrix,), (matrix, totals)
        for key, score, names, counts in (
            ("IoU", script.getIouScoreForLabel, labels, pixels_of),
            ("iIoU", script.getInstanceIouScoreForLabel, labels, weights_of),
            ("IoU_sup", script.getIouScoreForCategory, categories, pixels_of),
            ("iIoU_sup", script.getInstanceIouScoreForCategory, categories, weights_of),
        ):
            values = {name: score(name, *counts, arguments) for name in names}
            average = 100 * float(script.getScoreAverage(values, arguments))
            result[key] = average if has_instances or key.startswith("IoU") else float("nan")
        return result


def semantic_evaluator(metadata: DatasetMetadata, temperature: float = 1.0) -> SemanticEvaluator:
    """The evaluator of semantic segmentation that a data set asks for."""
    is_cityscapes = metadata.evaluator_type == "cityscapes_sem_seg"
    make = CityscapesEvaluator if is_cityscapes else SemanticEvaluator
    return make(metadata, temperature=temperature)


def _count(
    predicted: NDArray[np.uint8], truth: str, has_instances: bool
) -> tuple[NDArray[np.integer], dict[str, dict[str, list[float]]]]:
    """One image through the script: pixels by label ids, and the weights of instances."""
    script, arguments = _script(), _arguments(has_instances)
    matrix = script.generateMatrix(arguments)
    stats = script.generateInstanceStats(arguments)
    file = io.BytesIO()
    Image.fromarray(predicted).save(file, format="PNG")
    try:
        script.evaluatePair(file, truth, matrix, stats, {}, arguments)
    except SystemExit:  # its way of saying so; files and sizes were checked before
        raise InputError(f"cityscapesscripts cannot use the ground truth of {truth}") from None
    weights = {
        group: {
            name: [float(entry["tpWeighted"]), float(entry["fnWeighted"])]
            for name, entry in stats[group].items()
            if entry["tpWeighted"] or entry["fnWeighted"]
        }
        for group in ("classes", "categories")
    }
    return matrix, weights


def _arguments(has_instances: bool) -> Any:
    """The script's parameters, silent, writing nothing; the global ones stay as they are."""
    arguments = copy.copy(_script().args)
    arguments.evalInstLevelScore = has_instances
    arguments.JSONOutput, arguments.quiet = False, True
    return arguments


def train_to_label_ids() -> NDArray[np.uint8]:
    """Ids of the labels that count, by train id."""
    labels = [label for label in _script().labels if not label.ignoreInEval]
    return np.array([label.id for label in sorted(labels, key=lambda x: x.trainId)], np.uint8)


def score_files(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The script's own evaluation of files (prediction, ground truth) of label ids: IoU, iIoU,
    IoU_sup, iIoU_sup, 0 .. 100; those of instances only where all their files are there."""
    has_instances = all(Path(_instance_file(truth)).is_file() for _, truth in pairs)
    predicted, truths = zip(*pairs, strict=True)
    scores = _script().evaluateImgLists(list(predicted), list(truths), _arguments(has_instances))
    keys = {"IoU": "Classes", "IoU_sup": "Categories"}
    if has_instances:
        keys |= {"iIoU": "InstClasses", "iIoU_sup": "InstCategories"}
    return {key: 100 * float(scores[f"averageScore{name}"]) for key, name in keys.items()}


def _instance_file(truth: str) -> str:
    """The file of instance ids beside one of label ids, as the script finds it."""
    return truth.replace(LABELS, "instanceIds")


class _NumpyWithIn1d:
    """NumPy for cityscapesscripts 2.3, which calls `in1d`; NumPy 2.4 has only `isin`."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _script() -> Any:
    """cityscapesscripts' module; imported late, for it is large."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

    if not hasattr(script.np, "in1d"):
        script.np = _NumpyWithIn1d()
    return script

"""Semantic segmentation: mIoU and its relatives from one confusion matrix of the data set, of all
pixels or of those near a boundary."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import (
    ImageEvaluator,
    Statistics,
    check_shape,
    output_field,
    sparse,
    to_numpy,
)

TRIMAP = 3  # pixels


class SemanticTruth(NamedTuple):
    """An image's true labels."""

    image_id: Any
    labels: NDArray[np.int64]  # (H, W) contiguous ids; the number of classes: does not count
    path: str = ""  # of the record's label map


def confusion_matrix(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """(classes, classes) pixels by true (rows) and predicted class; both maps are (H, W), and where
    the truth is `classes` a pixel does not count."""
    pairs = (truth * classes + predicted).ravel()
    return np.bincount(pairs, minlength=(classes + 1) * classes).reshape(-1, classes)[:-1]


def semantic_quality(totals: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """mIoU, fwIoU, mACC and pACC, each (...), 0 .. 100.

    Classes absent from the ground truth are not averaged; without any ground truth all is NaN.

    Args:
        totals: (..., C, 3): pixels that are right, pixels of the class in the ground truth, pixels
            predicted as the class (ignored ones in none of them); leading dimensions are
            independent data sets.
    """
    right, truth, _ = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    iou, accuracy = _per_class(totals)
    classes, pixels = (truth > 0).sum(axis=-1), truth.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return {
            "mIoU": 100 * np.nansum(iou, axis=-1) / classes,
            "fwIoU": 100 * np.nansum(iou * truth, axis=-1) / pixels,
            "mACC": 100 * np.nansum(accuracy, axis=-1) / classes,
            "pACC": 100 * right.sum(axis=-1) / pixels,
        }


def _per_class(totals: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    """IoU and accuracy of each class, 0 .. 1, NaN where the ground truth has none of it."""
    right, truth, predicted = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(truth > 0, right / (truth + predicted - right), np.nan)
        return iou, np.where(truth > 0, right / truth, np.nan)


class SemanticEvaluator(ImageEvaluator):
    """mIoU of `output["sem_seg"]`, class scores (C, H, W), of which the highest counts.

    Ground truth is the record's label map, or its panoptic map where there is no label map. An
    image's statistics are {"confusion": [[true class, predicted class, pixels], ...]}.
    """

    task = "sem_seg"

    def prepare(self, record: Mapping[str, Any]) -> SemanticTruth:
        labels = self.metadata.read_semantic(record).astype(np.int64)
        labels[labels == self.metadata.ignore_label] = len(self.classes)
        path = str(record.get("sem_seg_file_name", ""))
        return SemanticTruth(record.get("image_id"), labels, path)

    def score(self, truth: SemanticTruth, output: Mapping[str, Any]) -> Statistics:
        scores = output_field(truth.image_id, output, "sem_seg")
        if scores.ndim != 3 or scores.shape[0] != len(self.classes):
            raise InputError(
                f"sem_seg of image {truth.image_id} has shape {tuple(scores.shape)}, "
                f"expected ({len(self.classes)} classes, height, width)"
            )
        predicted = to_numpy(torch.as_tensor(scores).max(0).indices)  # faster than argmax
        check_shape(truth.image_id, "the semantic prediction", predicted.shape, truth.labels.shape)
        return self.count(truth, predicted)

    def count(self, truth: SemanticTruth, predicted: NDArray[np.int64]) -> Statistics:
        """Statistics of an image's predicted classes (H, W)."""
        matrix = confusion_matrix(truth.labels, predicted, len(self.classes))
        return {"confusion": sparse(matrix)}

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """mIoU fwIoU mACC pACC and IoU-<class>, 0 .. 100, NaN where undefined."""
        totals = self.stack(statistics).sum(axis=0)
        result = {key: float(value) for key, value in semantic_quality(totals).items()}
        per_class = zip(self.classes, _per_class(totals)[0], strict=True)
        return result | {f"IoU-{name}": float(100 * value) for name, value in per_class}

    def stack(self, statistics: Sequence[Statistics]) -> NDArray[np.float64]:
        """Statistics as one array (images, C, 3), see `semantic_quality`."""
        stacked = np.zeros((len(statistics), len(self.classes), 3))
        for i, image in enumerate(statistics):
            for truth, predicted, pixels in image["confusion"]:
                stacked[i, truth, 1] += pixels
                stacked[i, predicted, 2] += pixels
                if truth == predicted:
                    stacked[i, truth, 0] += pixels
        return stacked

    def metric(self, totals: NDArray[np.floating], key: str = "mIoU") -> NDArray[np.float64]:
        """One of the four numbers from pixel totals (..., C, 3) -> (...)."""
        return semantic_quality(totals)[key]


class TrimapEvaluator(SemanticEvaluator):
    """The same of the pixels at most `TRIMAP` px from a pixel of another class (Kohli et al.,
    "Robust Higher Order Potentials for Enforcing Label Consistency", 2009)."""

    task = "trimap"

    def prepare(self, record: Mapping[str, Any]) -> SemanticTruth:
        truth = super().prepare(record)
        ignored = len(self.classes)
        labels = np.where(near_boundary(truth.labels, ignored), truth.labels, ignored)
        return truth._replace(labels=labels)


def near_boundary(labels: NDArray[np.int64], ignored: int) -> NDArray[np.bool_]:
    """(H, W): whether within the square of `TRIMAP` px to each side there is a pixel of another
    class; those of the label `ignored` are none."""
    values = torch.from_numpy(labels).float()[None, None]
    unknown, side = values == ignored, 2 * TRIMAP + 1
    highest, lowest = (
        F.max_pool2d(sign * values.masked_fill(unknown, -sign * ignored), side, 1, TRIMAP) * sign
        for sign in (1, -1)
    )
    return (highest > lowest)[0, 0].numpy()

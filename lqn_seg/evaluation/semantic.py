"""Semantic segmentation: mIoU and its relatives from one confusion matrix of the data set, of all
pixels or of those near a boundary; and how well confidence tells what is right."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lqn_seg.core.planes import strongest
from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import (
    DatasetMetadata,
    ImageEvaluator,
    Statistics,
    check_shape,
    output_field,
    sparse,
    to_numpy,
)
from lqn_seg.evaluation.classification import BINS, bin_of

TRIMAP = 3  # pixels
_TINY = 1e-30  # in place of a sum of scores that is 0


class SemanticTruth(NamedTuple):
    """An image's true labels."""

    image_id: Any
    labels: NDArray[np.int64]  # (H, W) contiguous ids; the number of classes: does not count
    path: str = ""  # of the record's label map


class SemanticAnswer(NamedTuple):
    """What is predicted for an image: classes (H, W), and their confidence in 0..1."""

    labels: NDArray[np.int64]
    confidence: NDArray[np.float32]


def confidence_of(scores: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(C, h, w) scores to the winning class (h, w) of each pixel and its share of their sum. Where
    the scores are probabilities, a temperature is that of their logits (Guo et al., 2017)."""
    best, labels = strongest(scores)
    scores, best = scores.float(), best.float()
    if temperature != 1:
        scores = (scores / best.clamp(min=_TINY)).pow(1 / temperature)
        best = (best > 0).float()
    return labels, best / scores.sum(0).clamp(min=_TINY)


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

    Args:
        beside: an evaluator of the same images, whose ground truth and answers it shares: both are
            decoded once for an image at hand.
        temperature: of the confidence.
    """

    task = "sem_seg"

    def __init__(
        self,
        metadata: DatasetMetadata,
        records: Iterable[Mapping[str, Any]] | None = None,
        beside: "SemanticEvaluator | None" = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(metadata, records)
        self.temperature = temperature
        self._beside = beside or self
        self._truth: tuple[Any, SemanticTruth] | None = None
        self._answer: tuple[weakref.ref[Any], SemanticAnswer] | None = None

    def prepare(self, record: Mapping[str, Any]) -> SemanticTruth:
        if self._truth is None or self._truth[0] is not record:
            read = self._read if self._beside is self else self._beside.prepare
            self._truth = record, read(record)
        return self._truth[1]

    def _read(self, record: Mapping[str, Any]) -> SemanticTruth:
        labels = self.metadata.read_semantic(record).astype(np.int64)
        labels[labels == self.metadata.ignore_label] = len(self.classes)
        path = str(record.get("sem_seg_file_name", ""))
        return SemanticTruth(record.get("image_id"), labels, path)

    def statistics(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Statistics:
        self._answer = None  # a model may write all its outputs into the same tensor
        return super().statistics(record, output)

    def score(self, truth: SemanticTruth, output: Mapping[str, Any]) -> Statistics:
        return self.count(truth, self._beside.answer(truth, output))

    def answer(self, truth: SemanticTruth, output: Mapping[str, Any]) -> SemanticAnswer:
        """An image's predicted classes."""
        scores = output_field(truth.image_id, output, "sem_seg")
        if scores.ndim != 3 or scores.shape[0] != len(self.classes):
            raise InputError(
                f"sem_seg of image {truth.image_id} has shape {tuple(scores.shape)}, "
                f"expected ({len(self.classes)} classes, height, width)"
            )
        shape = tuple(scores.shape[1:])
        check_shape(truth.image_id, "the semantic prediction", shape, truth.labels.shape)
        if self._answer is None or self._answer[0]() is not scores:
            answer = confidence_of(torch.as_tensor(scores), self.temperature)
            # Scores are large: they are not kept for the sake of a comparison.
            self._answer = weakref.ref(scores), SemanticAnswer(*map(to_numpy, answer))
        return self._answer[1]

    def count(self, truth: SemanticTruth, answer: SemanticAnswer) -> Statistics:
        """Statistics of an image."""
        matrix = confusion_matrix(truth.labels, answer.labels, len(self.classes))
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

    def per_class(self, totals: NDArray[np.floating]) -> NDArray[np.float64]:
        """IoU of each class, (..., C, 3) -> (..., C), 0 .. 100, NaN where there is no truth."""
        return 100 * _per_class(totals)[0]


class TrimapEvaluator(SemanticEvaluator):
    """The same of the pixels at most `TRIMAP` px from a pixel of another class (Kohli et al.,
    "Robust Higher Order Potentials for Enforcing Label Consistency", 2009)."""

    task = "trimap"

    def prepare(self, record: Mapping[str, Any]) -> SemanticTruth:
        truth = super().prepare(record)
        ignored = len(self.classes)
        labels = np.where(near_boundary(truth.labels, ignored), truth.labels, ignored)
        return truth._replace(labels=labels)


class ConfidenceEvaluator(SemanticEvaluator):
    """Expected calibration error over the pixels: mean distance, over `BINS` of confidence, between
    the share of pixels that are right and their mean confidence (Guo et al., 2017). An image's
    statistics are {"bins": [[pixels, right ones, summed confidence], ...]}."""

    task = "confidence"

    def count(self, truth: SemanticTruth, answer: SemanticAnswer) -> Statistics:
        counts = truth.labels < len(self.classes)
        confidence = answer.confidence[counts].astype(np.float64)
        right = (answer.labels == truth.labels)[counts]
        place = bin_of(confidence, BINS)
        columns = [np.bincount(place, weights, BINS) for weights in (None, right, confidence)]
        return {"bins": np.stack(columns, -1).round(3).tolist()}

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """ECE, 0 .. 100."""
        return {"ECE": float(self.metric(self.stack(statistics).sum(0)))}

    def stack(self, statistics: Sequence[Statistics]) -> NDArray[np.float64]:
        """Statistics as one array (images, `BINS`, 3)."""
        return np.array([image["bins"] for image in statistics]).reshape(-1, BINS, 3)

    def metric(self, totals: NDArray[np.floating], key: str = "ECE") -> NDArray[np.float64]:
        """From totals (..., BINS, 3) -> (...)."""
        pixels, right, confidence = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
        with np.errstate(invalid="ignore"):
            return 100 * np.abs(right - confidence).sum(-1) / pixels.sum(-1)

    def per_class(self, totals: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of all classes together: (..., BINS, 3) -> (..., C) of NaN."""
        return np.full((*totals.shape[:-2], len(self.classes)), np.nan)


def near_boundary(labels: NDArray[np.int64], ignored: int) -> NDArray[np.bool_]:
    """(H, W): whether within the square of `TRIMAP` px to each side there is a pixel of another
    class; those of the label `ignored` are none."""
    values = torch.from_numpy(labels).float()[None, None]
    unknown, side = values == ignored, 2 * TRIMAP + 1

    def highest(values: Tensor) -> Tensor:  # along the columns, then along the rows: much less work
        along = F.max_pool2d(values, (side, 1), 1, (TRIMAP, 0))
        return F.max_pool2d(along, (1, side), 1, (0, TRIMAP))

    most, least = (
        highest(sign * values.masked_fill(unknown, -sign * ignored)) * sign for sign in (1, -1)
    )
    return (most > least)[0, 0].numpy()

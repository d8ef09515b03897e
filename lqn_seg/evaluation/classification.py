"""Top-1 and top-5 accuracy, accuracy by class, and the expected calibration error.

ECE (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017) sorts images into `BINS`
equal bins of the probability of what was predicted, and averages the distance between accuracy and
mean probability, weighted by images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import ImageEvaluator, Statistics, output_field, to_numpy

BINS = 15


class ClassificationEvaluator(ImageEvaluator):
    """Detectron2's protocol; an output holds ``probabilities`` (C,), a record its ``label``."""

    task = "classification"

    def prepare(self, record: Mapping[str, Any]) -> tuple[Any, int]:
        """The image's id and its label."""
        return record.get("image_id"), int(record["label"])

    def score(self, truth: tuple[Any, int], output: Mapping[str, Any]) -> Statistics:
        image_id, label = truth
        p = to_numpy(output_field(image_id, output, "probabilities"))
        if p.shape != (len(self.classes),) or not 0 <= label < len(self.classes):
            raise InputError(
                f"image {image_id} has the label {label} and {p.shape} probabilities;"
                f" {self.metadata.name} has {len(self.classes)} classes"
            )
        predicted = int(p.argmax())
        # Of two that are equal the first stands above, as in argmax.
        above = int((p > p[label]).sum() + (p[:label] == p[label]).sum())
        confidence = float(p[predicted])
        return {"label": label, "predicted": predicted, "above": above, "confidence": confidence}

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """``acc1``, ``acc5``, ``mACC`` (mean of the classes'), ``ECE`` and ``ACC-<class>``, 0..100.

        Where classes share a name, as two pairs of ImageNet's do, their numbers follow it. NaN for
        a class without an image and, without any image, for everything.
        """
        totals = self.stack(statistics).sum(0)[None]
        hits, seen = np.split(totals[0], 2)
        with np.errstate(invalid="ignore"):
            by_class = 100 * hits / seen
            acc5 = 100 * np.mean([s["above"] < 5 for s in statistics]) if statistics else np.nan
        named = zip(distinct(self.classes), by_class)
        return {
            "acc1": float(self.metric(totals)[0]),
            "acc5": float(acc5),
            "mACC": float(np.nanmean(by_class)) if (seen > 0).any() else float("nan"),
            "ECE": expected_calibration_error(statistics),
            **{f"ACC-{name}": float(value) for name, value in named},
        }

    def stack(self, statistics: Sequence[Statistics]) -> NDArray[np.float64]:
        """(images, 2 C): hits by class, then images by class; sums over images are data sets."""
        count = len(self.classes)
        stacked = np.zeros((len(statistics), 2 * count))
        for row, image in zip(stacked, statistics):
            row[image["label"]] = image["predicted"] == image["label"]
            row[count + image["label"]] = 1
        return stacked

    def metric(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Top-1 accuracy (...) of totals (..., 2 C), 0..100; NaN without images."""
        hits, seen = np.split(totals, 2, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return 100 * hits.sum(-1) / seen.sum(-1)


def distinct(names: Sequence[str]) -> list[str]:
    """Names as keys: one that several classes have is followed by the class's number.

    >>> distinct(["missile", "cat", "missile"])
    ['missile (0)', 'cat', 'missile (2)']
    """
    times = Counter(names)
    return [f"{name} ({k})" if times[name] > 1 else name for k, name in enumerate(names)]


def expected_calibration_error(statistics: Sequence[Statistics], bins: int = BINS) -> float:
    """Mean distance between accuracy and probability over `bins`, 0..100; NaN without images."""
    if not statistics:
        return float("nan")
    confidence = np.array([s["confidence"] for s in statistics])
    correct = np.array([s["predicted"] == s["label"] for s in statistics], dtype=float)
    gaps = np.bincount(bin_of(confidence, bins), correct - confidence, bins)
    return float(100 * np.abs(gaps).sum() / len(statistics))


def bin_of(confidence: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """Which bin each confidence falls in; closed above, as published: (0, 1/bins], ...,
    (1 - 1/bins, 1]."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)

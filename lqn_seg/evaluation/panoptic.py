"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, equation 1).

The rules on void and crowd are those of the reference implementation, panopticapi.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import (
    ImageEvaluator,
    Statistics,
    check_shape,
    output_field,
    to_numpy,
)

VOID = 0
Segments = Sequence[Mapping[str, Any]]


def match_segments(
    truth: NDArray[np.integer],
    truth_segments: Segments,
    predicted: NDArray[np.integer],
    predicted_segments: Segments,
) -> dict[int, tuple[float, int, int, int]]:
    """Match the predicted segments of one image with the true ones and count, per category.

    A pair matches if the categories agree, the true one is no crowd, and IoU > 0.5, where the
    union is pred + truth - intersection - (void and pred). An unmatched true segment is a false
    negative unless it is a crowd. An unmatched prediction is a false positive unless more than half
    of it lies on void or on the crowd segment of its category. (COCO allows one crowd segment per
    category and image; of several the last listed counts, as in panopticapi.)

    Args:
        truth: (H, W) segment ids, 0 = void.
        truth_segments: their `id`, `category_id` and, optionally, `iscrowd`, `area`. A given area
            is believed (as panopticapi does), otherwise pixels are counted.
        predicted: (H, W) segment ids, 0 = void.
        predicted_segments: their `id` and `category_id`.

    Returns:
        category -> (sum of IoU over matches, matches, false positives, false negatives).

    Raises:
        ValueError: the ids in the predicted map are not those of `predicted_segments`.
    """
    overlap = _overlaps(truth, predicted)
    pred_area: dict[int, int] = {}
    true_area: dict[int, int] = {}
    for (true_id, pred_id), pixels in overlap.items():
        true_area[true_id] = true_area.get(true_id, 0) + pixels
        pred_area[pred_id] = pred_area.get(pred_id, 0) + pixels
    preds = {int(s["id"]): int(s["category_id"]) for s in predicted_segments}
    if set(preds) != set(pred_area) - {VOID}:
        odd = min(set(preds) ^ (set(pred_area) - {VOID}))
        raise ValueError(f"segment {odd} is in only one of the id map and segments_info")
    truths = {int(s["id"]): s for s in truth_segments}
    crowds = {int(s["category_id"]): i for i, s in truths.items() if s.get("iscrowd", 0)}

    counts: dict[int, list[int]] = {}
    ious: dict[int, list[float]] = {}
    matched_truth, matched_pred = set(), set()
    for (true_id, pred_id), pixels in overlap.items():
        if true_id not in truths or pred_id not in preds:
            continue
        segment, category = truths[true_id], preds[pred_id]
        if segment.get("iscrowd", 0) or int(segment["category_id"]) != category:
            continue
        area = segment.get("area", true_area[true_id])
        iou = pixels / (pred_area[pred_id] + area - pixels - overlap.get((VOID, pred_id), 0))
        if iou > 0.5:
            ious.setdefault(category, []).append(iou)
            _count(counts, category, 1, 0, 0)
            matched_truth.add(true_id)
            matched_pred.add(pred_id)
    for true_id, segment in truths.items():
        if true_id not in matched_truth and not segment.get("iscrowd", 0):
            _count(counts, int(segment["category_id"]), 0, 0, 1)
    for pred_id, category in preds.items():
        if pred_id in matched_pred:
            continue
        excused = overlap.get((VOID, pred_id), 0)
        if category in crowds:
            excused += overlap.get((crowds[category], pred_id), 0)
        if excused / pred_area[pred_id] <= 0.5:
            _count(counts, category, 0, 1, 0)
    # `fsum` rounds once: the ids, which give the order of the matches, do not change the last bit.
    rows = ((k, *counts[k]) for k in sorted(counts))
    return {k: (math.fsum(ious.get(k, ())), tp, fp, fn) for k, tp, fp, fn in rows}


def _overlaps(
    truth: NDArray[np.integer], predicted: NDArray[np.integer]
) -> dict[tuple[int, int], int]:
    """(true id, predicted id) -> pixels, for the pairs that occur, in ascending order."""
    true_ids, t = np.unique(truth, return_inverse=True)
    pred_ids, p = np.unique(predicted, return_inverse=True)
    table = np.bincount(
        t.reshape(-1) * len(pred_ids) + p.reshape(-1), minlength=len(true_ids) * len(pred_ids)
    ).reshape(len(true_ids), len(pred_ids))
    return {
        (int(true_ids[i]), int(pred_ids[j])): int(table[i, j])
        for i, j in zip(*np.nonzero(table), strict=True)
    }


def _count(counts: dict[int, list[int]], category: int, tp: int, fp: int, fn: int) -> None:
    row = counts.setdefault(category, [0, 0, 0])
    for k, value in enumerate((tp, fp, fn)):
        row[k] += value


def panoptic_quality(
    totals: NDArray[np.floating], is_thing: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """PQ, SQ and RQ from summed counts, over all categories, things and stuff.

    Categories without matches, false positives or false negatives are left out of the mean; a group
    in which none is left is NaN.

    Args:
        totals: (..., C, 4): sum of IoU, matches, false positives, false negatives; leading
            dimensions are independent data sets (bootstrap samples).
        is_thing: (C,).

    Returns:
        PQ SQ RQ PQ_th SQ_th RQ_th PQ_st SQ_st RQ_st, each (...), 0 .. 100.
    """
    per_class = _per_class(totals)
    groups = {"": np.ones_like(is_thing), "_th": is_thing, "_st": ~is_thing}
    result = {}
    for suffix, group in groups.items():
        for key, values in per_class.items():
            chosen = values[..., group]
            number = np.sum(~np.isnan(chosen), axis=-1)
            with np.errstate(invalid="ignore"):
                result[key + suffix] = 100 * np.nansum(chosen, axis=-1) / number
    return result


def _per_class(totals: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """PQ, SQ, RQ of each category, 0 .. 1, NaN where it does not occur."""
    iou, tp, fp, fn = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    weight = tp + 0.5 * fp + 0.5 * fn
    with np.errstate(invalid="ignore", divide="ignore"):
        quality, recognition = iou / weight, tp / weight
        segmentation = np.where(weight > 0, np.where(tp > 0, iou / tp, 0), np.nan)
    return {"PQ": quality, "SQ": segmentation, "RQ": recognition}


class PanopticEvaluator(ImageEvaluator):
    """PQ of `output["panoptic_seg"]` = (id map (H, W), segments_info).

    `segments_info` holds `id` and contiguous `category_id`; ground truth is what the record's
    `pan_seg_file_name` and `segments_info` say. An image's statistics are
    {"pq": [[category, sum of IoU, matches, false positives, false negatives], ...]}.
    """

    task = "panoptic_seg"

    def statistics(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Statistics:
        """Counts of one image.

        Raises:
            InputError: the output has no `panoptic_seg`, another size than the ground truth, a
                category outside the table, or an id map that disagrees with its segments_info.
        """
        record = self._record(record)
        id_map, segments = output_field(record, output, "panoptic_seg")
        predicted, truth = to_numpy(id_map), self.metadata.read_panoptic(record)
        check_shape(record, "the panoptic prediction", predicted.shape, truth.shape)
        image_id, classes = record.get("image_id"), len(self.metadata.class_names)
        for segment in segments:
            if not 0 <= int(segment["category_id"]) < classes:
                raise InputError(
                    f"the panoptic prediction of image {image_id} has category_id "
                    f"{segment['category_id']}, outside the {classes} classes of "
                    f"{self.metadata.name}"
                )
        try:
            counts = match_segments(truth, record["segments_info"], predicted, segments)
        except ValueError as error:
            raise InputError(f"the panoptic prediction of image {image_id}: {error}") from None
        return {"pq": [[category, *row] for category, row in counts.items()]}

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """PQ SQ RQ (all, _th, _st) and PQ-<class>, 0 .. 100, NaN where undefined."""
        totals = self.stack(statistics).sum(axis=0)
        result = {k: float(v) for k, v in panoptic_quality(totals, self._is_thing()).items()}
        per_class = _per_class(totals)["PQ"]
        for name, value in zip(self.metadata.class_names, per_class, strict=True):
            result[f"PQ-{name}"] = float(100 * value)
        return result

    def stack(self, statistics: Sequence[Statistics]) -> NDArray[np.float64]:
        """Statistics as one array, (images, C, 4): what `paired_bootstrap_totals` resamples."""
        stacked = np.zeros((len(statistics), len(self.metadata.class_names), 4))
        for i, image in enumerate(statistics):
            for category, *row in image["pq"]:
                stacked[i, int(category)] = row
        return stacked

    def metric(self, totals: NDArray[np.floating], key: str = "PQ") -> NDArray[np.float64]:
        """One of the nine numbers from summed counts (..., C, 4) -> (...)."""
        return panoptic_quality(totals, self._is_thing())[key]

    def _is_thing(self) -> NDArray[np.bool_]:
        thing_ids = self.metadata.thing_ids
        return np.array([i in thing_ids for i in range(len(self.metadata.class_names))], dtype=bool)

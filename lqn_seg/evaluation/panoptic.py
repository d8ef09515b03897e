"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, equation 1).

The rules on void and crowd are those of the reference implementation, panopticapi.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import ImageEvaluator, Statistics, check_shape, output_field, to_numpy

VOID = 0
Segments = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class PanopticTruth:
    """An image's true segments, ready to be matched; T of them, void first."""

    image_id: Any
    index: NDArray[np.intp]  # (H, W) which of the segments a pixel is of
    area: NDArray[np.float64]  # (T,) pixels; a given area is believed, as panopticapi does
    category: NDArray[np.int64]  # (T,) contiguous id, -1 of void and of ids that are not listed
    crowd: NDArray[np.bool_]  # (T,)
    crowds: dict[int, int]  # category -> its crowd; of several the last listed, as in panopticapi


def prepare_segments(
    ids: NDArray[np.integer], segments: Segments, image_id: Any = None
) -> PanopticTruth:
    """Ground truth (H, W) of segment ids, 0 = void, ready for `match_segments`; `segments` hold
    `id`, `category_id` and, optionally, `iscrowd` and `area`."""
    values = np.unique(np.append(ids, VOID))
    index = np.searchsorted(values, ids)
    area = np.bincount(index.ravel(), minlength=len(values)).astype(np.float64)
    category, crowd = np.full(len(values), -1), np.zeros(len(values), bool)
    crowds = {}
    for segment in segments:
        k = int(np.searchsorted(values, segment["id"]))
        area[k] = segment.get("area", area[k])
        category[k], crowd[k] = segment["category_id"], bool(segment.get("iscrowd", 0))
        if crowd[k]:
            crowds[int(category[k])] = k
    return PanopticTruth(image_id, index, area, category, crowd, crowds)


def match_segments(
    truth: PanopticTruth, predicted: NDArray[np.integer], segments: Segments
) -> dict[int, tuple[float, int, int, int]]:
    """Match predicted segments, a map (H, W) and their `id` and `category_id`, with the true ones.

    A pair matches if the categories agree, the true one is no crowd, and IoU > 0.5, where the
    union is pred + truth - intersection - (void and pred). An unmatched true segment is a false
    negative unless it is a crowd. An unmatched prediction is a false positive unless more than half
    of it lies on void or on the crowd segment of its category.

    Returns category -> (sum of IoU over matches, matches, false positives, false negatives);
    ValueError where the ids in the predicted map are not those of `segments`.
    """
    listed = {int(s["id"]): int(s["category_id"]) for s in segments}
    ids = np.array(sorted({VOID, *listed}))
    category = np.array([listed.get(i, -1) for i in ids.tolist()])  # (P,)
    index = np.searchsorted(ids, predicted).clip(max=len(ids) - 1)
    shape = len(truth.area), len(ids)
    pairs = (truth.index * len(ids) + index).ravel()
    overlap = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)  # (T, P)
    area = overlap.sum(0)
    odd = ids[(category >= 0) & ((area == 0) | (ids == VOID))].tolist()
    odd += predicted[ids[index] != predicted].tolist()
    if odd:
        raise ValueError(f"segment {min(odd)} is in only one of the id map and segments_info")

    with np.errstate(invalid="ignore", divide="ignore"):
        iou = overlap / (area + truth.area[:, None] - overlap - overlap[0])
    comparable = (truth.category[:, None] == category) & ~truth.crowd[:, None] & (category >= 0)
    match = comparable & (iou > 0.5)
    missed = (truth.category >= 0) & ~truth.crowd & ~match.any(1)
    excused = overlap[0] + [
        overlap[truth.crowds[k], p] if k in truth.crowds else 0 for p, k in enumerate(category)
    ]
    wrong = (category >= 0) & ~match.any(0) & (excused <= 0.5 * area)
    counts = {}
    for k in np.unique([*truth.category[missed], *category[wrong | match.any(0)]]).tolist():
        ious = iou[match & (category == k)].tolist()
        # `fsum` rounds once: the order of the ids does not change the last bit.
        false = int((category[wrong] == k).sum()), int((truth.category[missed] == k).sum())
        counts[int(k)] = (math.fsum(ious), len(ious), *false)
    return counts


def panoptic_quality(
    totals: NDArray[np.floating], is_thing: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """PQ SQ RQ PQ_th SQ_th RQ_th PQ_st SQ_st RQ_st, each (...), 0 .. 100.

    Categories without matches, false positives or false negatives are left out of the mean; a group
    in which none is left is NaN.

    Args:
        totals: (..., C, 4): sum of IoU, matches, false positives, false negatives; leading
            dimensions are independent data sets (bootstrap samples).
        is_thing: (C,).
    """
    groups = {"": np.ones_like(is_thing), "_th": is_thing, "_st": ~is_thing}
    result = {}
    for suffix, group in groups.items():
        for key, values in _per_class(totals).items():
            members = values[..., group]
            number = np.sum(~np.isnan(members), axis=-1)
            with np.errstate(invalid="ignore"):
                result[key + suffix] = 100 * np.nansum(members, axis=-1) / number
    return result


def _per_class(totals: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """PQ, SQ, RQ of each category, 0 .. 1, NaN where it does not occur."""
    iou, tp, fp, fn = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    weight = tp + 0.5 * fp + 0.5 * fn
    with np.errstate(invalid="ignore", divide="ignore"):
        segmentation = np.where(weight > 0, np.where(tp > 0, iou / tp, 0), np.nan)
        return {"PQ": iou / weight, "SQ": segmentation, "RQ": tp / weight}


class PanopticEvaluator(ImageEvaluator):
    """PQ of `output["panoptic_seg"]` = (id map (H, W), segments_info).

    `segments_info` holds `id` and contiguous `category_id`; ground truth is what the record's
    `pan_seg_file_name` and `segments_info` say. An image's statistics are
    {"pq": [[category, sum of IoU, matches, false positives, false negatives], ...]}.
    """

    task = "panoptic_seg"

    def prepare(self, record: Mapping[str, Any]) -> PanopticTruth:
        ids = self.metadata.read_panoptic(record)
        return prepare_segments(ids, record["segments_info"], record.get("image_id"))

    def score(self, truth: PanopticTruth, output: Mapping[str, Any]) -> Statistics:
        """An id map that disagrees with its segments_info is an `InputError` too."""
        id_map, segments = output_field(truth.image_id, output, "panoptic_seg")
        predicted, what = to_numpy(id_map), f"the panoptic prediction of image {truth.image_id}"
        check_shape(truth.image_id, "the panoptic prediction", predicted.shape, truth.index.shape)
        for segment in segments:
            if not 0 <= int(segment["category_id"]) < len(self.classes):
                raise InputError(
                    f"{what} has category_id {segment['category_id']}, outside the "
                    f"{len(self.classes)} classes of {self.metadata.name}"
                )
        try:
            counts = match_segments(truth, predicted, segments)
        except ValueError as error:
            raise InputError(f"{what}: {error}") from None
        return {"pq": [[category, *row] for category, row in counts.items()]}

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """PQ SQ RQ (all, _th, _st) and PQ-<class>, 0 .. 100, NaN where undefined."""
        totals = self.stack(statistics).sum(axis=0)
        result = {k: float(v) for k, v in panoptic_quality(totals, self._is_thing()).items()}
        per_class = zip(self.classes, _per_class(totals)["PQ"], strict=True)
        return result | {f"PQ-{name}": float(100 * value) for name, value in per_class}

    def stack(self, statistics: Sequence[Statistics]) -> NDArray[np.float64]:
        """Statistics as one array, (images, C, 4): what `resampled_totals` takes."""
        stacked = np.zeros((len(statistics), len(self.classes), 4))
        for i, image in enumerate(statistics):
            for category, *row in image["pq"]:
                stacked[i, int(category)] = row
        return stacked

    def metric(self, totals: NDArray[np.floating], key: str = "PQ") -> NDArray[np.float64]:
        """One of the nine numbers from summed counts (..., C, 4) -> (...)."""
        return panoptic_quality(totals, self._is_thing())[key]

    def per_class(self, totals: NDArray[np.floating]) -> NDArray[np.float64]:
        """PQ of each category, (..., C, 4) -> (..., C), 0 .. 100, NaN where it does not occur."""
        return 100 * _per_class(totals)["PQ"]

    def _is_thing(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(len(self.classes)), list(self.metadata.thing_ids))

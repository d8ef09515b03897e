"""Mask AP as COCO defines it, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
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

# Positions of the published numbers in COCOeval.stats.
_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}


class InstanceEvaluator(ImageEvaluator):
    """AP of `output["instances"]`: `pred_masks` (N, H, W), `scores` (N,), `pred_classes` (N,).

    Ground truth is what the metadata read for the record: a COCO instances file's annotations, or
    the thing segments of the panoptic map, crowds marked. An image's statistics hold both sides:
    {"height", "width", "ground_truth": [{"category_id", "segmentation" (RLE), "area", "bbox",
    "iscrowd"}, ...], "detections": [{"category_id", "segmentation", "area", "bbox", "score"},
    ...]}, with contiguous category ids, boxes as (x, y, width, height).
    """

    task = "segm"

    def statistics(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Statistics:
        """Ground truth and detections of one image.

        Raises:
            InputError: the output has no `instances`, or masks of another size than the ground
                truth, or a class outside the table.
        """
        record = self._record(record)
        instances = output_field(record, output, "instances")
        masks = to_numpy(instances.pred_masks).astype(bool)
        scores, classes = to_numpy(instances.scores), to_numpy(instances.pred_classes)
        size = (int(record["height"]), int(record["width"]))
        check_shape(record, "the instance prediction", masks.shape[1:], size)
        outside = [int(c) for c in classes if not 0 <= c < len(self.metadata.class_names)]
        if outside:
            raise InputError(
                f"the instance prediction of image {record.get('image_id')} has class "
                f"{outside[0]}, outside the {len(self.metadata.class_names)} classes of "
                f"{self.metadata.name}"
            )
        detections = [
            {"category_id": int(c), "score": float(s), **_encode(mask)}
            for mask, s, c in zip(masks, scores, classes, strict=True)
        ]
        return {
            "height": size[0],
            "width": size[1],
            "ground_truth": self.metadata.read_instances(record),
            "detections": detections,
        }

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """AP AP50 AP75 APs APm APl and AP-<thing class>, 0 .. 100, NaN where undefined."""
        things = sorted(self.metadata.thing_ids)
        names = {f"AP-{self.metadata.class_names[i]}": k for k, i in enumerate(things)}
        if not any(image["ground_truth"] for image in statistics):
            return dict.fromkeys([*_STATS, *names], float("nan"))
        with contextlib.redirect_stdout(io.StringIO()):
            stats, precision = _coco_eval(statistics, things)
        result = {key: _percent(stats[i]) for key, i in _STATS.items()}
        for name, k in names.items():
            values = precision[:, :, k, 0, -1]  # IoU x recall; all areas, 100 detections
            result[name] = _percent(values[values > -1].mean() if (values > -1).any() else -1)
        return result


def _coco_eval(
    statistics: Sequence[Statistics], things: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COCOeval's twelve numbers and its precision table (T, R, K, A, M)."""
    from pycocotools.cocoeval import COCOeval

    images = [
        {"id": i, "height": image["height"], "width": image["width"]}
        for i, image in enumerate(statistics)
    ]
    sides = [_coco(statistics, key, images, things) for key in ("ground_truth", "detections")]
    evaluation = COCOeval(*sides, iouType="segm")
    evaluation.params.catIds = things
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]


def _coco(
    statistics: Sequence[Statistics], key: str, images: list[dict[str, int]], things: list[int]
) -> Any:
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(statistics):
        for annotation in image[key]:
            # Ids start at 1: COCOeval reads a match with id 0 as no match.
            place = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({"iscrowd": 0, **annotation, **place})
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i} for i in things],
    }
    coco.createIndex()
    return coco


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as JSON-able RLE, with its area and box."""
    from pycocotools import mask as mask_api

    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    area, box = int(mask_api.area(rle)), mask_api.toBbox(rle).tolist()
    text = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    return {"segmentation": text, "area": area, "bbox": box}


def _percent(value: float) -> float:
    """COCOeval's -1 means undefined."""
    return float("nan") if value == -1 else 100 * float(value)

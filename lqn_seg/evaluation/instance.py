"""Mask AP as COCO defines it, computed by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import ImageEvaluator, Statistics, check_shape, output_field, to_numpy

# IoU thresholds (all, 0.5, 0.75) and area range of each published number in COCOeval's table.
_STATS: dict[str, tuple[Any, int]] = {
    "AP": (slice(None), 0),
    "AP50": (0, 0),
    "AP75": (5, 0),
    "APs": (slice(None), 1),
    "APm": (slice(None), 2),
    "APl": (slice(None), 3),
}
_DETECTIONS = 100  # of an image and a class, at most


class InstanceEvaluator(ImageEvaluator):
    """AP of `output["instances"]`: `pred_masks` (N, H, W), `scores` (N,), `pred_classes` (N,).

    Ground truth is what the metadata read for the record: a COCO instances file's annotations, or
    the thing segments of the panoptic map, crowds marked. An image's statistics hold both sides:
    {"height", "width", "ground_truth": [{"category_id", "segmentation" (RLE), "area", "bbox",
    "iscrowd"}, ...], "detections": [{"category_id", "segmentation", "area", "bbox", "score"},
    ...]}, with contiguous category ids, boxes as (x, y, width, height).
    """

    task = "segm"

    def prepare(self, record: Mapping[str, Any]) -> tuple[Any, Statistics]:
        """The image's id, and the true side of its statistics."""
        instances = self.metadata.read_instances(record)
        size = {"height": int(record["height"]), "width": int(record["width"])}
        return record.get("image_id"), {**size, "ground_truth": instances}

    def score(self, truth: tuple[Any, Statistics], output: Mapping[str, Any]) -> Statistics:
        image_id, expected = truth
        instances = output_field(image_id, output, "instances")
        masks = to_numpy(instances.pred_masks)
        scores, classes = to_numpy(instances.scores), to_numpy(instances.pred_classes)
        size = expected["height"], expected["width"]
        check_shape(image_id, "the instance prediction", masks.shape[1:], size)
        outside = [int(c) for c in classes if not 0 <= c < len(self.classes)]
        if outside:
            raise InputError(
                f"the instance prediction of image {image_id} has class {outside[0]}, outside the "
                f"{len(self.classes)} classes of {self.metadata.name}"
            )
        detections = [
            {"category_id": int(c), "score": float(s), **mask}
            for mask, s, c in zip(_encode(masks), scores, classes, strict=True)
        ]
        return {**expected, "detections": detections}

    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """AP AP50 AP75 APs APm APl and AP-<thing class>, 0 .. 100, NaN where undefined."""
        things = sorted(self.metadata.thing_ids)
        names = {f"AP-{self.classes[i]}": k for k, i in enumerate(things)}
        if not any(image["ground_truth"] for image in statistics):
            return dict.fromkeys([*_STATS, *names], float("nan"))
        precision = _precision(statistics, things)
        result = {key: _mean(precision[ious, ..., area]) for key, (ious, area) in _STATS.items()}
        for name, k in names.items():
            result[name] = _mean(precision[:, :, k, 0])
        return result


def _precision(statistics: Sequence[Statistics], things: list[int]) -> NDArray[np.float64]:
    """COCOeval's table (10 IoUs, 101 recalls, classes, 4 areas); -1 where undefined."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def side(key: str) -> COCO:
        pairs = [(i, entry) for i, image in enumerate(statistics) for entry in image[key]]
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": i, "height": image["height"], "width": image["width"]}
                for i, image in enumerate(statistics)
            ],
            # Ids start at 1: COCOeval reads a match with id 0 as no match.
            "annotations": [
                {"iscrowd": 0, **entry, "id": number, "image_id": i}
                for number, (i, entry) in enumerate(pairs, 1)
            ],
            "categories": [{"id": i} for i in things],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(side("ground_truth"), side("detections"), iouType="segm")
        evaluation.params.catIds = things
        # Its tables of at most 1 and 10 detections are recall's alone, two thirds of `accumulate`.
        evaluation.params.maxDets = [_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


def _encode(masks: NDArray[Any]) -> list[dict[str, Any]]:
    """Masks (N, H, W) as JSON-able RLE, each with its area and box."""
    from pycocotools import mask as mask_api

    by_column = np.ascontiguousarray(masks.transpose(0, 2, 1), dtype=bool).view(np.uint8)
    rles = mask_api.encode(by_column.transpose(2, 1, 0))  # (H, W, N) in Fortran's order
    areas, boxes = (f(rles).tolist() if rles else [] for f in (mask_api.area, mask_api.toBbox))
    return [
        {
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
            "area": area,
            "bbox": box,
        }
        for rle, area, box in zip(rles, areas, boxes)
    ]


def _mean(precision: NDArray[np.float64]) -> float:
    """Of what is defined, in per cent."""
    defined = precision[precision > -1]
    return float(100 * defined.mean()) if defined.size else float("nan")

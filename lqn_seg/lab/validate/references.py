"""Scores of predictions by implementations that are not ours, from files, as they want them.

Each collects predictions in a folder and scores them 0 .. 100 under our names, NaN where undefined.
panopticapi is on no package index: without it, PQ has no reference but the stored prediction.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lqn_seg.data.catalog import Metadata, Record
from lqn_seg.data.images import write_id_map
from lqn_seg.data.masks import encode
from lqn_seg.evaluation.cityscapes import score_files, train_to_label_ids
from lqn_seg.lab.validate.ground_truth import GroundTruth


class Panopticapi:
    """PQ, SQ and RQ of all, things and stuff."""

    task, source = "panoptic_seg", "panopticapi"

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        self.metadata, self.folder = metadata, folder
        self.pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def add(self, record: Record, prediction: GroundTruth) -> None:
        ids, segments = prediction.segments or (np.zeros(prediction.size, np.int32), ())
        name = f"{len(self.pairs)}.png"
        write_id_map(self.folder / name, ids)
        truth = Path(record["pan_seg_file_name"]).relative_to(self.metadata.panoptic_root or "")
        table = [category.id for category in self.metadata.categories]

        def annotation(file: str, infos: Any) -> dict[str, Any]:
            infos = [{**info, "category_id": table[info["category_id"]]} for info in infos]
            return {"image_id": record["image_id"], "file_name": file, "segments_info": infos}

        ours = annotation(name, segments)
        self.pairs.append((annotation(str(truth), record["segments_info"]), ours))

    def scores(self) -> dict[str, float]:
        from panopticapi.evaluation import pq_compute_single_core

        categories = {c.id: {"isthing": int(c.isthing)} for c in self.metadata.categories}
        folders = self.metadata.panoptic_root, str(self.folder)
        with contextlib.redirect_stdout(io.StringIO()):
            quality = pq_compute_single_core(0, self.pairs, *folders, categories)
        result: dict[str, float] = {}
        for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
            with contextlib.suppress(ZeroDivisionError):  # no category: undefined
                means, _ = quality.pq_average(categories, isthing=isthing)
                result |= {f"{k.upper()}{suffix}": 100 * means[k] for k in ("pq", "sq", "rq")}
        return result


class Pycocotools:
    """AP, read by pycocotools itself from the instances file and a list of results."""

    task, source = "segm", "pycocotools"

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        self.metadata = metadata
        self.results: list[dict[str, Any]] = []
        self.image_ids: list[Any] = []

    def add(self, record: Record, prediction: GroundTruth) -> None:
        self.image_ids.append(record["image_id"])
        for mask, category, score in prediction.instances or ():
            about = {"image_id": record["image_id"], "score": score}
            about["category_id"] = self.metadata.categories[category].id
            self.results.append({**about, "segmentation": encode(mask)["segmentation"]})

    def scores(self) -> dict[str, float]:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = json.loads(Path(self.metadata.json_file or "").read_text())
            # Keys that a file may lack, or pycocotools reads as "no match" (id 0).
            for i, annotation in enumerate(truth.dataset["annotations"]):
                annotation |= {"id": i + 1, "iscrowd": int(annotation.get("iscrowd") or 0)}
            truth.createIndex()
            predicted = truth.loadRes(self.results) if self.results else COCO()
            evaluation = COCOeval(truth, predicted, "segm")
            evaluation.params.imgIds = self.image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats = [float(value) for value in evaluation.stats[:6]]
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        return {k: float("nan") if v == -1 else 100 * v for k, v in zip(names, stats)}


class Cityscapesscripts:
    """IoU and iIoU of classes and categories, from PNGs of label ids."""

    task, source = "sem_seg", "cityscapesscripts"

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        self.folder = folder
        self.pairs: list[tuple[str, str]] = []

    def add(self, record: Record, prediction: GroundTruth) -> None:
        path = self.folder / f"{len(self.pairs)}.png"
        Image.fromarray(train_to_label_ids()[prediction.labels]).save(path)
        self.pairs.append((str(path), str(record["sem_seg_file_name"])))

    def scores(self) -> dict[str, float]:
        return score_files(self.pairs)


Reference = Panopticapi | Pycocotools | Cityscapesscripts


def build_references(record: Record, metadata: Metadata, folder: Path) -> list[Reference]:
    """The implementations that can score a data set on this machine; `record` is one of its."""
    kinds: list[type[Reference]] = []
    if "segments_info" in record:
        with contextlib.suppress(ImportError):
            import panopticapi.evaluation  # noqa: F401  (any folder of that name has a spec)

            kinds.append(Panopticapi)
    if metadata.json_file:
        kinds.append(Pycocotools)
    if metadata.evaluator_type == "cityscapes_sem_seg":
        kinds.append(Cityscapesscripts)
    for kind in kinds:
        (folder / kind.task).mkdir()
    return [kind(metadata, folder / kind.task) for kind in kinds]

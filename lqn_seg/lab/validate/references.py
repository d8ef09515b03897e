"""Scores of predictions by implementations that are not ours, from files, as they want them.

pycocotools and cityscapesscripts are always there. panopticapi is on no package index: where it is
not installed, PQ has no reference here but the stored prediction (`validate.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lqn_seg.data.catalog import Metadata, Record
from lqn_seg.data.images import write_id_map
from lqn_seg.data.masks import encode
from lqn_seg.evaluation.cityscapes import score_files, train_to_label_ids
from lqn_seg.lab.validate.ground_truth import GroundTruth


class Reference(ABC):
    """Collects predictions; `scores` asks the implementation.

    Args:
        metadata: the data set's table and files.
        folder: for files; it must be empty.
    """

    task: str
    source: str

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        self.metadata, self.folder = metadata, folder

    @abstractmethod
    def add(self, record: Record, prediction: GroundTruth) -> None:
        """Take in one image's prediction."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Metrics 0 .. 100 under our names, NaN where undefined."""


class Panopticapi(Reference):
    """PQ, SQ and RQ of all, things and stuff."""

    task, source = "panoptic_seg", "panopticapi"

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        super().__init__(metadata, folder)
        self.pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def add(self, record: Record, prediction: GroundTruth) -> None:
        ids, segments = prediction.segments or (np.zeros(prediction.size, np.int32), ())
        name = f"{len(self.pairs)}.png"
        write_id_map(self.folder / name, ids)
        pan_seg = Path(record["pan_seg_file_name"])
        truth = pan_seg.relative_to(self.metadata.panoptic_root or "")
        self.pairs.append(
            (
                self._annotation(record["image_id"], str(truth), record["segments_info"]),
                self._annotation(record["image_id"], name, segments),
            )
        )

    def _annotation(self, image_id: Any, file_name: str, segments: Any) -> dict[str, Any]:
        own = [c.id for c in self.metadata.categories]
        infos = [{**segment, "category_id": own[segment["category_id"]]} for segment in segments]
        return {"image_id": image_id, "file_name": file_name, "segments_info": infos}

    def scores(self) -> dict[str, float]:
        from panopticapi.evaluation import pq_compute_single_core

        categories = {c.id: {"isthing": int(c.isthing)} for c in self.metadata.categories}
        with contextlib.redirect_stdout(io.StringIO()):
            found = pq_compute_single_core(
                0, self.pairs, self.metadata.panoptic_root, str(self.folder), categories
            )
        result: dict[str, float] = {}
        for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
            with contextlib.suppress(ZeroDivisionError):  # no category: undefined
                means, _ = found.pq_average(categories, isthing=isthing)
                result |= {f"{k.upper()}{suffix}": 100 * means[k] for k in ("pq", "sq", "rq")}
        return result


class Pycocotools(Reference):
    """AP, read by pycocotools itself from the instances file and a list of results."""

    task, source = "segm", "pycocotools"

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        super().__init__(metadata, folder)
        self.results: list[dict[str, Any]] = []
        self.image_ids: list[Any] = []

    def add(self, record: Record, prediction: GroundTruth) -> None:
        self.image_ids.append(record["image_id"])
        self.results += [
            {
                "image_id": record["image_id"],
                "category_id": self.metadata.categories[category].id,
                "segmentation": encode(mask)["segmentation"],
                "score": score,
            }
            for mask, category, score in prediction.instances or ()
        ]

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
            found = truth.loadRes(self.results) if self.results else COCO()
            evaluation = COCOeval(truth, found, "segm")
            evaluation.params.imgIds = self.image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        stats = [float(value) for value in evaluation.stats[:6]]
        return {k: float("nan") if v == -1 else 100 * v for k, v in zip(names, stats)}


class Cityscapesscripts(Reference):
    """IoU and iIoU of classes and categories, from PNGs of label ids."""

    task, source = "sem_seg", "cityscapesscripts"

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        super().__init__(metadata, folder)
        self.pairs: list[tuple[str, str]] = []

    def add(self, record: Record, prediction: GroundTruth) -> None:
        path = self.folder / f"{len(self.pairs)}.png"
        Image.fromarray(train_to_label_ids()[prediction.labels]).save(path)
        self.pairs.append((str(path), str(record["sem_seg_file_name"])))

    def scores(self) -> dict[str, float]:
        return score_files(self.pairs)


def build_references(record: Record, metadata: Metadata, folder: Path) -> list[Reference]:
    """The implementations that can score a data set on this machine; `record` is one of its."""
    chosen: list[type[Reference]] = []
    if "segments_info" in record and panopticapi_is_installed():
        chosen.append(Panopticapi)
    if metadata.json_file:
        chosen.append(Pycocotools)
    if metadata.evaluator_type == "cityscapes_sem_seg":
        chosen.append(Cityscapesscripts)
    references = []
    for kind in chosen:
        (folder / kind.task).mkdir()
        references.append(kind(metadata, folder / kind.task))
    return references


def panopticapi_is_installed() -> bool:
    try:
        import panopticapi.evaluation  # noqa: F401  (any folder of that name has a spec)
    except ImportError:
        return False
    return True

"""The figures stored with the demo's damaged prediction, made again by Detectron2's evaluators."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")
pytest.importorskip("panopticapi", reason="panopticapi is not installed")

from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances

import lqn_seg.detectron2 as lqn
from lqn_seg.data.catalog import get_dataset, register_coco_panoptic
from lqn_seg.lab.validate.validate import STORED, STORED_DATASET, stored_predictions

NAME = "shipped_demo"  # the fixtures put other scenes under the demo's own name
TASKS = {
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"),
    "segm": ("AP", "AP50", "AP75", "APs"),
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC"),
}


def as_detectron2_wants(prediction, things):
    """A stored prediction with Detectron2's own structures."""
    ids, segments = prediction.segments
    size, result = ids.shape, prediction.instances
    instances = Instances(size)
    instances.pred_masks = torch.tensor(np.array([m for m, _, _ in result]).reshape(-1, *size))
    instances.pred_classes = torch.tensor([c for _, c, _ in result], dtype=torch.long)
    instances.scores = torch.tensor([s for _, _, s in result], dtype=torch.float64)
    instances.pred_boxes = Boxes(torch.zeros(len(result), 4))
    labels = torch.from_numpy(prediction.labels).long()
    return {
        "panoptic_seg": (
            torch.from_numpy(ids),
            [{**s, "isthing": s["category_id"] in things} for s in segments],
        ),
        "instances": instances,
        "sem_seg": torch.nn.functional.one_hot(labels, 13).permute(2, 0, 1).float(),
    }


def reference_scores(folder):
    """What panopticapi, pycocotools and SemSegEvaluator give for the stored prediction."""
    shipped = get_dataset(STORED_DATASET, root=STORED.parents[1]).metadata
    register_coco_panoptic(NAME, shipped.image_root, shipped.panoptic_root, shipped.panoptic_json)
    lqn.register()
    evaluators = [
        COCOPanopticEvaluator(NAME),
        COCOEvaluator(NAME, tasks=("segm",), output_dir=str(folder)),
        SemSegEvaluator(NAME),
    ]
    for evaluator in evaluators:
        evaluator.reset()
        for record, prediction in stored_predictions():
            output = as_detectron2_wants(copy.deepcopy(prediction), shipped.thing_ids)
            evaluator.process([record], [output])
    result = {}
    for evaluator in evaluators:
        result |= evaluator.evaluate()
    return {t: {k: float(result[t][k]) for k in keys} for t, keys in TASKS.items()}


def test_the_stored_figures_are_theirs(data_root, tmp_path):
    stored = json.loads((STORED / "reference.json").read_text())
    for task, scores in reference_scores(tmp_path).items():
        assert stored[task]["scores"] == pytest.approx(scores, abs=1e-9), task
    assert stored.keys() == TASKS.keys()

"""The shipped demo: scenes that the script still draws, and a teacher worth adapting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.corruptions import corrupt
from lqn_seg.data.images import read_image
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead

DEMO = Path(__file__).parents[1] / "datasets"
TEACHER = DEMO / "demo" / "teacher"


@pytest.fixture(scope="module")
def dataset():
    return get_dataset("demo_panoptic_val", DEMO)


def teacher_pq(dataset, count: int, corruption: str = "") -> float:
    teacher = load_eomt(str(TEACHER))
    config = SegmentationConfig(semantic=False, batch=8)
    head = EomtHead(teacher.model)
    segmenter = Segmenter(teacher, head, {"teacher": None}, dataset.metadata.thing_ids, config)
    evaluator = PanopticEvaluator(dataset.metadata)
    records = dataset.records()[:count]
    for start in range(0, len(records), 8):
        chunk = records[start : start + 8]
        images = [read_image(record["file_name"]) for record in chunk]
        if corruption:
            images = [corrupt(image, corruption, 3) for image in images]
        tensors = [torch.tensor(image).permute(2, 0, 1) for image in images]
        evaluator.process(chunk, [p["teacher"].output for p in segmenter(tensors)])
    return evaluator.evaluate()["panoptic_seg"]["PQ"]


def test_the_teacher_reaches_70_pq_on_the_shipped_scenes(dataset):
    assert teacher_pq(dataset, len(dataset.records())) >= 70


def test_corruptions_leave_something_to_win_back(dataset):
    shown = load_cfg("configs/demo_lqn.yaml").MODEL.LQN.EVAL.CORRUPTIONS
    clean = teacher_pq(dataset, 16)
    damaged = [teacher_pq(dataset, 16, name) for name in shown]
    assert clean - np.mean(damaged) >= 10


def test_shipped_scenes_are_what_the_script_draws(dataset, prepare_demo):
    for index in (0, 7, 63):
        record = dataset.records()[index]
        scene = prepare_demo.draw_scene(0, "val", index)
        shipped = read_image(record["file_name"]).astype(int)
        # Rounding may differ by a level between NumPy versions.
        assert np.abs(shipped - scene.image).max() <= 1
        assert (dataset.metadata.read_panoptic(record) != scene.segment_ids).mean() < 1e-3
        names = [dataset.metadata.class_names[s["category_id"]] for s in record["segments_info"]]
        assert names == list(scene.categories.values())


def test_every_class_occurs_and_scenes_differ(dataset, prepare_demo):
    seen = {s["category_id"] for record in dataset.records() for s in record["segments_info"]}
    assert seen == set(range(13))
    a, b = (prepare_demo.draw_scene(0, "val", k).image for k in (0, 1))
    c = prepare_demo.draw_scene(1, "val", 0).image
    train = prepare_demo.draw_scene(0, "train", 0).image
    assert all((a != other).mean() > 0.5 for other in (b, c, train))


def test_the_shipped_teacher_says_how_it_was_made():
    made = json.loads((TEACHER / "training.json").read_text())
    assert made["dataset"] == "demo_panoptic_train"
    assert made["loss_last_100"] < made["loss_first_100"]
    weights = TEACHER / "model.safetensors"
    assert weights.stat().st_size <= 10 * 2**20

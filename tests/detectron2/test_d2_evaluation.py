"""Their evaluators and ours, their engine and the native one: the same numbers, the same masks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")

from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    inference_on_dataset,
)
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.detectron2 import LQNEvaluator, LQNTrainer, evaluate
from lqn_seg.engine.evaluate import CLEAN, Evaluation
from lqn_seg.errors import InputError
from lqn_seg.evaluation import PanopticEvaluator

NAME = "demo_panoptic_val"
REPOSITORY = Path(__file__).resolve().parents[2]


def their_evaluators(folder):
    pytest.importorskip("panopticapi", reason="panopticapi is not installed")
    return DatasetEvaluators(
        [
            SemSegEvaluator(NAME),
            COCOEvaluator(NAME, tasks=("segm",), output_dir=str(folder)),
            COCOPanopticEvaluator(NAME),
        ]
    )


def assert_equal_metrics(ours, theirs):
    compared = 0
    for task in ("panoptic_seg", "sem_seg", "segm"):
        for key, value in theirs[task].items():
            if key in ours[task]:
                both_undefined = math.isnan(value) and math.isnan(ours[task][key])
                assert both_undefined or ours[task][key] == pytest.approx(value, abs=1e-3), key
                compared += 1
    assert compared >= 9 + 4 + 6


class Oracle(torch.nn.Module):
    """Knows the ground truth and gets it partly wrong: moved a little, some classes mixed up."""

    def __init__(self):
        super().__init__()
        self.metadata = get_dataset(NAME).metadata

    def forward(self, batch):
        return [self.predict(record) for record in batch]

    def predict(self, record):
        ids = torch.from_numpy(self.metadata.read_panoptic(record)).roll((1, 2), (0, 1))
        labels = torch.from_numpy(self.metadata.read_semantic(record)).long()
        labels = torch.where(labels == 2, 3, labels).roll((3, 1), (0, 1))
        segments = [
            {key: s[key] for key in ("id", "isthing", "category_id")} | {"score": 0.9}
            for s in record["segments_info"]
        ]
        things = [s for s in segments if s["isthing"]]
        shifted = [(ids == s["id"]).roll(2 * k % 5, 0) for k, s in enumerate(things)]
        masks = torch.stack(shifted)
        instances = Instances((record["height"], record["width"]))
        instances.pred_masks = masks
        instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
        instances.scores = torch.linspace(0.9, 0.3, len(things))
        instances.pred_classes = torch.tensor([s["category_id"] for s in things])
        for segment in segments[::3]:  # another class of the same kind
            segment["category_id"] = 1 if segment["isthing"] else 9
        scores = torch.nn.functional.one_hot(labels, 13).permute(2, 0, 1).float()
        return {"sem_seg": scores, "panoptic_seg": (ids, segments), "instances": instances}


def test_their_evaluators_and_ours_agree_on_an_imperfect_prediction(cfg, tmp_path):
    loader = build_detection_test_loader(cfg, NAME)
    ours = inference_on_dataset(Oracle(), loader, LQNEvaluator(cfg, NAME, prefix=""))
    alone = inference_on_dataset(Oracle(), loader, PanopticEvaluator(get_dataset(NAME).metadata))
    assert alone["panoptic_seg"] == pytest.approx(ours["panoptic_seg"], nan_ok=True)
    theirs = inference_on_dataset(Oracle(), loader, their_evaluators(tmp_path))
    assert_equal_metrics(ours, theirs)
    both = DatasetEvaluators([LQNEvaluator(cfg, NAME), their_evaluators(tmp_path)])
    together = inference_on_dataset(Oracle(), loader, both)
    assert together.keys() == {f"lqn/{task}" for task in ours} | theirs.keys()
    assert_equal_metrics(ours, {task: together[f"lqn/{task}"] for task in ours})
    for task, key in (("panoptic_seg", "PQ"), ("sem_seg", "mIoU"), ("segm", "AP")):
        assert 10 < ours[task][key] < 90  # neither nothing nor everything


@pytest.mark.parametrize("students", [1, 2])
def test_both_engines_give_the_same_masks_and_numbers(cfg, config_file, tmp_path, students):
    cfg.MODEL.LQN.BATCH = students
    results, hashes = evaluate(str(config_file), ["MODEL.LQN.BATCH", str(students)])
    native_cfg = load_cfg(str(config_file), ["MODEL.LQN.BATCH", str(students)])
    native = Evaluation(native_cfg, get_dataset(NAME))
    native.run(progress=False)
    lines = {key: line["methods"]["lqn"] for key, line in native.store.results(CLEAN).items()}
    assert hashes == {key: line["mask_hash"] for key, line in lines.items()}
    assert len(hashes) == 3 == len(set(hashes.values()))
    metrics = native.metrics(CLEAN, "lqn")
    for task in ("panoptic_seg", "sem_seg", "segm"):
        assert results[task] == pytest.approx(metrics[task], abs=1e-3, nan_ok=True)
    batches = LQNTrainer.build_test_loader(cfg, NAME)
    assert [len(batch) for batch in batches] == {1: [1, 1, 1], 2: [2, 1]}[students]
    assert results["lqn"]["token_cos"] == pytest.approx(metrics["lqn"]["token_cos"], abs=1e-6)

    # The same again as a stock user does it, with Detectron2's loader and evaluators.
    model = build_model(cfg)
    assert_equal_metrics(
        results, DefaultTrainer.test(cfg, model, their_evaluators(tmp_path / "coco"))
    )
    assert_equal_metrics(results, LQNTrainer.test(cfg, model))


IN_PROCESSES = """
import json, sys
from pathlib import Path
from detectron2.engine import launch
from detectron2.utils import comm
from lqn_seg.detectron2 import evaluate

def main(config, output):
    results, hashes = evaluate(config, ["MODEL.LQN.BATCH", "2"])
    if comm.is_main_process():
        Path(output).write_text(json.dumps([results, hashes]))

if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=tuple(sys.argv[1:]))
"""


def test_two_processes_of_detectron2s_launcher_find_the_same(config_file, tmp_path):
    """Three images in batches of two, of which each process gets one."""
    alone, hashes = evaluate(str(config_file), ["MODEL.LQN.BATCH", "2"])
    script, output = tmp_path / "script.py", tmp_path / "found.json"
    script.write_text(IN_PROCESSES)
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, script, config_file, output],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    metrics, theirs = json.loads(output.read_text())
    assert theirs == {str(key): value for key, value in hashes.items()}
    for task in ("panoptic_seg", "sem_seg", "segm"):
        assert metrics[task] == pytest.approx(alone[task], abs=0, nan_ok=True)
    assert metrics["lqn"]["token_cos"] == alone["lqn"]["token_cos"]


def test_the_one_method_of_methods_counts(config_file):
    _, teacher = evaluate(str(config_file), ["MODEL.LQN.METHODS", "('teacher',)"])
    _, method = evaluate(str(config_file), ["MODEL.LQN.METHOD", "teacher"])
    _, subset = evaluate(
        str(config_file), ["MODEL.LQN.METHOD", "teacher", "MODEL.LQN.EVAL.MAX_IMAGES", "2"]
    )
    assert teacher == method
    assert list(subset) == list(method)[:2] and len(method) == 3


def test_two_data_sets_are_refused(config_file):
    with pytest.raises(InputError, match=r"DATASETS\.TEST must name exactly one"):
        evaluate(str(config_file), ["DATASETS.TEST", f"('{NAME}', 'demo_panoptic_train')"])


def test_records_of_another_reader_are_found_by_their_files(cfg):
    """Detectron2's Cityscapes says ``bonn_000000_000019_leftImg8bit.png`` for an id."""
    evaluator, oracle = LQNEvaluator(cfg, NAME), Oracle()
    record, *_ = get_dataset(NAME).records()
    output = oracle.predict(record)
    evaluator.process([{**record, "image_id": "theirs"}], [output])
    assert list(evaluator.images) == [record["image_id"]]
    with pytest.raises(InputError, match=r"elsewhere\.png is not in"):
        evaluator.process([{"file_name": "elsewhere.png"}], [output])

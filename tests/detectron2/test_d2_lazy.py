"""The LazyConfig files: what Detectron2's lazyconfig_train_net.py takes of them can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")

from detectron2.config import LazyConfig, instantiate
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.events import EventStorage

from lqn_seg.detectron2 import LQNTTTMetaArch, TeacherBackbone

LAZY = Path(__file__).resolve().parents[2] / "configs" / "lazy"


def load(name, tmp_path):
    cfg = LazyConfig.load(str(LAZY / name))
    return LazyConfig.apply_overrides(cfg, [f"train.output_dir={tmp_path}"])


def test_test_time_training_is_evaluated(data_root, tmp_path):
    cfg = load("lqn_ttt.py", tmp_path)
    model = instantiate(cfg.model)
    assert isinstance(model, LQNTTTMetaArch) and model.method == "lqn"
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    assert results["lqn/panoptic_seg"]["PQ"] > 50  # the shipped teacher, on three other scenes


@pytest.mark.parametrize("name", ["semantic_fpn.py", "vitdet.py"])
def test_heads_on_the_teacher_train_and_predict(data_root, tmp_path, name):
    cfg = load(name, tmp_path)
    if "roi_heads" in cfg.model:
        few = ["model.roi_heads.batch_size_per_image=8", "model.proposal_generator.nms_thresh=0.1"]
        cfg = LazyConfig.apply_overrides(cfg, [*few, "dataloader.train.total_batch_size=1"])
    model = instantiate(cfg.model)
    assert any(isinstance(module, TeacherBackbone) for module in model.modules())
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with EventStorage():
        losses = model.train()(next(iter(instantiate(cfg.dataloader.train))))
    sum(losses.values()).backward()
    optimizer.step()
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
    }
    assert moved and not any("teacher_model" in key for key in moved)
    with torch.no_grad():
        (output,) = model.eval()(next(iter(instantiate(cfg.dataloader.test))))
    assert set(output) == ({"sem_seg"} if name == "semantic_fpn.py" else {"instances"})
    instantiate(cfg.dataloader.evaluator).reset()
    instantiate(cfg.lr_multiplier)

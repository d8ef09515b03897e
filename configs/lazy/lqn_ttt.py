"""Test-time training on the demo's scenes (--eval-only: LQNTTTMetaArch has nothing to train)."""

from detectron2.config import LazyCall as L

from lqn_seg.config.nodes import load_cfg
from lqn_seg.detectron2 import LQNEvaluator, LQNTTTMetaArch

from .common import DEVICE, ROOT, dataloader, lr_multiplier, optimizer, train  # noqa: F401

# What MODEL.LQN says, as everywhere; a key more here is a pair more in this list.
cfg = L(load_cfg)(
    path=str(ROOT / "configs" / "demo_lqn.yaml"),
    overrides=["MODEL.LQN.METHOD", "lqn", "MODEL.LQN.BATCH", "1"],
    device=DEVICE,
)
model = L(LQNTTTMetaArch)(cfg=cfg)
dataloader["evaluator"] = L(LQNEvaluator)(cfg=cfg, dataset_name="demo_panoptic_val")

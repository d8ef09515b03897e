"""What the LazyConfig files of this folder share: the demo's scenes, loaders, solver.

Detectron2's tools/lazyconfig_train_net.py takes them, from a clone of Detectron2:

    python detectron2/tools/lazyconfig_train_net.py --config-file configs/lazy/FILE.py
    python detectron2/tools/lazyconfig_train_net.py --eval-only --config-file configs/lazy/FILE.py

Drawn scenes to train on: python datasets/prepare_demo.py --split train --count 100
"""

from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

import lqn_seg.detectron2 as lqn
from lqn_seg.teachers.eomt import load_eomt

lqn.register()

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMAGENET_RGB = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}

# Another teacher: a directory, file or hub id, such as tue-mps/coco_panoptic_eomt_large_640.
teacher = L(load_eomt)(weights=str(ROOT / "datasets" / "demo" / "teacher"), device=DEVICE)
backbone = L(lqn.TeacherBackbone)(
    teacher=teacher, out_features=["layer8"], input_format="RGB", **IMAGENET_RGB
)

train = {
    "output_dir": "./output/lazy",
    "init_checkpoint": "",
    "max_iter": 1000,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False},
    "checkpointer": {"period": 500, "max_to_keep": 2},
    "eval_period": 500,
    "log_period": 20,
    "device": DEVICE,
}
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0), lr=1e-3, weight_decay=0.02
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_factor=0.01,
    warmup_length=0.05,
)
dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="demo_panoptic_train", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[L(T.RandomFlip)()],
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format="bitmask",
        ),
        total_batch_size=4,
        num_workers=0,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="demo_panoptic_val", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB"),
        num_workers=0,
    ),
}

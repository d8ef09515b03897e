"""The configurations of the published teachers: they load, and have the published shapes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lqn_seg.config.nodes import load_cfg, methods, segmentation_config
from lqn_seg.lab.cost.flops import EomtShape, eomt_gmacs
from lqn_seg.teachers.eomt_checkpoints import read_eomt_config
from lqn_seg.teachers.eomt_model import build_eomt

ROOT = Path(__file__).parents[2]
# image size, queries, classes, parameters in millions (kerssies et al., ViT-L), GMACs of a window
PUBLISHED = {
    "ade20k_lqn": (512, 100, 150, 316, 394),
    "ade20k_panoptic_lqn": (1280, 200, 150, 322, 4144),
    "coco_panoptic_lqn": (1280, 200, 133, 322, 4144),
    "coco_instance_lqn": (1280, 200, 80, 322, 4144),
    "cityscapes_lqn": (1024, 100, 19, 319, 2174),
}
SETS = {
    "ade20k_lqn": "ade20k_sem_seg_val",
    "ade20k_panoptic_lqn": "ade20k_panoptic_val",
    "coco_panoptic_lqn": "coco_2017_val_panoptic",
    "coco_instance_lqn": "coco_2017_val",
    "cityscapes_lqn": "cityscapes_fine_sem_seg_val",
}


def header(name: str) -> str:
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config(name):
    size, queries, classes, millions, gmacs = PUBLISHED[name]
    path = ROOT / "configs" / f"{name}.yaml"
    cfg = load_cfg(str(path))
    assert (SETS[name],) == cfg.DATASETS.TEST
    semantic = "panoptic" not in name and "instance" not in name
    outputs = segmentation_config(cfg)
    assert (outputs.semantic, outputs.panoptic, outputs.instances) == (
        semantic,
        "panoptic" in name,
        "instance" in name,
    )
    assert outputs.inference == ("windows" if semantic else "pad")
    assert cfg.MODEL.LQN.TEACHER.WEIGHTS.endswith(f"_eomt_large_{size}")
    assert list(methods(cfg)) == ["teacher", "lqn"]
    shape = re.search(r"configs/teachers/\w+\.json", header(name))
    assert shape is not None
    config = read_eomt_config(str(ROOT / shape[0]))
    assert (config.image_size, config.num_queries, config.num_labels) == (size, queries, classes)
    with torch.device("meta"):
        model = build_eomt(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert sum(eomt_gmacs(EomtShape.from_config(config)).values()) == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("method", ["teacher", "apm@distill", "lqn-src", "lqn@paper"])
def test_a_variant_is_one_override(name, method):
    path = str(ROOT / "configs" / f"{name}.yaml")
    assert list(methods(load_cfg(path, ["MODEL.LQN.METHOD", method]))) == [method]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_header_says_what_is_needed_to_run_it(name):
    text = header(name)
    for words in (f"--config configs/{name}.yaml", "published", "memory:", "time:", "measured by"):
        assert words in text
    table = (ROOT / "MODEL_ZOO.md").read_text()
    score = re.search(r"published (\d+\.\d) (mIoU|PQ|AP)", text)
    assert score is not None
    row = next(line for line in table.splitlines() if f"`configs/{name}.yaml`" in line)
    assert f"{score[1]} {score[2]}" in row and "| no |" in row

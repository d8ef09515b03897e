"""A tiny EoMT with random weights, a few demo scenes, and one YAML file that both engines read."""

from __future__ import annotations

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

YAML = """
MODEL:
  META_ARCHITECTURE: LQNTTTMetaArch
  DEVICE: cpu
  MASK_FORMER:
    TEST:
      SEMANTIC_ON: True
      INSTANCE_ON: True
      PANOPTIC_ON: True
      OBJECT_MASK_THRESHOLD: 0.2
      OVERLAP_THRESHOLD: 0.1
  LQN:
    PRESET: distill  # not calibrated: the default would answer as the teacher does
    METHOD: lqn
    TEACHER:
      WEIGHTS: {teacher}
    STUDENT:
      INPUT_SIZE: 32
      STRIDE: 8
      WIDTHS: (32, 32)
      POSITION_DIM: 16
    FIT:
      STEPS: 20
      LEARNING_RATE: 0.01
      POSITIONS_PER_STEP: 32
INPUT:
  FORMAT: RGB
  MIN_SIZE_TEST: 0
DATALOADER:
  NUM_WORKERS: 0
DATASETS:
  TEST: ("demo_panoptic_val",)
OUTPUT_DIR: {output}
VERSION: 2
"""


@pytest.fixture(scope="session")
def data_root(tmp_path_factory, prepare_demo):
    """Three validation and two training scenes, where both engines look for them."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("datasets")
    prepare_demo.write_split(root / "demo", "val", 3, seed=5)
    prepare_demo.write_split(root / "demo", "train", 2, seed=5)
    patch.setenv("DETECTRON2_DATASETS", str(root))
    patch.setenv("FVCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield root
    patch.undo()


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory):
    """An EoMT that is sure of itself, so that its predictions are not empty."""
    torch.manual_seed(1)
    model = EomtForUniversalSegmentation(
        EomtConfig(
            **dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=32),
            **dict(patch_size=8, num_blocks=1, num_queries=12, num_upscale_blocks=1),
            **dict(num_register_tokens=1, num_labels=13),
        )
    )
    model.attn_mask_probs.zero_()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.query.weight.data.mul_(6)
    model.class_predictor.weight.data.mul_(6)
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def config_file(data_root, teacher_dir, tmp_path):
    """The YAML file, with an output folder of the test's own."""
    path = tmp_path / "config.yaml"
    path.write_text(YAML.format(teacher=teacher_dir, output=tmp_path / "output"))
    return path


@pytest.fixture
def cfg(config_file):
    """Detectron2's configuration of it, as a user makes it."""
    from detectron2.config import get_cfg

    import lqn_seg.detectron2 as lqn

    lqn.register()
    cfg = get_cfg()
    lqn.add_lqn_config(cfg)
    cfg.merge_from_file(str(config_file))
    return cfg

"""Small real things that many tests share: an EoMT of 16 features, and drawn scenes on disk."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

ROOT = Path(__file__).parents[1]


class Elsewhere(torch.Tensor):
    """A tensor as on an accelerator: it has no float64, and meets no tensor of the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and "cpu" in map(str, args)):
            return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.double:
            raise TypeError("no float64 here")
        if any(type(x) is torch.Tensor and x.dim() for x in args):
            raise RuntimeError("expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture(scope="session")
def elsewhere():
    """Puts a tensor on a device that is not there."""
    return lambda tensor: tensor.as_subclass(Elsewhere)


def pytest_configure(config) -> None:
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another


def load_script(folder: str, name: str) -> ModuleType:
    """A script of the repository as a module; `datasets/` and `tools/` are no packages."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def script() -> Callable[[str, str], ModuleType]:
    """`load_script`."""
    return load_script


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def code_blocks() -> Callable[[Path], list[tuple[str, str]]]:
    """(language, source) of a page's code blocks, in order."""
    return lambda page: BLOCK.findall(page.read_text())


@pytest.fixture
def like_the_repository(tmp_path, monkeypatch) -> Path:
    """A working directory that looks like the repository, where pages may write."""
    for name in ("configs", "datasets", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def prepare_demo() -> ModuleType:
    """The script that draws the scenes."""
    return load_script("datasets", "prepare_demo")


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory, prepare_demo) -> Path:
    """A $DETECTRON2_DATASETS with five validation and eight training scenes."""
    root = tmp_path_factory.mktemp("datasets")
    prepare_demo.write_split(root / "demo", "val", 5, seed=3)
    prepare_demo.write_split(root / "demo", "train", 8, seed=3)
    return root


def save_teacher(folder: Path, num_labels: int = 13) -> Path:
    """A random EoMT for 32 x 32 pixels, by default for the scenes' classes, as transformers saves.

    Its weights are loud enough that some queries pass the thresholds, so that masks are compared.
    """
    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        num_blocks=2,
        num_queries=6,
        num_register_tokens=1,
        num_labels=num_labels,
        num_upscale_blocks=1,
    )
    model = EomtForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()
    # Transformers' own start differs by version, and by what tests before this one drew.
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 1:
            parameter.data.fill_(0 if name.endswith("bias") else 1)
        else:
            loud = {"class_predictor.weight": 3, "mask_head.fc3.weight": 2}
            deviation = loud.get(name, parameter[0].numel() ** -0.5)
            parameter.data.normal_(0, deviation, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    """`save_teacher`'s for the scenes."""
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def teacher_for() -> Callable[[Path, int], Path]:
    """`save_teacher`, for data sets of other classes."""
    return save_teacher


@pytest.fixture
def small_config(tmp_path, monkeypatch, scenes_root, teacher_folder) -> Path:
    """A YAML file for a run that takes a second: tiny teacher, tiny student, five scenes."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes_root))
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""
_BASE_: {ROOT / "configs" / "Base-LQN.yaml"}
MODEL:
  DEVICE: cpu
  MASK_FORMER: {{TEST: {{INSTANCE_ON: True, PANOPTIC_ON: True, OBJECT_MASK_THRESHOLD: 0.2}}}}
  LQN:
    TEACHER: {{WEIGHTS: {teacher_folder}}}
    STUDENT:
      INPUT_SIZE: 32
      STRIDE: 8
      WIDTHS: (32, 32)
      POSITION_DIM: 32
    FIT: {{STEPS: 5, POSITIONS_PER_STEP: 16}}
    METHODS: ("teacher", "lqn")
    EVAL:
      CORRUPTIONS: ("contrast",)
      PANEL_IMAGES: 1
      PANEL_METHODS: ("teacher", "lqn")
      BOOTSTRAP_SAMPLES: 50
DATASETS:
  TEST: ("demo_panoptic_val",)
OUTPUT_DIR: {tmp_path / "output"}
"""
    )
    return path


@pytest.fixture
def executed(monkeypatch) -> list:
    """(condition, image) of every prediction that is made."""
    from lqn_seg.engine.evaluate import Evaluation

    done: list = []
    original = Evaluation.predict

    def counting(self, condition, samples):
        done.extend((str(condition), sample.record["image_id"]) for sample in samples)
        return original(self, condition, samples)

    monkeypatch.setattr(Evaluation, "predict", counting)
    return done

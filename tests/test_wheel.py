"""The wheel works alone: installed into an empty folder, far from the sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the project's wheel and nothing else in it."""
    pytest.importorskip("setuptools", minversion="64", reason="the wheel is built with setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: setuptools leaves build/ behind, and old files of it would get into the wheel.
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "lqn_seg", "configs", "datasets"):
        (source / name).symlink_to(ROOT / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([*PIP, *build, str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = ["install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)]
    subprocess.run([*PIP, *target], check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def run(installed, tmp_path):
    """Runs Python where only the installed package is in reach."""
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"}
    environment |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def call(*words: object) -> str:
        command = [sys.executable, *map(str, words)]
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


def test_the_package_is_the_installed_one(run, installed):
    code = "import lqn_seg; from lqn_seg.data.shipped import shipped_root; "
    code += "print(lqn_seg.__file__, shipped_root())"
    assert run("-c", code).split() == [
        str(installed / "lqn_seg" / "__init__.py"),
        str(installed / "lqn_seg" / "shipped"),
    ]


def test_it_brings_what_the_checkout_has(installed):
    shipped = installed / "lqn_seg" / "shipped"
    patterns = ("configs/**/*.yaml", "configs/**/*.json", "datasets/*/val/**/*.png")
    for pattern in (*patterns, "datasets/demo/perturbed/*"):
        ours = {path.relative_to(ROOT) for path in ROOT.glob(pattern)}
        assert ours == {path.relative_to(shipped) for path in shipped.glob(pattern)}
    assert (shipped / "datasets" / "demo" / "teacher" / "calibration.safetensors").is_file()
    assert not (shipped / "datasets" / "demo" / "train").exists()


def test_predict_and_eval_run_from_anywhere(run, installed, tmp_path):
    scene = installed / "lqn_seg" / "shipped" / "datasets" / "demo" / "val" / "000000.png"
    Image.open(scene).save(tmp_path / "mine.png")
    command = installed / "bin" / "lqn-seg"
    assert "1 file predicted" in run(command, "predict", "mine.png", "--out", "out/")
    labels = np.asarray(Image.open(tmp_path / "out" / "mine_labels.png"))
    assert labels.shape == (96, 96) and len(np.unique(labels)) > 2
    few = ("MODEL.LQN.EVAL.MAX_IMAGES", 1, "MODEL.LQN.EVAL.CORRUPTIONS", "('contrast',)")
    said = run("-m", "lqn_seg", "eval", "demo", "--methods", "teacher,restore", *few)
    assert "scores 0-100" in said and "SUBSET: 1 of 64 images" in said
    results = json.loads((tmp_path / "output/demo_lqn/inference/results.json").read_text())
    assert results

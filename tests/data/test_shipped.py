"""Configurations and demo files by path and by name, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from lqn_seg.config.nodes import load_cfg
from lqn_seg.data import shipped
from lqn_seg.data.shipped import find_config, find_local, shipped_root
from lqn_seg.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("demo", "demo_lqn.yaml"),
        ("demo_lqn", "demo_lqn.yaml"),
        ("demo_lqn.yaml", "demo_lqn.yaml"),
        ("configs/demo_lqn.yaml", "demo_lqn.yaml"),
        ("classification/demo", "classification/demo.yaml"),
        ("ade20k", "ade20k_lqn.yaml"),
    ],
)
def test_a_shipped_configuration_has_a_name_anywhere(name, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / "configs" / file


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo_lqn.yaml").write_text("OUTPUT_DIR: mine\n")
    assert find_config("demo_lqn.yaml") == Path("demo_lqn.yaml")
    assert load_cfg("demo_lqn.yaml").OUTPUT_DIR == "mine"
    assert load_cfg("demo").OUTPUT_DIR == "output/demo_lqn"


def test_studies_have_short_names():
    assert find_config("quick", "study") == ROOT / "configs" / "study" / "quick.yaml"
    with pytest.raises(InputError, match="there is no study file quik; did you mean quick"):
        find_config("quik", "study")


def test_a_wrong_name_is_one_sentence_with_the_nearest():
    for name in ("configs/demo_lqm.yaml", "demo_lqm"):
        with pytest.raises(InputError, match=f"no config file {name}; did you mean demo"):
            find_config(name)
    with pytest.raises(InputError, match="there is no config file"):
        find_config("")


def test_an_installed_package_brings_its_own(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "lqn_seg"
    teacher = package / "shipped" / "datasets" / "demo" / "teacher"
    teacher.mkdir(parents=True)
    (package / "shipped" / "configs").mkdir()
    (package / "shipped" / "configs" / "demo_lqn.yaml").write_text("SEED: 3\n")
    monkeypatch.setattr(shipped, "files", lambda name: package)
    monkeypatch.chdir(tmp_path)
    assert shipped_root() == package / "shipped"
    assert load_cfg("demo").SEED == 3
    assert find_local("datasets/demo/teacher") == str(teacher)
    (tmp_path / "datasets" / "demo" / "teacher").mkdir(parents=True)
    assert find_local("datasets/demo/teacher") == "datasets/demo/teacher"

"""The golden files, as far as seconds allow; `python tests/golden/make.py` compares all of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture(scope="module")
def golden():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["logits", "flops_clip"])
def test_a_golden_value_is_found_again(golden, name):
    ((_, value),) = golden.make([name])
    assert not golden.differences(json.loads((GOLDEN / f"{name}.json").read_text()), value)


def test_a_difference_would_be_seen(golden):
    assert golden.differences({"a": [1.0, "x"]}, {"a": [1.0001, "x"]}) == []
    assert golden.differences({"a": [1.0, "x"]}, {"a": [1.001, "y"]}) == [
        "/a[0]: 1.0 -> 1.001",
        "/a[1]: x -> y",
    ]


def test_every_golden_file_has_a_maker(golden):
    stored = {path.stem for path in GOLDEN.glob("*.json")}
    flops = {f"flops_{name}" for name in golden.FLOPS}
    single = {"logits", "calibration", "windows", "fit_per_image"}
    assert stored == flops | single | set(golden.SEGMENTATION) | set(golden.CLASSIFICATION)

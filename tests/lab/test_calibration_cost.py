"""What a calibration is said to cost."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace

import pytest
import torch

from lqn_seg.engine.calibrate import Calibrated
from lqn_seg.lab.cost import calibration
from lqn_seg.lab.cost.cost import UncountedOperatorError, measure
from lqn_seg.teachers.eomt import load_eomt


def test_an_eomt_l_costs_what_is_published_of_it():
    """394.1 GMACs a pass on ADE20K at 512 px, of which its head has 23.7 (tests/lab/test_flops.py
    counts both), and its queries 4 blocks' share; ten times the embedding and 12 of 24 blocks
    without queries; 13 layers of 32 x 32 tokens of width 1024 in a square product
    and eleven to 160 directions."""
    products = 13 * 32 * 32 * (1024**2 + 11 * 1024 * 160) / 1e9
    half = (32 * 32 * 3 * 16**2 * 1024 + 12 * (12 * 1029 * 1024**2 + 2 * 1029**2 * 1024)) / 1e9
    expected = 10 * half + (394.1 - 23.7) + products
    assert calibration.large_input_gmacs() == pytest.approx(expected, rel=1e-3)


def test_the_estimate_is_in_proportion_to_multiply_adds(teacher_folder, monkeypatch):
    teacher = load_eomt(str(teacher_folder))
    made = Calibrated(teacher, images=4, inputs=8, seconds=2.0)
    blank = torch.zeros(1, 3, *teacher.image_size)
    # A pass, ten up to half of the depth, twelve products at the embedding and each layer so far.
    layers = 1 + min(teacher.num_layers // 2, teacher.num_layers - teacher.num_query_layers)
    products = 12 * layers * prod(teacher.grid) * teacher.width**2 / 1e9
    field, context = teacher.encode(blank)
    whole = measure(lambda: teacher.encode(blank)).gmacs
    rest = measure(lambda: teacher.resume(layers - 1, field[:, layers - 2], context)).gmacs
    expected = whole + 10 * (whole - rest) + products
    assert calibration.input_gmacs(made) == pytest.approx(expected)
    monkeypatch.setattr(calibration, "input_gmacs", lambda made: 100.0)
    monkeypatch.setattr(calibration, "large_input_gmacs", lambda: 250.0)
    assert calibration.calibration_line(made) == (
        "4 images in 2.0 s, 2.00 images/s, 400.0 GMACs/s; about 5 s for an EoMT-L at 512 px on "
        "this machine"
    )


def test_without_a_count_there_is_no_estimate(monkeypatch):
    def uncounted(made):
        raise UncountedOperatorError("aten.new")

    monkeypatch.setattr(calibration, "input_gmacs", uncounted)
    made = Calibrated(SimpleNamespace(), images=6, inputs=6, seconds=2.0)
    assert calibration.calibration_line(made) == "6 images in 2.0 s, 3.00 images/s"

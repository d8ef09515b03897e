"""Recipes by name, their sizes in closed form, and one sentence for each mistake."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lqn_seg.core.config import (
    PRESETS,
    VARIANTS,
    FitConfig,
    LQNConfig,
    StudentConfig,
    axis_features,
    preset,
    with_variant,
)
from lqn_seg.core.lqn import StudentFitter, Students
from lqn_seg.core.precision import resolve_precision
from lqn_seg.core.random import RandomKey
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.flops import first_inputs, parameter_count

GRID = (5, 3, 4)  # L, H, W
BASE = StudentConfig(12, 4, (24, 16, 20), 20, init="he")


def test_variants_by_name():
    paper = preset("paper")
    assert [with_variant(paper, name).fit.variant for name in VARIANTS] == list(VARIANTS)
    assert with_variant(paper, "two-word") == with_variant(paper, "lqn") == paper
    src, apm = with_variant(paper, "lqn-src"), with_variant(paper, "apm")
    assert (src.student.source, src.student.axes) == (False, 3)
    assert (apm.student.source, apm.student.axes) == (False, 2)
    assert with_variant(paper, "restore").adapt.align


@pytest.mark.parametrize("layers", [None, "last", (1, 3)])
def test_a_variant_and_back_is_the_recipe_again(layers):
    recipe = replace(preset("default"), fit=replace(preset("default").fit, layers=layers))
    for name in ("lqn-src", "apm", "kernel", "teacher"):
        assert with_variant(with_variant(recipe, name), "lqn") == recipe


def test_fitted_layers_and_what_a_step_visits():
    assert FitConfig().fitted_layers(4) == (1, 2, 3, 4)
    assert FitConfig(layers="last").fitted_layers(4) == (4,)
    assert FitConfig(layers=(3, 1, 3)).fitted_layers(4) == (1, 3)
    assert FitConfig(variant="apm", layers=(1, 2)).fitted_layers(4) == (4,)
    for bad in ((), (0,), (1, 5)):
        with pytest.raises(InputError, match=r"among 1\.\.4"):
            FitConfig(layers=bad).fitted_layers(4)
    assert FitConfig().visited(GRID) == 196
    assert FitConfig(positions_per_step=0.5).visited(GRID) == 30
    assert FitConfig(positions_per_step=0.5, layers=(1, 5)).visited(GRID) == 12
    assert FitConfig(positions_per_step=0.05).visited((24, 80, 80)) == 7680
    assert FitConfig(positions_per_step=0.001).visited(GRID) == 1
    for bad in (0, -3, 0.0, 1.5):
        with pytest.raises(InputError, match="positions_per_step"):
            FitConfig(positions_per_step=bad)


def test_axes_share_the_code_and_the_last_takes_the_remainder():
    assert axis_features(768, 3) == (254, 254, 258)
    assert axis_features(96, 3) == (30, 30, 34)
    assert axis_features(96, 2) == (46, 48)
    for bad, reason in ((97, "even"), (6, "at least 8")):
        with pytest.raises(InputError, match=reason):
            axis_features(bad, 3)


def test_auto_precision_is_one_of_the_two():
    assert resolve_precision("auto", torch.device("cpu")) in ("bfloat16", "float32")
    assert resolve_precision("float16", torch.device("cpu")) == "float16"


# --- sizes


@pytest.mark.parametrize(
    "name, variant, features, count",
    [
        # Table 4: 2560*4096 + 2*4096^2 + 4096*2048 + 2048*1024 + 1024*768, biases, the filter
        ("paper", "lqn", 768, 55_329_101),
        ("paper", "lqn-src", 768, 52_183_373),
        ("paper", "apm", 768, 52_183_373),
        ("paper", "lqn", 1024, 55_591_501),
        ("slim", "lqn", 768, 21_766_477),
        ("slim", "lqn-src", 768, 18_620_749),
        # 3328*1024 + 1024^2 + 1024*768, for a guide of 768 features, and the same extras
        ("default", "lqn", 768, 5_246_285),
    ],
)
def test_parameters_in_closed_form(name, variant, features, count):
    assert parameter_count(with_variant(PRESETS[name], variant).student, features) == count


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"source": False},
        {"source": False, "axes": 2},
        {"widths": (16,)},
        {"guide": 0.5},
        {"guide": 0.5, "source": False},
    ],
)
def test_parameters_are_those_of_the_plain_student(reference, change):
    config = replace(BASE, **change)
    plain = reference.Student(config, 7)
    assert parameter_count(config, 7) == sum(p.numel() for p in plain.parameters())
    assert first_inputs(config, 7) == plain.linears[0].in_features


@pytest.mark.parametrize(
    "change, deviations",
    [
        ({"init": "normal"}, (0.01, 0.01, 0.01)),
        (
            {},
            (196, 256, 51_200),
        ),  # fan-ins of He's sqrt(2 / n); the last layer is ten times smaller
        ({"guide": 0.5}, (196 + 64, 256, 51_200)),
    ],
)
def test_initial_weights(change, deviations):
    config = replace(StudentConfig(28, 14, (256, 512), 96, init="he"), **change)
    fitter = StudentFitter(LQNConfig(config, FitConfig(precision="float32")), (2, 2, 2), 64)
    weights = Students(fitter, [RandomKey(0)]).weights
    if config.init == "he":
        deviations = [math.sqrt(2 / n) for n in deviations]
    for block in ("first.source", "first.destination", "first.guide")[: 3 if config.guide else 2]:
        assert weights[block].std().item() == pytest.approx(deviations[0], rel=0.03)
    for name, deviation in zip(("hidden1.weight", "output.weight"), deviations[1:]):
        assert weights[name].std().item() == pytest.approx(deviation, rel=0.03)
        assert abs(weights[name].mean().item()) < 4 * deviation / weights[name].numel() ** 0.5
    assert all(not w.any() for name, w in weights.items() if name.endswith("bias"))


# --- bad names and numbers


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: with_variant(LQNConfig(), "lqn-scr"), "did you mean 'lqn-src'"),
        (lambda: preset("papper"), "did you mean 'paper'"),
        (lambda: resolve_precision("float8", torch.device("cpu")), "not 'float8'"),
        (lambda: FitConfig(precision="bf16"), "did you mean 'bfloat16'"),
        (lambda: FitConfig(target_norm="layers"), "did you mean 'layer'"),
        (lambda: FitConfig(layers="lost"), "did you mean 'last'"),
        (lambda: FitConfig(steps=-1), "steps"),
        (lambda: FitConfig(positions_per_step=0), "positions_per_step"),
        (lambda: LQNConfig(fit=FitConfig("apm")), "with_variant"),
        (lambda: replace(BASE, input_size=13), "multiple of stride"),
        (lambda: replace(BASE, widths=()), "widths"),
        (lambda: replace(BASE, axes=4), "axes"),
        (lambda: replace(BASE, init="xavier"), "init"),
        (lambda: replace(BASE, position_dim=21), "position_dim"),
        (lambda: replace(BASE, guide=-0.1), "guide"),
        (lambda: replace(BASE, guide=1.1), "guide"),
    ],
)
def test_a_bad_name_or_number_is_one_sentence(call, reason):
    with pytest.raises(InputError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)

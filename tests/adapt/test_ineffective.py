"""Methods that change nothing say so once, and cost nothing that was not paid."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from lqn_seg.adapt.ineffective import (
    IneffectiveMethodWarning,
    paid_recipe,
    shown,
    warn,
    why_ineffective,
)
from lqn_seg.core.config import PRESETS, with_variant

DEFAULT = PRESETS["default"]
AS_TEACHER = "predicts the same as its teacher"


def adapting(**changes):
    return replace(DEFAULT, adapt=replace(DEFAULT.adapt, **changes))


def fitting(**changes):
    return replace(DEFAULT, fit=replace(DEFAULT.fit, **changes))


ALWAYS = adapting(mix_by_noise=False)


@pytest.mark.parametrize(
    "name, recipe, calibrated, words",
    [
        ("lqn", DEFAULT, True, ""),
        ("lqn", DEFAULT, False, "its student is not used"),  # two views are something
        ("lqn", adapting(views=1), False, AS_TEACHER),
        ("kernel", with_variant(adapting(views=1), "kernel"), False, AS_TEACHER),
        ("views", with_variant(DEFAULT, "views"), False, ""),  # needs no calibration
        ("field", with_variant(DEFAULT, "field"), False, "nothing is aligned"),
        ("field", with_variant(DEFAULT, "field"), True, ""),
        ("restore", with_variant(DEFAULT, "restore"), False, AS_TEACHER),
        ("restore", with_variant(DEFAULT, "restore"), True, ""),
        ("lqn@distill", PRESETS["distill"], False, ""),
        ("teacher", with_variant(DEFAULT, "teacher"), False, ""),
        ("lqn", ALWAYS, False, "nothing is aligned"),
        ("lqn", adapting(align=False), False, "its student is not used"),
        ("lqn", fitting(steps=0), True, "STEPS is 0"),
        ("apm", fitting(learning_rate=0.0), True, "LEARNING_RATE is 0"),
        ("untrained", fitting(steps=0), True, ""),
        ("untrained@distill", fitting(steps=0), True, ""),
    ],
)
def test_what_a_recipe_leaves_undone(name, recipe, calibrated, words):
    result = why_ineffective(name, recipe, calibrated)
    assert words in result and bool(words) == bool(result)
    if result:
        assert f"method {name}" in result and "\n" not in result
        assert "MODEL.LQN." in result


def test_a_warning_comes_once_in_a_process_and_not_where_the_console_has_it():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            warn(["one", "two"])
        assert shown(["two", "three"]) == ["two", "three"]
        warn(["three"])
    assert [str(w.message) for w in seen] == ["one", "two"]
    assert {w.category for w in seen} == {IneffectiveMethodWarning}


def test_the_recipe_that_was_paid():
    assert paid_recipe(DEFAULT, True, True) == DEFAULT
    assert paid_recipe(DEFAULT, True, False) == with_variant(DEFAULT, "field")
    unaligned = paid_recipe(DEFAULT, False, False)
    assert (unaligned.fit.variant, unaligned.views) == ("views", 2)
    assert not unaligned.adapt.align
    views = with_variant(DEFAULT, "views")
    assert not views.adapt.align and paid_recipe(views, True, False) == views
    alone = adapting(views=1)
    assert paid_recipe(alone, True, False).fit.variant == "restore"
    assert paid_recipe(alone, False, False).fit.variant == "teacher"
    distilled = PRESETS["distill"]
    assert paid_recipe(distilled, False, True) == distilled
    assert paid_recipe(distilled, False, False).fit.variant == "teacher"
    assert paid_recipe(with_variant(DEFAULT, "restore"), False, False).fit.variant == "teacher"
    assert not paid_recipe(ALWAYS, False, True).adapt.align

"""Methods that do nothing as configured: found before they run, and reported once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace

from lqn_seg.core.config import NO_STUDENT, LQNConfig, with_variant

CALIBRATE = (
    "make one from clean images by lqn-seg calibrate or a model's calibrate(), and set "
    "MODEL.LQN.CALIBRATION to it"
)
UNTRAINED = "untrained"  # the control that makes no step by design
_NOTHING = "nothing is aligned"
_said: set[str] = set()


class IneffectiveMethodWarning(UserWarning):
    """A method that was asked for does nothing, or a part of it does not."""


def why_ineffective(name: str, recipe: LQNConfig, calibrated: bool) -> str:
    """What a recipe leaves undone, in one sentence; empty where it does all that it says.

    Args:
        name: the method's, as it was asked for.
        calibrated: whether the teacher has been.
    """
    fit, adapt = recipe.fit, recipe.adapt
    if fit.variant in ("teacher", "views"):
        return ""
    if fit.variant == "restore":
        if calibrated:
            return ""
        return (
            f"method {name} predicts the same as its teacher: without a calibration {_NOTHING}; "
            f"{CALIBRATE}"
        )
    if fit.variant == "field":
        return "" if calibrated else f"method {name}: without a calibration {_NOTHING}; {CALIBRATE}"
    if adapt.mix_by_noise and not calibrated:
        undone = f"{_NOTHING} and its student is not used"
        if not adapt.align:
            undone = "its student is not used"
        does = f"method {name}" + (" predicts the same as its teacher" if recipe.views == 1 else "")
        return f"{does}: without a calibration {undone}; {CALIBRATE}"
    if adapt.align and not calibrated:
        return f"method {name}: without a calibration {_NOTHING}; {CALIBRATE}"
    idle = not fit.steps or not fit.learning_rate
    if idle and fit.variant not in ("kernel", "ridge") and not name.startswith(UNTRAINED):
        key = "STEPS" if not fit.steps else "LEARNING_RATE"
        return f"method {name} uses a student that is never fitted: MODEL.LQN.FIT.{key} is 0"
    return ""


def paid_recipe(recipe: LQNConfig, calibrated: bool, fitted: bool) -> LQNConfig:
    """The recipe whose cost was paid.

    Args:
        calibrated: whether the teacher has been; otherwise nothing is aligned.
        fitted: whether a student was fitted to any image.
    """
    restores = calibrated and recipe.aligns
    adapt = replace(recipe.adapt, align=restores)
    if not fitted or recipe.fit.variant in NO_STUDENT:
        several = adapt.views > 1 and recipe.fit.variant != "teacher"
        alone = "views" if several else "teacher"
        recipe = with_variant(recipe, ("field" if several else "restore") if restores else alone)
    return replace(recipe, adapt=adapt)


def warn(sentences: Iterable[str]) -> None:
    """Warn of each sentence, once in a process, unless the console has shown it (`shown`)."""
    for sentence in sentences:
        if sentence not in _said:
            _said.add(sentence)
            warnings.warn(sentence, IneffectiveMethodWarning, stacklevel=3)


def shown(sentences: Iterable[str]) -> list[str]:
    """The sentences, for the console of a run, which need no Python warning beside it."""
    listed = list(sentences)
    _said.update(listed)
    return listed

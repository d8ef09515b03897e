"""The methods by name, and how to make those that are no student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from lqn_seg.classification.baselines.gs_bias import GsBias
from lqn_seg.classification.baselines.mta import Mta
from lqn_seg.classification.baselines.tda import Tda
from lqn_seg.classification.baselines.tps import Tps
from lqn_seg.classification.baselines.tpt import Tpt
from lqn_seg.classification.baselines.zero import Zero
from lqn_seg.classification.features import Features
from lqn_seg.teachers.clip import ClipTeacher

# The teacher with one prompt and with 80; its two controls, with the run's prompts.
CONTROLS = ("teacher CLS", "teacher patch mean")
PLAIN = ("zero-shot", "ensemble")
VIEWS = 64  # of a test image, the image itself included


class Baseline(Protocol):
    """Features to class probabilities (B, C)."""

    def __call__(self, features: Features) -> Tensor: ...


_MAKERS: dict[str, Callable[[ClipTeacher, Sequence[str]], Baseline]] = {
    "zero": lambda teacher, names: Zero(),
    "mta": lambda teacher, names: Mta(),
    "tps": lambda teacher, names: Tps(),
    "gs-bias": lambda teacher, names: GsBias(),
    "tpt": Tpt,
    "tda": lambda teacher, names: Tda(),
}
BASELINES = tuple(_MAKERS)
NEED_VIEWS = ("zero", "mta")  # of one view they give the answer to that view


def make_baseline(name: str, teacher: ClipTeacher, class_names: Sequence[str]) -> Baseline:
    """A baseline with its published values."""
    return _MAKERS[name](teacher, class_names)

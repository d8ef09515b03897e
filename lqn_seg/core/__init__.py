"""The paper: addresses, the student, its losses, its fit. torch and the standard library only."""

from lqn_seg.core.fit import (
    PRESETS,
    VARIANTS,
    FitConfig,
    FittedStudents,
    LQNConfig,
    StudentFitter,
    fit_student,
    preset,
    with_variant,
)
from lqn_seg.core.positions import ANCHOR, grid_positions
from lqn_seg.core.random import CounterRandom, RandomKey, image_key
from lqn_seg.core.student import StudentConfig, parameter_count

__all__ = [
    "ANCHOR",
    "PRESETS",
    "VARIANTS",
    "CounterRandom",
    "FitConfig",
    "FittedStudents",
    "LQNConfig",
    "RandomKey",
    "StudentConfig",
    "StudentFitter",
    "fit_student",
    "grid_positions",
    "image_key",
    "parameter_count",
    "preset",
    "with_variant",
]

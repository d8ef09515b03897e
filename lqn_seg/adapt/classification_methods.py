"""Classification's methods by name, with their settings. Needs no torch until one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lqn_seg.adapt.methods import TokenMethod
from lqn_seg.core.config import LQNConfig
from lqn_seg.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from lqn_seg.adapt.baselines.features import Baseline
    from lqn_seg.teachers.clip import ClipTeacher

# The teacher with one prompt and with 80; its two controls, with the run's prompts.
CONTROLS = ("teacher CLS", "teacher patch mean")
PLAIN = ("zero-shot", "ensemble")
BASELINES = ("zero", "vte", "mta", "tps", "gs-bias", "tpt", "tda")
NEED_VIEWS = ("zero", "vte", "mta")  # of one view they give the answer to that view
PROMPTS = ("single", "ensemble")
VIEWS = 64  # of a test image, the image itself included, that the baselines look at
CORNER_VIEWS = 10  # the most that students adapt to: `lqn_seg.adapt.views.corner_view`
POOLINGS = ("cls", "mean", "mean_cls", "text", "reentry")
WITHOUT_STUDENT = ("teacher", "restore")
# Of an image that recipes which restore adapt to, the preset `default` among them: it, its mirror
# image and its corners (REPORT.md).
DEFAULT_VIEWS = 6


def usual_views(recipe: LQNConfig) -> int:
    """How many views of an image a recipe adapts to, unless it is told."""
    return DEFAULT_VIEWS if recipe.adapt.align else 1


@dataclass(frozen=True)
class Adaptation:
    """A student's recipe, and how its answer becomes class scores.

    Attributes:
        recipe: student, fit and what is done before and after; ``restore`` has no student, and of
            ``teacher`` not even the statistics are aligned. Or a function (`register_method`).
        pooling: one of `POOLINGS`.
        reentry_layer: where a student's tokens re-enter (``reentry`` alone); 0 is half the depth.
        views: how many views of an image (`corner_view`) are adapted to; the answers' mean
            direction counts.
    """

    recipe: LQNConfig | TokenMethod
    pooling: str = "cls"
    reentry_layer: int = 0
    views: int = 1

    def __post_init__(self) -> None:
        nearest(self.pooling, POOLINGS, "pooling")
        if isinstance(self.recipe, TokenMethod) and self.pooling not in ("mean", "text"):
            raise InputError(
                f"method {self.recipe.name} answers with patches: its pooling is mean or text, not "
                f"{self.pooling}"
            )
        if not 1 <= self.views <= CORNER_VIEWS:
            raise InputError(
                f"CLASSIFICATION.STUDENT_VIEWS must be in 1..{CORNER_VIEWS}, not {self.views}"
            )

    @property
    def knows_cls(self) -> bool:
        """Whether the pooling needs the student's CLS token."""
        return self.pooling in ("cls", "mean_cls")

    @property
    def has_student(self) -> bool:
        recipe = self.recipe
        return isinstance(recipe, LQNConfig) and recipe.fit.variant not in WITHOUT_STUDENT

    @property
    def aligns(self) -> bool:
        """Whether the teacher's statistics are aligned, where it has been calibrated."""
        recipe = self.recipe
        return (
            isinstance(recipe, LQNConfig) and recipe.adapt.align and recipe.fit.variant != "teacher"
        )


def make_baseline(
    name: str, teacher: ClipTeacher, class_names: Sequence[str], text: Tensor | None = None
) -> Baseline:
    """A method without a student, with its published values.

    Args:
        text: (C, E) class features of prompts of its own, for the plain methods.
    """
    from lqn_seg.adapt.baselines import gs_bias, mta, tda, tps, tpt, vte, zero, zero_shot

    makers: dict[str, Callable[[], Baseline]] = {
        **dict.fromkeys((CONTROLS[0], *PLAIN), lambda: zero_shot.ZeroShot(text)),
        CONTROLS[1]: zero_shot.PatchMean,
        "zero": zero.Zero,
        "vte": vte.Vte,
        "mta": mta.Mta,
        "tps": tps.Tps,
        "gs-bias": gs_bias.GsBias,
        "tpt": lambda: tpt.Tpt(teacher, class_names),
        "tda": tda.Tda,
    }
    return makers[name]()

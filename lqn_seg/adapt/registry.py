"""From what a configuration names to the object that adapts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lqn_seg.adapt.controls import ClosedForm, OnOtherPixels
from lqn_seg.adapt.dense import settings
from lqn_seg.adapt.dense.adain import OnAdaIn
from lqn_seg.adapt.dense.cotta import OnCotta
from lqn_seg.adapt.dense.memo import OnMemo
from lqn_seg.adapt.dense.mlmp import OnMlmp
from lqn_seg.adapt.dense.neo import OnNeo
from lqn_seg.adapt.dense.sar import OnSar
from lqn_seg.adapt.dense.sitta import OnSitta
from lqn_seg.adapt.dense.tent import OnTent
from lqn_seg.adapt.journey import Answer, Images, Method, Pass, adapt
from lqn_seg.adapt.lqn import LQN
from lqn_seg.adapt.methods import Method as NamedMethod
from lqn_seg.adapt.methods import PixelControl, TokenMethod
from lqn_seg.core.config import NO_STUDENT, LQNConfig
from lqn_seg.teachers.base import Teacher


class OnTokens(Method):
    """A function of the user's: teacher, normalised images and field to last-layer tokens."""

    def __init__(self, function: TokenMethod, teacher: Teacher[Any]) -> None:
        super().__init__(teacher)
        self.function = function

    def mixing_weight(self, images: Images, seen: Pass) -> Tensor:
        return torch.ones(len(images.pixels), device=seen.field.device)

    def fit(self, images: Images, seen: Pass) -> Callable[[], Answer]:
        tokens = self.function(images.teacher, images.inputs(images.pixels), seen.field)
        return lambda: Answer(tokens)

    def check(self, images: Images) -> None:
        adapt(self, images)


def _of_recipe(recipe: LQNConfig, teacher: Teacher[Any], context: bool, layer: int) -> Method:
    variant = recipe.fit.variant
    if variant in NO_STUDENT:
        return Method(teacher, recipe.aligns, layer, recipe)
    if variant in ("kernel", "ridge"):
        return ClosedForm(recipe, teacher)
    return LQN(recipe, teacher, context, layer)


_DENSE: dict[type, Callable[[Any, Teacher[Any]], Method]] = {
    settings.Tent: OnTent,
    settings.Sar: OnSar,
    settings.Memo: OnMemo,
    settings.Cotta: OnCotta,
    settings.Sitta: OnSitta,
    settings.Mlmp: OnMlmp,
    settings.AdaIn: OnAdaIn,
    settings.Neo: OnNeo,
}
_MAKERS: dict[type, Callable[..., Method]] = {
    type(None): lambda _, teacher, *__: Method(teacher),
    LQNConfig: _of_recipe,
    PixelControl: lambda control, teacher, *_: OnOtherPixels(control, teacher),
    TokenMethod: lambda function, teacher, *_: OnTokens(function, teacher),
}


def make_method(
    named: NamedMethod,
    teacher: Teacher[Any],
    context: bool = False,
    layer: int = 0,
) -> Method:
    """The method of a recipe, a control or a function; None is the teacher itself.

    Args:
        context: whether its student shall give context tokens too.
        layer: whose tokens it answers with; 0 is the last.
    """
    if make := _DENSE.get(type(named)):
        return make(named, teacher)
    return _MAKERS[type(named)](named, teacher, context, layer)

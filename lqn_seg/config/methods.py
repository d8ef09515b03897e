"""Methods by name, for segmentation and classification: the one place that reads such names.

- ``VARIANT``: ``lqn``, ``lqn-src``, ``apm``, ``teacher``; the controls ``restore`` (alignment
  alone), ``views`` (views alone), ``field`` (both), ``kernel``, ``ridge`` and ``untrained`` (the
  recipe with 0 steps); `PIXEL_CONTROLS`; in classification also ``zero-shot``, ``ensemble`` and the
  baselines; the names of `register_method`;
- ``VARIANT@PRESET``: the variant with that preset's recipe, at this configuration's student sizes;
- ``tent``, ``multiscale`` and the others of `DENSE`, also with settings: ``tent(steps=3)``;
- ``VARIANT:POOLING`` and ``VARIANT@PRESET:POOLING``: classification, how tokens become one feature;
- ``LABEL=WEIGHTS``: segmentation, another model as a baseline: ``mask2former=DIRECTORY``.
"""

import re
from contextlib import suppress
from dataclasses import asdict, fields, replace
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from lqn_seg.adapt.classification_methods import (
    BASELINES,
    PLAIN,
    WITHOUT_STUDENT,
    Adaptation,
    usual_views,
)
from lqn_seg.adapt.dense.settings import DENSE, DenseMethod
from lqn_seg.adapt.methods import (
    PIXEL_CONTROLS,
    Answer,
    BaselineModel,
    Method,
    PixelControl,
    TokenMethod,
    parse_ablation,
)
from lqn_seg.config.schema import convert
from lqn_seg.core.config import ALIASES, CONTROLS, VARIANTS, LQNConfig, preset, with_variant
from lqn_seg.errors import InputError, nearest

UNTRAINED = "untrained"
SEGMENTATION = (*VARIANTS, *ALIASES, UNTRAINED, *PIXEL_CONTROLS, *DENSE)
_STUDENTS = tuple(name for name in VARIANTS if name not in ("teacher", *CONTROLS))
CLASSIFICATION = (*PLAIN, *_STUDENTS, *ALIASES, *WITHOUT_STUDENT, *BASELINES)
_registered: dict[str, TokenMethod] = {}

# Keys that change a preset; of a method's own preset (`lqn@paper`) only the student's sizes and
# the precision do.
_SIZES = ("input_size", "stride", "widths", "position_dim")
_STEPS = ("steps", "learning_rate", "alpha", "positions_per_step", "layers", "target_norm")
RECIPE_KEYS = {"student": _SIZES, "fit": (*_STEPS, "precision"), "adapt": ("mix_by_noise", "views")}
_ALWAYS = {"student": _SIZES, "fit": ("precision",)}

# Ablations that the other task does not have.
_OF_SEGMENTATION, _OF_CLASSIFICATION = ("fit-per-image", "student-queries"), ("cls-in-field",)


def register_method(name: str, answer: Answer, version: str = "") -> None:
    """Make a test-time method known by a name, for ``METHODS`` and every table.

    Args:
        name: letters, digits, ``_`` and ``-``, none of this project's; the same name again replaces
            what it was.
        answer: (teacher, normalised images (B, 3, h, w), token field (B, L, H, W, D)) to the last
            layer's tokens (B, H, W, D), which the frozen head reads. Its time is the column "fit";
            its GMACs are not counted.
        version: of an object or of a function whose source is not all there is to it (a closure, a
            partial); another one whenever it changes, so that a resume does not mix the two.
    """
    if name in (*SEGMENTATION, *CLASSIFICATION) or not re.fullmatch(r"[\w-]+", name):
        raise InputError(
            f"a custom method needs a new name of letters, digits, _ and -, not {name!r}"
        )
    _registered[name] = TokenMethod(name, answer, version)


def parse(name: Any, key: str) -> tuple[str, str, str]:
    """Variant, preset and pooling of a method's name; the last two may be empty.

    Raises:
        InputError: YAML made a number or a list of the name.
    """
    if not isinstance(name, str):
        raise InputError(f"{key}: the name of a method must be text, not {name!r}")
    rest, _, pooling = name.partition(":")
    variant, _, recipe = rest.partition("@")
    return variant, recipe, pooling


def lqn_config(cfg: CfgNode, recipe: str = "") -> LQNConfig:
    """The student recipe of a configuration, as the ``lqn`` variant.

    Args:
        cfg: a configuration with ``MODEL.LQN``; an `InputError` names a key whose value is wrong.
        recipe: a preset in place of ``MODEL.LQN.PRESET``; of the other keys the student's sizes and
            ``FIT.PRECISION`` still hold.
    """
    lqn = cfg.MODEL.LQN
    base = preset(recipe or lqn.PRESET)
    parts = {}
    for part, names in (_ALWAYS if recipe else RECIPE_KEYS).items():
        node, default = lqn[part.upper()], getattr(base, part)
        given = {name: node[name.upper()] for name in names if node[name.upper()] is not None}
        values = {**asdict(default), **given}
        parts[part] = convert(values, type(default), f"MODEL.LQN.{part.upper()}")
    config = replace(base, **parts)
    return config if recipe else replace(config, ablation=ablation(cfg))


def ablation(cfg: CfgNode) -> str:
    """``MODEL.LQN.ABLATION``; an `InputError` where this task has none such, or its numbers are
    wrong."""
    name = cfg.MODEL.LQN.ABLATION
    word, _ = parse_ablation(name)
    other = _OF_SEGMENTATION if "CLASSIFICATION" in cfg else _OF_CLASSIFICATION
    if word in other:
        raise InputError(f"MODEL.LQN.ABLATION: {word} belongs to the other task")
    return name


def method_config(cfg: CfgNode, name: str) -> Method:
    """Segmentation's method of that name; None for ``teacher``.

    Raises:
        InputError: no method or preset has that name.
    """
    variant, recipe, pooling = parse(name, "MODEL.LQN.METHODS")
    if is_model(name):
        return BaselineModel.parse(name)
    if pooling:
        raise InputError(f"method {name!r}: poolings such as {pooling!r} are for classification")
    variant, given = bracketed(variant)
    nearest(variant, (*SEGMENTATION, *_registered), "method")
    if given and variant not in DENSE:
        raise InputError(f"method {name!r}: {variant} takes no settings in brackets")
    if variant in DENSE and not recipe:
        return dense_method(variant, given)
    if variant in (*PIXEL_CONTROLS, *DENSE, *_registered):
        if recipe:
            raise InputError(f"method {name!r}: {variant} has no recipe, so it takes no preset")
        return _registered.get(variant) or PixelControl(variant)
    config = lqn_config(cfg, recipe)
    if variant == UNTRAINED:
        return replace(config, fit=replace(config.fit, steps=0))
    config = with_variant(config, variant)
    return None if config.fit.variant == "teacher" else config


def is_model(name: str) -> bool:
    """Whether a name is LABEL=WEIGHTS; the settings of other methods stand in brackets."""
    return "=" in name.partition("(")[0]


def bracketed(name: str) -> tuple[str, str]:
    """A name and what stands in brackets behind it: "tent(steps=3)" is "tent" and "steps=3".

    Raises:
        InputError: the brackets are not closed, or hold nothing.
    """
    match = re.fullmatch(r"([^()]*)(?:\(([^()]+)\))?", name)
    if not match:
        raise InputError(f"method {name!r}: settings stand like this: tent(steps=3)")
    return match[1], match[2] or ""


def dense_method(name: str, given: str) -> DenseMethod:
    """A test-time method with settings such as "steps=3,continual=true"; lists take brackets of
    their own.

    Raises:
        InputError: there is no such setting, or a value is of the wrong kind.
    """
    try:
        values = yaml.safe_load("{" + given.replace("=", ": ") + "}")
    except yaml.YAMLError:
        raise InputError(f"method {name}({given}): settings stand like this: steps=3") from None
    known = [field.name for field in fields(DENSE[name])]
    for key, value in values.items():
        nearest(str(key), known, f"setting of method {name}")
        if isinstance(value, str):  # YAML knows no 1e-3
            with suppress(ValueError):
                values[key] = float(value)
    return convert(values, DENSE[name], f"method {name}")


def methods(cfg: CfgNode) -> dict[str, Method]:
    """All of segmentation's methods by name: ``METHODS``, or the one ``METHOD``."""
    names = tuple(cfg.MODEL.LQN.METHODS) or (cfg.MODEL.LQN.METHOD,)
    return {name: method_config(cfg, name) for name in names}


def adaptation(cfg: CfgNode, name: str) -> Adaptation | None:
    """Classification's method of that name; None for those without a student's recipe.

    Raises:
        InputError: no method, preset or pooling has that name.
    """
    variant, recipe, pooling = parse(name, "CLASSIFICATION.METHODS")
    nearest(variant, (*CLASSIFICATION, *_registered), "method in CLASSIFICATION.METHODS")
    if variant in _registered:
        return Adaptation(_registered[variant], pooling or "mean")
    if variant in (*PLAIN, *BASELINES):
        if recipe or pooling:
            raise InputError(f"CLASSIFICATION.METHODS: {variant} has no recipe and no pooling")
        return None
    config = with_variant(lqn_config(cfg, recipe), variant)
    # A CLIP's views are crops and mirror images: STUDENT_VIEWS.
    config = replace(config, adapt=replace(config.adapt, views=1))
    return Adaptation(
        config,
        pooling=pooling or Adaptation.pooling,
        views=cfg.CLASSIFICATION.STUDENT_VIEWS or usual_views(config),
    )

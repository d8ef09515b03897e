"""One configuration for both engines: Detectron2's schema, filled from our dataclasses.

The native engine starts from :func:`get_cfg`, Detectron2's from its own ``get_cfg`` and
:func:`add_lqn_config`; the same YAML file then merges into either. Defaults live in the dataclasses
alone (``StudentConfig``, ``FitConfig``, ``SegmentationConfig``): under ``MODEL.LQN.STUDENT`` and
``MODEL.LQN.FIT`` a key that is left at ``None`` means "as ``MODEL.LQN.PRESET`` has it".
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from lqn_seg.adapt.methods import (
    PIXEL_CONTROLS,
    Answer,
    Comparator,
    Method,
    PixelControl,
    SegmentationConfig,
    TokenMethod,
)
from lqn_seg.core.config import (
    ALIASES,
    VARIANTS,
    AdaptConfig,
    FitConfig,
    LQNConfig,
    StudentConfig,
    nearest,
    preset,
    with_variant,
)
from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.data.catalog import register_entries
from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.errors import InputError

UNTRAINED = "untrained"  # the control of 0 steps: a fresh student, never fitted
METHODS = (*VARIANTS, *ALIASES, UNTRAINED, *PIXEL_CONTROLS)
_own_methods: dict[str, TokenMethod] = {}  # by name: `register_method`
# Set by the variant, not by the user: see `with_variant`.
_BY_VARIANT = {"student": ("source", "axes"), "fit": ("variant",)}


def get_cfg() -> CfgNode:
    """The native engine's configuration: what it reads of Detectron2's schema, and ours."""
    cfg = CfgNode(
        {
            "VERSION": 2,
            "MODEL": {
                "META_ARCHITECTURE": "LQNTTTMetaArch",
                "DEVICE": "cuda",
                "WEIGHTS": "",
                "PIXEL_MEAN": [103.53, 116.28, 123.675],
                "PIXEL_STD": [1.0, 1.0, 1.0],
                "BACKBONE": {"NAME": "build_resnet_backbone"},
            },
            "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333},
            "DATASETS": {"TRAIN": (), "TEST": ()},
            "DATALOADER": {"NUM_WORKERS": 4},
            "SOLVER": {
                "IMS_PER_BATCH": 16,
                "BASE_LR": 0.001,
                "MAX_ITER": 40000,
                "WARMUP_ITERS": 1000,
                "WEIGHT_DECAY": 0.0001,
                "CHECKPOINT_PERIOD": 5000,
                "AMP": {"ENABLED": False},
                "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_VALUE": 1.0},
            },
            "SEED": -1,
            "OUTPUT_DIR": "./output",
        }
    )
    add_lqn_config(cfg)
    return cfg


def add_lqn_config(cfg: CfgNode) -> None:
    """Add ``MODEL.LQN``, and ``MODEL.MASK_FORMER.TEST`` where Mask2Former has not added it.

    Works before and after Mask2Former's ``add_maskformer2_config``. That function replaces the
    whole of ``MODEL.MASK_FORMER`` by its own defaults, so thresholds are set in our YAML files.
    """
    node = type(cfg)
    defaults = SegmentationConfig()
    cfg.MODEL.LQN = node(
        {
            "PRESET": "default",
            "METHOD": "lqn",
            "METHODS": (),
            "BATCH": defaults.batch,
            "QUERIES": defaults.queries,
            "INFERENCE": defaults.inference,
            "FIT_PER": defaults.fit_per,
            # NAME: eomt, or dinov2 for features alone. BASE: what delta weights (EoMT on DINOv3)
            # are the difference to. IMAGE_SIZE: (height, width) in place of the checkpoint's.
            # PRECISION: of its matrix products, as FIT.PRECISION. COMPILE: its blocks by
            # torch.compile, for a GPU (a CPU gains nothing).
            "TEACHER": {
                **{"NAME": "eomt", "WEIGHTS": "", "CONFIG": "", "BASE": ""},
                **{"IMAGE_SIZE": (), "PRECISION": "float32", "COMPILE": False},
            },
            # From tools/calibrate.py; empty: calibration.safetensors beside local weights, if any.
            "CALIBRATION": "",
            # Data sets of one's own, under names for DATASETS.TRAIN and .TEST: `register_entries`.
            "DATASETS": (),
            # Input of comparators, Mask2Former's MIN_SIZE_TEST and MAX_SIZE_TEST; 0: as their
            # preprocessor_config.json has it.
            "COMPARATOR": {"MIN_SIZE": 0, "MAX_SIZE": 0},
            # Feature maps of the teacher as a Detectron2 backbone, `layer1` ...; () is all of them.
            "BACKBONE": {"OUT_FEATURES": ()},
            "STUDENT": _nones(StudentConfig, _BY_VARIANT["student"]),
            "FIT": _nones(FitConfig, _BY_VARIANT["fit"]),
            "ADAPT": _nones(AdaptConfig),
            # Training of a teacher: AugmentationConfig, the weight of a per-pixel cross-entropy
            # on its last patch tokens (0: off), and the DINOv2 that its ViT starts from (in
            # timm's layout: a hub id, directory or file; empty: random).
            "TRAIN": {
                "BACKBONE": "",
                **{f.name.upper(): f.default for f in dataclasses.fields(AugmentationConfig)},
                "PIXEL_LOSS_WEIGHT": 0.0,
            },
            "EVAL": {
                "CORRUPTIONS": (),
                "SEVERITY": 3,
                "MAX_IMAGES": 0,
                # Share of the images that may fail, each by name, before the command ends with an
                # error; the others are scored all the same.
                "MAX_FAILED": 0.5,
                # CPU threads of a process, the same on every machine and for any number of
                # processes: it decides the last bits of a result.
                "THREADS": defaults.threads,
                "PANEL_IMAGES": 3,
                "PANEL_METHODS": (),
                "BOOTSTRAP_SAMPLES": 2000,
            },
        }
    )
    if "MASK_FORMER" not in cfg.MODEL:
        cfg.MODEL.MASK_FORMER = node()
    if "TEST" not in cfg.MODEL.MASK_FORMER:
        cfg.MODEL.MASK_FORMER.TEST = node(
            {
                "SEMANTIC_ON": defaults.semantic,
                "INSTANCE_ON": defaults.instances,
                "PANOPTIC_ON": defaults.panoptic,
                "OBJECT_MASK_THRESHOLD": defaults.object_mask_threshold,
                "OVERLAP_THRESHOLD": defaults.overlap_threshold,
            }
        )


def _nones(config: type, left_out: Sequence[str] = ()) -> dict[str, None]:
    names = [f.name for f in dataclasses.fields(config)]
    return {name.upper(): None for name in names if name not in left_out}


def lqn_config(cfg: CfgNode, recipe: str | None = None) -> LQNConfig:
    """The student recipe of a configuration, as the ``lqn`` variant.

    Args:
        cfg: a configuration with ``MODEL.LQN``.
        recipe: a preset to use in place of ``MODEL.LQN.PRESET``; the sizes under ``STUDENT`` and
            ``FIT.PRECISION`` still hold, the other keys under ``FIT`` and ``ADAPT`` and
            ``STUDENT.INIT`` and ``.GUIDE`` do not, for they are the recipe.

    Raises:
        InputError: a value has the wrong type or is out of range; its key is named.
    """
    lqn = cfg.MODEL.LQN
    base = preset(recipe or lqn.PRESET)
    student = _given(lqn.STUDENT, base.student, "MODEL.LQN.STUDENT")
    fit = _given(lqn.FIT, base.fit, "MODEL.LQN.FIT")
    adapt = _given(lqn.ADAPT, base.adapt, "MODEL.LQN.ADAPT")
    if recipe:
        fit = {key: fit[key] for key in ("precision",) if key in fit}
        student = {key: student[key] for key in student if key not in ("init", "guide")}
        adapt = {}
    return LQNConfig(
        dataclasses.replace(base.student, **student),
        dataclasses.replace(base.fit, **fit),
        dataclasses.replace(base.adapt, **adapt),
    )


def _given(node: CfgNode, base: Any, where: str) -> dict[str, Any]:
    """The keys that are set, as keyword arguments; each of the type that ``base`` has there."""
    given = {}
    for key, value in node.items():
        if value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        expected = getattr(base, key.lower())
        if not _same_kind(value, expected):
            raise InputError(f"{where}.{key} must be of the kind of {expected!r}, not {value!r}")
        given[key.lower()] = value
    return given


def _same_kind(value: Any, expected: Any) -> bool:
    """Whether a value from YAML or the command line can stand where ``expected`` stands.

    Numbers stay numbers (and finite), whole ones whole unless small enough to be a fraction, and
    tuples of numbers such. ``FIT.LAYERS`` (None: all) and ``READOUT_SOURCE`` take words or tuples.
    """
    if isinstance(value, tuple):
        return not isinstance(expected, int | float | bool) and all(_is_number(v) for v in value)
    if isinstance(expected, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(expected, bool)
    if isinstance(expected, int | float):
        return _is_number(value) and (
            isinstance(value, int) or isinstance(expected, float) or 0 < value <= 1
        )
    return isinstance(value, str) and not isinstance(expected, tuple)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def register_method(name: str, answer: Answer, version: str = "") -> None:
    """Make a test-time method of one's own known by a name, for ``METHODS`` and every table.

    Args:
        name: letters, digits, ``_`` and ``-``; the same name again replaces what it was.
        answer: (teacher, normalised images (B, 3, h, w), token field (B, L, H, W, D)) to the last
            layer's tokens (B, H, W, D), which the frozen head reads. Its time is the column "fit";
            its GMACs are not counted.
        version: of an object or of a function whose source is not all there is to it (a closure, a
            partial); another one whenever it changes, so that a resume does not mix the two.

    Raises:
        InputError: the name is one of this project's, or has other characters; or the version is
            missing.
    """
    if name in METHODS or not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"a method of one's own needs a name of its own, not {name!r}")
    _own_methods[name] = TokenMethod(name, answer, version)


def method_config(cfg: CfgNode, name: str) -> Method:
    """The recipe of a method by name; None for ``teacher``.

    ``lqn``, ``lqn-src``, ``apm`` and ``teacher`` are the variants, ``restore``, ``kernel`` and
    ``ridge`` the recipe without a student or with a closed form in its place, ``untrained`` the
    recipe with 0 steps, and the names in ``PIXEL_CONTROLS`` change pixels instead; ``lqn@paper`` is
    the variant ``lqn`` with the recipe of the preset ``paper`` at this configuration's student
    sizes; ``mask2former=DIRECTORY`` (any label, a directory or hub id) is another model to compare
    with; and the names of `register_method`.

    Raises:
        InputError: no method or preset has that name.
    """
    check_name(name, "MODEL.LQN.METHODS")
    if "=" in name:
        return Comparator.parse(name)
    variant, _, recipe = name.partition("@")
    nearest(variant, (*METHODS, *_own_methods), "method")
    if variant in (*PIXEL_CONTROLS, *_own_methods):
        if recipe:
            raise InputError(f"method {name!r}: {variant} has no recipe to take from a preset")
        return _own_methods.get(variant) or PixelControl(variant)
    config = lqn_config(cfg, recipe or None)
    if variant == UNTRAINED:
        return dataclasses.replace(config, fit=dataclasses.replace(config.fit, steps=0))
    config = with_variant(config, variant)
    return None if config.fit.variant == "teacher" else config


def check_name(name: Any, key: str) -> None:
    """Refuse what YAML made of a method's name: a number, a list.

    Raises:
        InputError: it is no text.
    """
    if not isinstance(name, str):
        raise InputError(f"{key}: a method is named by text, not by {name!r}")


def methods(cfg: CfgNode) -> dict[str, Method]:
    """All methods of a configuration by name: ``METHODS``, or the one ``METHOD``."""
    names = tuple(cfg.MODEL.LQN.METHODS) or (cfg.MODEL.LQN.METHOD,)
    return {name: method_config(cfg, name) for name in names}


def segmentation_config(cfg: CfgNode) -> SegmentationConfig:
    """Outputs and protocol of a configuration."""
    test, lqn = cfg.MODEL.MASK_FORMER.TEST, cfg.MODEL.LQN
    return SegmentationConfig(
        semantic=test.SEMANTIC_ON,
        instances=test.INSTANCE_ON,
        panoptic=test.PANOPTIC_ON,
        inference=lqn.INFERENCE,
        object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        queries=lqn.QUERIES,
        fit_per=lqn.FIT_PER,
        seed=max(cfg.SEED, 0),  # Detectron2's -1 asks for a random seed: nothing here is random
        batch=lqn.BATCH,
        threads=lqn.EVAL.THREADS,
    )


def augmentation_config(cfg: CfgNode) -> AugmentationConfig:
    """How a configuration varies its training images.

    Raises:
        InputError: a value under ``MODEL.LQN.TRAIN`` is out of range; its key is named.
    """
    train = cfg.MODEL.LQN.TRAIN
    names = [field.name for field in dataclasses.fields(AugmentationConfig)]
    return AugmentationConfig(**{name: train[name.upper()] for name in names})


def load_cfg(path: str, overrides: Sequence[str] = (), device: str = "") -> CfgNode:
    """Read a YAML file (``_BASE_`` included) into :func:`get_cfg`, then ``KEY VALUE`` overrides.

    Raises:
        InputError: the file is missing or malformed, or a key is unknown; the nearest is suggested.
    """
    cfg = get_cfg()
    merge_cfg(cfg, path, overrides, device)
    return cfg


def load_any_cfg(path: str, overrides: Sequence[str] = (), device: str = "") -> CfgNode:
    """`load_cfg`, or where the file has a ``CLASSIFICATION`` node, `load_classification_cfg`."""
    loaded, cfg, check = _load_yaml(path), get_cfg(), check_cfg
    if "CLASSIFICATION" in loaded:
        from lqn_seg.config import classification as other  # takes open_clip

        cfg, check = other.get_classification_cfg(), other.check_classification_cfg
    _merge(cfg, loaded, path, overrides, device, check)
    return cfg


def _load_yaml(path: str) -> dict[str, Any]:
    """What a YAML file and those that it names as ``_BASE_`` hold.

    Raises:
        InputError: one of them is missing, is no YAML or holds no keys.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no config file {path}")
    try:
        loaded = CfgNode.load_yaml_with_base(path)
    except (yaml.YAMLError, ValueError, KeyError, AssertionError, OSError) as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())}") from error
    except (TypeError, AttributeError):  # of what is no mapping, here or in a base
        loaded = None
    if not isinstance(loaded, dict):
        raise InputError(f"config {path}: it, or what it names as _BASE_, holds no keys")
    return loaded


def merge_cfg(
    cfg: CfgNode,
    path: str,
    overrides: Sequence[str] = (),
    device: str = "",
    check: Callable[[CfgNode], None] | None = None,
) -> None:
    """Merge a file and overrides into either engine's configuration, with readable errors.

    Args:
        check: what finds wrong values early; `check_cfg` by default.
    """
    _merge(cfg, _load_yaml(path), path, overrides, device, check or check_cfg)


def _merge(
    cfg: CfgNode,
    loaded: dict[str, Any],
    path: str,
    overrides: Sequence[str],
    device: str,
    check: Callable[[CfgNode], None],
) -> None:
    """`merge_cfg` of a file that has been read."""
    if misplaced := [word for word in overrides if str(word).startswith("--")]:
        raise InputError(f"options come before KEY VALUE pairs: move {misplaced[0]} to the front")
    if len(overrides) % 2:
        raise InputError(f"overrides come as KEY VALUE pairs; {overrides[-1]!r} has no value")
    try:
        _check_keys(loaded, cfg, path)
        _make_fractions(loaded, cfg)
        cfg.merge_from_other_cfg(type(cfg)(loaded))
        for key in overrides[::2]:
            _check_key(key.split("."), cfg, "command line")
            if key.startswith(("MODEL.LQN.FIT.", "MODEL.LQN.STUDENT.")):
                # Some may be a count or a fraction, a word or a tuple: `_given` checks their kind.
                cfg.merge_from_list([key, None])
        for key, value in zip(overrides[::2], overrides[1::2]):
            whole = re.fullmatch(r"[+-]?\d+", str(value)) and type(_value_of(cfg, key)) is float
            cfg.merge_from_list([key, float(value) if whole else value])
    except (yaml.YAMLError, ValueError, KeyError, AssertionError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"config {path}: {' '.join(str(error).split())}") from error
    if "MODEL.LQN.METHOD" in overrides and "MODEL.LQN.METHODS" not in overrides:
        cfg.MODEL.LQN.METHODS = ()  # one method was asked for by hand
    check(cfg)
    cfg.MODEL.DEVICE = resolve_device(device or cfg.MODEL.DEVICE, asked=bool(device))


def check_cfg(cfg: CfgNode) -> None:
    """Find what is wrong now, and not after the data has loaded or the clean images are done.

    The configuration's own data sets are known by their names from here on.

    Raises:
        InputError: a name is unknown or a number out of range; the key is named.
    """
    for name in (*cfg.MODEL.LQN.METHODS, cfg.MODEL.LQN.METHOD):
        method_config(cfg, name)
    segmentation_config(cfg)
    augmentation_config(cfg)
    register_entries(cfg.MODEL.LQN.DATASETS)
    weight = cfg.MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT
    if not 0 <= weight < math.inf:
        raise InputError(f"MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT must be at least 0, not {weight}")
    check_evaluation(cfg)


def check_evaluation(cfg: CfgNode) -> None:
    """`check_cfg` for ``MODEL.LQN.EVAL`` alone, which every kind of evaluation reads."""
    evaluation = cfg.MODEL.LQN.EVAL
    for name in evaluation.CORRUPTIONS:
        nearest(name, CORRUPTIONS, "corruption in MODEL.LQN.EVAL.CORRUPTIONS")
    for key, least, most in (
        ("SEVERITY", 1, 5),
        ("MAX_IMAGES", 0, None),
        ("MAX_FAILED", 0, 1),
        ("THREADS", 1, None),
        ("PANEL_IMAGES", 0, None),
        ("BOOTSTRAP_SAMPLES", 1, None),
    ):
        value = evaluation[key]
        if value < least or (most is not None and value > most):
            upto = f" and at most {most}" if most else ""
            raise InputError(f"MODEL.LQN.EVAL.{key} must be at least {least}{upto}, not {value}")


def _check_keys(
    loaded: dict[str, Any], cfg: CfgNode, where: str, above: tuple[str, ...] = ()
) -> None:
    for key, value in loaded.items():
        _check_key([str(key)], cfg, where, above)
        if value is None and cfg[key] is not None:
            raise InputError(f"{where}: the key {'.'.join((*above, key))} has no value")
        if isinstance(value, dict):
            _check_keys(value, cfg[key], where, (*above, key))


def _value_of(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)


def _make_fractions(loaded: dict[str, Any], cfg: CfgNode) -> None:
    """Let a whole number stand where a fraction may: 1 for 1.0."""
    for key, value in loaded.items():
        if isinstance(value, dict):
            _make_fractions(value, cfg[key])
        elif type(value) is int and type(cfg[key]) is float:
            loaded[key] = float(value)


def _check_key(parts: Sequence[str], cfg: CfgNode, where: str, above: tuple[str, ...] = ()) -> None:
    node: Any = cfg
    for depth, part in enumerate(parts):
        if not isinstance(node, CfgNode) or part not in node:
            name = ".".join((*above, *parts[: depth + 1]))
            known = list(node) if isinstance(node, CfgNode) else []
            near = difflib.get_close_matches(part, known, 1)
            hint = f"; did you mean {'.'.join((*above, *parts[:depth], near[0]))}?" if near else ""
            raise InputError(f"{where}: there is no key {name}{hint}")
        node = node[part]


def resolve_device(name: str, asked: bool = True) -> str:
    """``auto``, or a device that was not asked for by hand, falls back to what is there.

    Raises:
        InputError: a device was asked for that this machine does not have, or that does not exist.
    """
    kind = name.split(":")[0]
    if kind == "cpu":
        return name
    import torch  # takes seconds, and a mistyped configuration is answered without it

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind != "auto" and kind not in there:
        raise InputError(f"the device must be auto, cpu, cuda or mps, not {name!r}")
    if kind != "auto" and there[kind]:
        return name
    if kind != "auto" and asked:
        raise InputError(f"device {name} was asked for, but this machine has none")
    return next(device for device in ("cuda", "mps", "cpu") if there[device])


__all__ = [
    "VARIANTS",
    "add_lqn_config",
    "augmentation_config",
    "get_cfg",
    "load_any_cfg",
    "load_cfg",
    "lqn_config",
    "merge_cfg",
    "method_config",
    "methods",
    "register_method",
    "resolve_device",
    "segmentation_config",
]

"""One configuration for both engines: Detectron2's schema, filled from our dataclasses. The native
engine starts from `get_cfg`, Detectron2's from its own and `add_lqn_config`; the same YAML file
merges into either. What is None under ``MODEL.LQN`` is as ``MODEL.LQN.PRESET`` has it."""

import ast
import difflib
from collections.abc import Sequence
from functools import reduce
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.config.methods import (
    RECIPE_KEYS,
    ablation,
    adaptation,
    lqn_config,
    method_config,
    methods,
    register_method,
)
from lqn_seg.config.schema import (
    AUGMENTATIONS,
    ClassificationConfig,
    EvalConfig,
    TeacherConfig,
    TrainConfig,
    convert,
    keys_of,
)
from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.data.catalog import register_entries
from lqn_seg.data.shipped import find_config
from lqn_seg.errors import InputError

# Others import all that reads a configuration from here.
__all__ = ["load_cfg", "lqn_config", "method_config", "methods", "register_method"]
_SECTIONS = {"TEACHER": TeacherConfig, "TRAIN": TrainConfig, "EVAL": EvalConfig}
# Fields of `SegmentationConfig` and what Mask2Former calls them under MODEL.MASK_FORMER.TEST.
_OUTPUTS = {
    "semantic": "SEMANTIC_ON",
    "instances": "INSTANCE_ON",
    "panoptic": "PANOPTIC_ON",
    "object_mask_threshold": "OBJECT_MASK_THRESHOLD",
    "overlap_threshold": "OVERLAP_THRESHOLD",
}


def get_cfg() -> CfgNode:
    """The native engine's configuration: what it reads of Detectron2's schema, and ours."""
    cfg = CfgNode(
        {
            "VERSION": 2,
            "MODEL": {"META_ARCHITECTURE": "LQNTTTMetaArch", "DEVICE": "cuda", "WEIGHTS": ""},
            "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 800},
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


def get_classification_cfg() -> CfgNode:
    """`get_cfg` with a CLIP teacher and a ``CLASSIFICATION`` node."""
    cfg = get_cfg()
    cfg.MODEL.LQN.TEACHER.NAME = "clip"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0  # Mask2Former's: of the image tower's learning rate
    cfg.CLASSIFICATION = CfgNode(keys_of(ClassificationConfig))
    return cfg


def add_lqn_config(cfg: CfgNode) -> None:
    """Add ``MODEL.LQN``, and ``MODEL.MASK_FORMER.TEST`` where Mask2Former has not added it. Works
    before and after its ``add_maskformer2_config``, which replaces the whole of
    ``MODEL.MASK_FORMER`` by its own defaults, so thresholds are set in our YAML files."""
    node, defaults = type(cfg), SegmentationConfig()
    recipe = {
        part.upper(): {name.upper(): None for name in names} for part, names in RECIPE_KEYS.items()
    }
    cfg.MODEL.LQN = node(
        {
            "PRESET": "default",
            "METHOD": "lqn",
            "METHODS": (),
            "ABLATION": "none",  # of the paper: `lqn_seg.config.methods`
            "BATCH": defaults.batch,
            "INFERENCE": defaults.inference,
            # Of the pixels' confidence; a study with METRIC "ECE of the pixels" finds it.
            "TEMPERATURE": defaults.temperature,
            # From lqn-seg calibrate; empty: calibration.safetensors beside local weights, if any.
            "CALIBRATION": "",
            # The user's own data sets, named for DATASETS.TRAIN and .TEST: `register_entries`.
            "DATASETS": (),
            # Of Mask2Former's input, (MIN_SIZE_TEST, MAX_SIZE_TEST); 0: as its own files say.
            "BASELINE_SIZES": (),
            # Feature maps of the teacher as a Detectron2 backbone, `layer1` ...; () is all of them.
            "BACKBONE": {"OUT_FEATURES": ()},
            **recipe,
            **{name: keys_of(section) for name, section in _SECTIONS.items()},
        }
    )
    if "MASK_FORMER" not in cfg.MODEL:
        cfg.MODEL.MASK_FORMER = node()
    if "TEST" not in cfg.MODEL.MASK_FORMER:
        outputs = {key: getattr(defaults, field) for field, key in _OUTPUTS.items()}
        cfg.MODEL.MASK_FORMER.TEST = node(outputs)


def segmentation_config(cfg: CfgNode) -> SegmentationConfig:
    test, lqn = cfg.MODEL.MASK_FORMER.TEST, cfg.MODEL.LQN
    return SegmentationConfig(
        **{field: test[key] for field, key in _OUTPUTS.items()},
        inference=lqn.INFERENCE,
        seed=max(cfg.SEED, 0),  # Detectron2's -1 asks for a random seed: nothing here is random
        batch=lqn.BATCH,
        temperature=lqn.TEMPERATURE,
        threads=lqn.EVAL.THREADS,
    )


def augmentation_config(cfg: CfgNode) -> AugmentationConfig:
    return AUGMENTATIONS[convert(cfg.MODEL.LQN.TRAIN, TrainConfig, "MODEL.LQN.TRAIN").augmentation]


def load_cfg(path: str, overrides: Sequence[Any] = (), device: str = "") -> CfgNode:
    """Read a YAML file (``_BASE_`` included), or a shipped one by its name (`find_config`), into
    `get_cfg`, then ``KEY VALUE`` overrides. An `InputError` where the file is missing or malformed,
    or a key is unknown: the nearest is suggested."""
    return merge_cfg(get_cfg(), path, overrides, device)


def load_classification_cfg(path: str, overrides: Sequence[Any] = (), device: str = "") -> CfgNode:
    """`load_cfg` into `get_classification_cfg`."""
    return merge_cfg(get_classification_cfg(), path, overrides, device)


def load_any_cfg(path: str, overrides: Sequence[Any] = (), device: str = "") -> CfgNode:
    """`load_cfg`, or where the file or an override has a ``CLASSIFICATION`` node or names a CLIP,
    `load_classification_cfg`."""
    loaded = _load_yaml(path)
    named = [str(key).split(".")[0] for key in (*loaded, *overrides[::2])]
    given = dict(zip(overrides[::2], overrides[1::2]))
    teacher = reduce(_below, ("MODEL", "LQN", "TEACHER", "NAME"), loaded)
    is_clip = given.get("MODEL.LQN.TEACHER.NAME", teacher) == "clip"
    is_classification = is_clip or "CLASSIFICATION" in named
    return (load_classification_cfg if is_classification else load_cfg)(path, overrides, device)


def _below(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, dict) else None


def _load_yaml(path: str) -> dict[str, Any]:
    file = find_config(str(path))
    try:
        loaded = CfgNode.load_yaml_with_base(str(file))
    except (yaml.YAMLError, ValueError, KeyError, AssertionError, OSError) as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())}") from error
    except (TypeError, AttributeError):  # of what is no mapping, here or in a base
        loaded = None
    if not isinstance(loaded, dict):
        raise InputError(f"config {path}: this file or its _BASE_ holds no keys")
    return loaded


def merge_cfg(cfg: CfgNode, path: str, overrides: Sequence[Any] = (), device: str = "") -> CfgNode:
    """Merge a file and ``KEY VALUE`` overrides into either engine's configuration, and check it:
    `InputError` as of `load_cfg` and `check_cfg`."""
    if len(overrides) % 2:
        raise InputError(f"overrides come as KEY VALUE pairs; {overrides[-1]!r} has no value")
    loaded = _load_yaml(path)
    _check_keys(loaded, cfg, path)
    for key, value in zip(overrides[::2], overrides[1::2]):
        branch = reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), _decode(value))
        _check_keys(branch, cfg, "command line")
        _update(loaded, branch)
    try:
        cfg.merge_from_other_cfg(type(cfg)(loaded))
    except InputError:  # of Detectron2's node, which registers data sets
        raise
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())}") from error
    if "MODEL.LQN.METHOD" in overrides and "MODEL.LQN.METHODS" not in overrides:
        cfg.MODEL.LQN.METHODS = ()  # one method was asked for by hand
    check_cfg(cfg)
    cfg.MODEL.DEVICE = resolve_device(device or cfg.MODEL.DEVICE, asked=bool(device))
    return cfg


def _check_keys(
    loaded: dict[str, Any], cfg: CfgNode, where: str, above: tuple[str, ...] = ()
) -> None:
    """Refuse unknown keys and missing values; let 1 stand for 1.0."""
    for key, value in loaded.items():
        name = ".".join((*above, str(key)))
        if key not in cfg:
            near = difflib.get_close_matches(str(key), list(cfg), 1)
            hint = f"; did you mean {'.'.join((*above, near[0]))}?" if near else ""
            raise InputError(f"{where}: there is no key {name}{hint}")
        if isinstance(value, dict) and isinstance(cfg[key], CfgNode):
            _check_keys(value, cfg[key], where, (*above, key))
        elif value is None and cfg[key] is not None:
            raise InputError(f"{where}: the key {name} has no value")
        elif type(value) is int and type(cfg[key]) is float:
            loaded[key] = float(value)


def _decode(value: Any) -> Any:
    """A value of the command line as Python reads it: numbers, tuples, True; else text."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def _update(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _update(into[key], value)
        else:
            into[key] = value


def check_cfg(cfg: CfgNode) -> None:
    """Find what is wrong now, and not after the data has loaded: an `InputError` names the key
    where a name is unknown or a number out of range. The configuration's own data sets are known
    from here on."""
    lqn = cfg.MODEL.LQN
    ablation(cfg)
    for name in (*lqn.METHODS, lqn.METHOD):
        method_config(cfg, name)
    if "CLASSIFICATION" in cfg:
        convert(cfg.CLASSIFICATION, ClassificationConfig, "CLASSIFICATION")
        for name in cfg.CLASSIFICATION.METHODS:
            adaptation(cfg, name)
    segmentation_config(cfg)
    for name, section in _SECTIONS.items():
        convert(lqn[name], section, f"MODEL.LQN.{name}")
    if len(lqn.BASELINE_SIZES) not in (0, 2):
        raise InputError(
            f"MODEL.LQN.BASELINE_SIZES must be (least, most), not {lqn.BASELINE_SIZES}"
        )
    register_entries(lqn.DATASETS)


def resolve_device(name: str, asked: bool = True) -> str:
    """``auto``, or a device that was not asked for by hand, falls back to what is there; an
    `InputError` where one was asked for that this machine does not have, or that does not exist."""
    kind = name.split(":")[0]
    if kind == "cpu":
        return name
    if kind not in ("auto", "cuda", "mps"):
        raise InputError(f"the device must be auto, cpu, cuda or mps, not {name!r}")
    import torch  # takes seconds, and a mistyped configuration is answered without it

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if present.get(kind):
        return name
    if kind != "auto" and asked:
        raise InputError(f"this machine has no device {name}")
    return next((device for device in present if present[device]), "cpu")

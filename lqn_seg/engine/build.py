"""From a configuration to a segmenter: the one place that joins config, teacher and head."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from lqn_seg.adapt.calibration import FILE_NAME, load_calibration
from lqn_seg.adapt.methods import BaselineModel, Method
from lqn_seg.config.nodes import methods, segmentation_config
from lqn_seg.core.alignment import Calibration
from lqn_seg.data.class_maps import class_map, plain_name
from lqn_seg.data.metadata import Metadata
from lqn_seg.data.shipped import find_local
from lqn_seg.errors import InputError, nearest
from lqn_seg.segmentation.baselines import load_universal
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.dinov2 import Dinov2Teacher, load_dinov2
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt
from lqn_seg.teachers.eomt_checkpoints import ABSOLUTE
from lqn_seg.teachers.eomt_head import EomtHead, class_names_of
from lqn_seg.teachers.linear_head import LinearHead
from lqn_seg.teachers.preprocessing import described

TEACHERS = ("eomt", "dinov2", "clip")


def build_teacher(cfg: CfgNode) -> Teacher[Any]:
    """The frozen teacher of a configuration, on its device, and compiled if that is asked for; an
    `InputError` where its name is unknown, or its files are missing or do not fit."""
    teacher = _load_teacher(cfg)
    # One block's code serves all; what lies between them stays open to hooks.
    for block in teacher.blocks if cfg.MODEL.LQN.TEACHER.COMPILE else ():
        block.compile()
    return teacher


def _load_teacher(cfg: CfgNode) -> Teacher[Any]:
    teacher = cfg.MODEL.LQN.TEACHER
    if cfg.MODEL.WEIGHTS and cfg.MODEL.META_ARCHITECTURE == "LQNTTTMetaArch":
        raise InputError("MODEL.WEIGHTS is not used here; set MODEL.LQN.TEACHER.WEIGHTS")
    nearest(teacher.NAME, TEACHERS, "MODEL.LQN.TEACHER.NAME")
    if not teacher.WEIGHTS and not teacher.CONFIG:
        raise InputError("MODEL.LQN.TEACHER.WEIGHTS and .CONFIG are both empty; set one of them")
    weights, device, precision = find_local(teacher.WEIGHTS), cfg.MODEL.DEVICE, teacher.PRECISION
    if teacher.NAME == "clip":
        from lqn_seg.teachers.clip import load_clip  # open_clip takes a second

        return load_clip(weights, teacher.CONFIG, device, precision)
    config, size = find_local(teacher.CONFIG), tuple(teacher.IMAGE_SIZE or ()) or None
    if size and (len(size) != 2 or not all(isinstance(side, int) for side in size)):
        raise InputError(f"MODEL.LQN.TEACHER.IMAGE_SIZE must be (height, width), not {size!r}")
    if teacher.NAME == "dinov2":
        return load_dinov2(weights, config, device, size, precision)
    base = teacher.BASE if teacher.BASE == ABSOLUTE else find_local(teacher.BASE)
    try:
        return load_eomt(weights, config, device, size, base, precision)
    except InputError as error:
        raise InputError(f"{error}{_random_weights(teacher.WEIGHTS)}") from error


def _random_weights(weights: str) -> str:
    """How to run a published EoMT with random weights; empty where its shape is not shipped."""
    shape = f"configs/teachers/{Path(weights).name.replace('_eomt_large', '')}.json"
    if Path(weights).exists() or not Path(find_local(shape)).is_file():
        return ""
    return (
        "; to try the command with random weights, add MODEL.LQN.TEACHER.WEIGHTS '' "
        f"MODEL.LQN.TEACHER.CONFIG {shape}"
    )


def build_segmenter(
    cfg: CfgNode,
    thing_ids: frozenset[int],
    num_classes: int | None = None,
    recipes: Mapping[str, Method] | None = None,
    class_names: Sequence[str] = (),
    teacher: Teacher[Any] | None = None,
) -> Segmenter:
    """Teacher, head and methods of a configuration.

    Args:
        thing_ids: contiguous ids of the data set's things.
        num_classes: of the data set; the teacher must have as many, or others that
            `data.class_maps` knows how to merge.
        recipes: methods by name; by default all that the configuration names.
        class_names: of the data set by contiguous id; a model that names its classes must have them
            in the same order (`check_class_order`).
        teacher: the configuration's, where it is loaded already.
    """
    data_set = f"the data set {', '.join(cfg.DATASETS.TEST) or '(none)'}"
    loaded: Any = build_teacher(cfg) if teacher is None else teacher
    head = build_head(cfg, loaded)
    who = "MODEL.LQN.TEACHER.WEIGHTS: the teacher"
    merged = class_map(head.class_names, class_names) or ()
    if not merged:
        if num_classes not in (None, len(head.class_names)):
            raise InputError(
                f"{who} predicts {len(head.class_names)} classes{_first(head.class_names)}, "
                f"{data_set} has {num_classes}{_first(class_names)}, and "
                "lqn_seg/data/class_maps.py does not map one to the other"
            )
        check_class_order(head.class_names, class_names, who, data_set)
    recipes = methods(cfg) if recipes is None else recipes
    sizes = cfg.MODEL.LQN.BASELINE_SIZES or (0, 0)
    baselines = {}
    for name, method in recipes.items():
        if isinstance(method, BaselineModel):
            local = replace(method, weights=find_local(method.weights))
            baselines[name] = load_universal(local, loaded.device, num_classes, *sizes)
            who = f"MODEL.LQN.METHODS: {name}"
            theirs = class_names_of(baselines[name].model.config)
            check_class_order(theirs, class_names, who, data_set)
    config, calibration = segmentation_config(cfg), build_calibration(cfg, loaded)
    parts = loaded, head, recipes, thing_ids, config, calibration, baselines
    return Segmenter(*parts, merged)


def build_head(cfg: CfgNode, teacher: Teacher[Any]) -> EomtHead | LinearHead:
    """The head that a teacher was loaded with; an `InputError` where it has none."""
    if isinstance(teacher, EomtTeacher):
        return EomtHead(teacher.model, teacher.precision)
    if isinstance(teacher, Dinov2Teacher) and teacher.has_head:
        return LinearHead(teacher.model, teacher.precision)
    raise InputError(
        f"MODEL.LQN.TEACHER.NAME: {cfg.MODEL.LQN.TEACHER.NAME} has no segmentation head; "
        "lqn-seg train with MODEL.LQN.TRAIN.BACKBONE trains one on a DINOv2: an EoMT's, or with "
        "NAME dinov2 a linear one (configs/cityscapes256_linear.yaml)"
    )


def describe_class_map(segmenter: Segmenter, metadata: Metadata) -> str:
    """What a teacher of other classes than the data set's is scored as; empty for the same."""
    if not segmenter.class_map:
        return ""
    return (
        f"the teacher's {len(segmenter.class_map)} classes are scored as the "
        f"{metadata.num_classes} of {metadata.name}: scores of classes that are merged are added"
    )


def _first(names: Sequence[str], count: int = 3) -> str:
    """The first few of a set's class names, in brackets, to tell it from others."""
    return f" ({', '.join(names[:count])} ...)" if names else ""


def check_class_order(
    predicted: Sequence[str], names: Sequence[str], who: str, data_set: str
) -> None:
    """Compare a model's class names with the data set's, both by contiguous id.

    Spelling differs from file to file ("tv", "television receiver"), so only the names that both
    have are compared. Where a few have other numbers, one name may mean two classes: a warning.
    Where most have, every score would be wrong: an `InputError`.
    """
    theirs = {plain_name(name): index for index, name in enumerate(predicted)}
    ours = {plain_name(name): index for index, name in enumerate(names)}
    common = ours.keys() & theirs.keys()
    moved = sorted((ours[name], name) for name in common if ours[name] != theirs[name])
    if not moved:
        return
    index, name = moved[0]
    sentence = (
        f"{who} and {data_set} number their classes differently: {name!r} is class {theirs[name]} "
        f"in the model and {index} in the data set; {len(moved)} of {len(common)} common names "
        "differ (if the model's are wrong, correct id2label in its config.json)"
    )
    if ours.keys() == theirs.keys() or 2 * len(moved) > len(common):
        raise InputError(sentence)
    warnings.warn(sentence, stacklevel=2)


def build_calibration(cfg: CfgNode, teacher: Teacher[Any]) -> Calibration | None:
    """The calibration that is named, or else the one beside the teacher's local weights."""
    weights = find_local(cfg.MODEL.LQN.TEACHER.WEIGHTS)
    if cfg.MODEL.LQN.CALIBRATION:
        return load_calibration(find_local(cfg.MODEL.LQN.CALIBRATION), teacher, weights)
    beside = Path(weights) / FILE_NAME
    return load_calibration(beside, teacher, weights) if weights and beside.is_file() else None


def describe_teacher(cfg: CfgNode, teacher: Teacher[Any]) -> str:
    named = cfg.MODEL.LQN.TEACHER
    rows, columns = teacher.grid
    source = " ".join(filter(None, (named.CONFIG, named.WEIGHTS)))
    numbers: Counter[torch.dtype] = Counter()
    for parameter in teacher.model.parameters():
        numbers[parameter.dtype] += parameter.numel()
    dtype = str(numbers.most_common(1)[0][0]).removeprefix("torch.")  # of most weights
    return (
        f"teacher: {named.NAME} from {source if named.WEIGHTS else 'random weights'} on "
        f"{cfg.MODEL.DEVICE} in {dtype}, {teacher.num_layers} layers of "
        f"{rows} x {columns} tokens\n{describe_input(cfg, teacher)}"
    )


def describe_input(cfg: CfgNode, teacher: Teacher[Any]) -> str:
    """What is done to pixels before the teacher sees them, in words for the log."""
    steps = teacher.preprocessing
    text = described(steps, teacher.image_size)
    if mode := getattr(teacher, "resize_mode", ""):
        how = ", stretched" if mode == "squash" else f" by the {mode} side"
        return text.replace(steps.interpolation, f"{steps.interpolation}{how}", 1)
    if steps.inference and steps.inference != cfg.MODEL.LQN.INFERENCE:
        text += (
            f"; {steps.source} was written for {steps.inference}, but MODEL.LQN.INFERENCE is "
            f"{cfg.MODEL.LQN.INFERENCE}"
        )
    return text


def describe_calibration(cfg: CfgNode, calibration: Calibration | None) -> str:
    """Where `build_calibration` read it, in words for the log."""
    beside = f"{cfg.MODEL.LQN.TEACHER.WEIGHTS}/{FILE_NAME}"
    path = cfg.MODEL.LQN.CALIBRATION or beside
    return f"calibration: {path if calibration is not None else 'none'}"

"""From a configuration to a segmenter: the one place that joins config, teacher and head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from lqn_seg.core.config import nearest
from lqn_seg.core.gauge import Calibration
from lqn_seg.engine.config import methods, segmentation_config
from lqn_seg.errors import InputError
from lqn_seg.heads.eomt import EomtHead
from lqn_seg.segmentation.calibration import FILE_NAME, load_calibration
from lqn_seg.segmentation.comparators import load_universal
from lqn_seg.segmentation.methods import Comparator, Method
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.dinov2 import load_dinov2
from lqn_seg.teachers.eomt import ABSOLUTE, EomtTeacher, load_eomt

TEACHERS = ("eomt", "dinov2", "clip")


def build_teacher(cfg: CfgNode) -> Teacher[Any]:
    """The frozen teacher of a configuration, on its device, and compiled if that is asked for.

    Raises:
        InputError: the teacher's name is unknown, or its files are missing or do not fit.
    """
    teacher = _load_teacher(cfg)
    if cfg.MODEL.LQN.TEACHER.COMPILE:
        # One block's code serves all; what lies between them stays open to be read and edited.
        for block in teacher.blocks:
            block.compile()
    return teacher


def _load_teacher(cfg: CfgNode) -> Teacher[Any]:
    teacher = cfg.MODEL.LQN.TEACHER
    if cfg.MODEL.WEIGHTS and cfg.MODEL.META_ARCHITECTURE == "LQNTTTMetaArch":
        raise InputError("MODEL.WEIGHTS is not read: the weights are MODEL.LQN.TEACHER.WEIGHTS")
    nearest(teacher.NAME, TEACHERS, "MODEL.LQN.TEACHER.NAME")
    if not teacher.WEIGHTS and not teacher.CONFIG:
        raise InputError("MODEL.LQN.TEACHER.WEIGHTS and .CONFIG are both empty: name one of them")
    if teacher.NAME == "clip":
        from lqn_seg.teachers.clip import load_clip  # open_clip takes a second

        weights = find_local(teacher.WEIGHTS)
        return load_clip(weights, teacher.CONFIG, cfg.MODEL.DEVICE, teacher.PRECISION)
    files = find_local(teacher.WEIGHTS), find_local(teacher.CONFIG)
    size = _image_size(teacher.IMAGE_SIZE)
    if teacher.NAME == "dinov2":
        return load_dinov2(*files, cfg.MODEL.DEVICE, size, teacher.PRECISION)
    base = teacher.BASE if teacher.BASE == ABSOLUTE else find_local(teacher.BASE)
    return load_eomt(*files, cfg.MODEL.DEVICE, size, base, teacher.PRECISION)


def _image_size(value: Any) -> tuple[int, int] | None:
    if not value:
        return None
    if len(value) != 2 or not all(isinstance(side, int) for side in value):
        raise InputError(f"MODEL.LQN.TEACHER.IMAGE_SIZE must be (height, width), not {value!r}")
    return value[0], value[1]


def find_local(path: str) -> str:
    """A relative path as it is, or below the repository where it exists only there."""
    below = Path(__file__).resolve().parents[2] / path
    return str(below) if path and not Path(path).exists() and below.exists() else path


def build_segmenter(
    cfg: CfgNode,
    thing_ids: frozenset[int],
    num_classes: int | None = None,
    chosen: Mapping[str, Method] | None = None,
) -> Segmenter:
    """Teacher, head and methods of a configuration.

    Args:
        thing_ids: contiguous ids of the data set's things.
        num_classes: of the data set; the teacher must have as many.
        chosen: methods by name; by default all that the configuration names.

    Raises:
        InputError: the teacher cannot be loaded or has another number of classes.
    """
    teacher = build_teacher(cfg)
    if not isinstance(teacher, EomtTeacher):
        raise InputError(
            f"MODEL.LQN.TEACHER.NAME: {cfg.MODEL.LQN.TEACHER.NAME} has no mask head to segment "
            "with; an EoMT has one (MODEL.LQN.TRAIN.BACKBONE trains it on a DINOv2)"
        )
    head = EomtHead(teacher.model, teacher.precision)
    if num_classes is not None and head.num_classes != num_classes:
        raise InputError(
            f"MODEL.LQN.TEACHER.WEIGHTS: the teacher predicts {head.num_classes} classes, the data "
            f"set {', '.join(cfg.DATASETS.TEST) or '(none)'} has {num_classes}"
        )
    chosen = methods(cfg) if chosen is None else chosen
    sides = cfg.MODEL.LQN.COMPARATOR
    comparators = {
        name: load_universal(
            replace(method, weights=find_local(method.weights)),
            teacher.device,
            num_classes,
            sides.MIN_SIZE,
            sides.MAX_SIZE,
        )
        for name, method in chosen.items()
        if isinstance(method, Comparator)
    }
    return Segmenter(
        teacher,
        head,
        chosen,
        thing_ids,
        segmentation_config(cfg),
        build_calibration(cfg, teacher),
        comparators,
    )


def build_calibration(cfg: CfgNode, teacher: Teacher[Any]) -> Calibration | None:
    """The calibration that is named, or else the one beside the teacher's local weights.

    Raises:
        InputError: the file cannot be read or belongs to a teacher of another shape.
    """
    if cfg.MODEL.LQN.CALIBRATION:
        return load_calibration(find_local(cfg.MODEL.LQN.CALIBRATION), teacher)
    weights = cfg.MODEL.LQN.TEACHER.WEIGHTS
    beside = Path(find_local(weights)) / FILE_NAME
    return load_calibration(beside, teacher) if weights and beside.is_file() else None


def describe_teacher(cfg: CfgNode, teacher: Teacher[Any]) -> str:
    """What was loaded from where, in words for the log."""
    named = cfg.MODEL.LQN.TEACHER
    rows, columns = teacher.grid
    source = " ".join(filter(None, (named.CONFIG, named.WEIGHTS)))
    return (
        f"teacher: {named.NAME} from {source if named.WEIGHTS else 'random weights'} on "
        f"{cfg.MODEL.DEVICE} in {teacher.precision}, {teacher.num_layers} layers of {rows} x "
        f"{columns} tokens"
    )


def describe_calibration(cfg: CfgNode, calibration: Calibration | None) -> str:
    """Where `build_calibration` found it, in words for the log."""
    beside = f"{cfg.MODEL.LQN.TEACHER.WEIGHTS}/{FILE_NAME}"
    found = cfg.MODEL.LQN.CALIBRATION or beside
    return f"calibration: {found if calibration is not None else 'none'}"

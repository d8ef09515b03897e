"""From a configuration to a segmenter: the one place that joins config, teacher and head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from lqn_seg.core.gauge import Calibration
from lqn_seg.engine.config import methods, segmentation_config
from lqn_seg.errors import InputError
from lqn_seg.heads.eomt import EomtHead
from lqn_seg.segmentation.calibration import FILE_NAME, load_calibration
from lqn_seg.segmentation.segmenter import Method, Segmenter
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt


def build_teacher(cfg: CfgNode) -> EomtTeacher:
    """The frozen teacher of a configuration, on its device.

    Raises:
        InputError: the teacher's name is unknown, or its files are missing or do not fit.
    """
    teacher = cfg.MODEL.LQN.TEACHER
    if cfg.MODEL.WEIGHTS and cfg.MODEL.META_ARCHITECTURE == "LQNTTTMetaArch":
        raise InputError("MODEL.WEIGHTS is not read: the weights are MODEL.LQN.TEACHER.WEIGHTS")
    if teacher.NAME != "eomt":
        raise InputError(f"MODEL.LQN.TEACHER.NAME must be eomt, not {teacher.NAME!r}")
    if not teacher.WEIGHTS and not teacher.CONFIG:
        raise InputError("MODEL.LQN.TEACHER.WEIGHTS and .CONFIG are both empty: name one of them")
    return load_eomt(find_local(teacher.WEIGHTS), find_local(teacher.CONFIG), cfg.MODEL.DEVICE)


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
    head = EomtHead(teacher.model)
    if num_classes is not None and head.num_classes != num_classes:
        raise InputError(
            f"MODEL.LQN.TEACHER.WEIGHTS: the teacher predicts {head.num_classes} classes, the data "
            f"set {', '.join(cfg.DATASETS.TEST) or '(none)'} has {num_classes}"
        )
    chosen = methods(cfg) if chosen is None else chosen
    calibration = build_calibration(cfg, teacher)
    return Segmenter(teacher, head, chosen, thing_ids, segmentation_config(cfg), calibration)


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

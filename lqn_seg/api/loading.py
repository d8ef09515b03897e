"""From a name to a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from lqn_seg.api.model import ClassificationModel, Model, SegmentationModel
from lqn_seg.api.result import About
from lqn_seg.config.nodes import adaptation, check_cfg, load_any_cfg, method_config
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.class_tables import categories_of
from lqn_seg.data.metadata import Category, Metadata
from lqn_seg.data.shipped import find_config, find_local
from lqn_seg.engine.build import build_calibration, build_head, build_segmenter, build_teacher
from lqn_seg.errors import InputError
from lqn_seg.teachers.clip import FOLDER_CONFIG
from lqn_seg.teachers.eomt_head import EomtHead
from lqn_seg.teachers.linear_head import WEIGHTS as LINEAR_HEAD

_BASE = "Base-LQN.yaml"
_YAML = (".yaml", ".yml")
MAX_SIDE = 1280  # pixels


def load(
    model: str | os.PathLike[str],
    *,
    method: str = "lqn",
    compare: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    things: Sequence[str] | None = None,
    calibration: str | os.PathLike[str] = "",
    device: str = "auto",
    batch: int = 1,
    threads: int = 0,
    max_side: int = MAX_SIDE,
    overrides: Sequence[Any] = (),
) -> Model:
    """Load a frozen teacher with a test-time method, to call on images.

    >>> import lqn_seg
    >>> model = lqn_seg.load("demo")
    >>> model.method, model.classes[:3]
    ('lqn', ('disc', 'ball', 'ring'))

    Args:
        model: one of

            - a folder, file or model hub's id of an EoMT, in transformers' layout or the original
              release's (``tue-mps/coco_panoptic_eomt_large_640``);
            - a folder of a DINOv2 with a linear head, as ``lqn-seg train`` writes it;
            - a CLIP as ``ARCHITECTURE:TAG`` or ``ARCHITECTURE:FILE`` in open_clip's words
              (``ViT-B-16-quickgelu:openai``), or a folder with an ``open_clip_config.json``;
            - a configuration, by its file or shipped name: ``demo``, ``classification/demo``,
              ``ade20k``.
        method: ``lqn``; ``restore`` (its alignment without a student); ``teacher`` (nothing is
            adapted); ``apm``, ``lqn@paper``, ...; a CLIP also takes ``zero-shot``, ``tpt``, ...; or
            a name of `lqn_seg.config.methods.register_method`. A wrong one lists them.
        compare: further methods, for ``result.compared`` and one picture of all.
        classes: names that a CLIP looks for; of an EoMT, in place of the checkpoint's.
        things: names of the classes that have instances. By default COCO's, ADE20K's or
            Cityscapes' are known by their names; other EoMTs give semantic maps alone.
        calibration: file of ``model.calibrate(..., save=...)`` or ``lqn-seg calibrate``; by default
            ``calibration.safetensors`` beside local weights. Without one the first call warns.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        batch: images worked on side by side.
        threads: on a CPU; 0 is PyTorch's own number.
        max_side: pixels of the longer side of segmentations; those of larger images are enlarged.
        overrides: KEY, VALUE, ... of the configuration, as on the command line:
            ``("MODEL.LQN.FIT.STEPS", 50)``.

    Returns:
        a `Model`: for segmentation, or for classification with a CLIP.

    Raises:
        InputError: weights or configuration are missing or do not fit, or a name is unknown.
    """
    name = os.fspath(model)
    config_file, pairs = configuration_of(name)
    threads = threads or torch.get_num_threads()
    pairs += ["MODEL.LQN.BATCH", batch, "MODEL.LQN.EVAL.THREADS", threads]
    if calibration:
        pairs += ["MODEL.LQN.CALIBRATION", os.fspath(calibration)]
    cfg = load_any_cfg(config_file, [*pairs, *overrides], "" if device == "auto" else device)
    names = tuple(dict.fromkeys((*compare, method)))
    if "CLASSIFICATION" in cfg:
        return _classification(cfg, name, names, method, classes)
    is_open = config_file == _BASE and "MODEL.LQN.INFERENCE" not in overrides
    return _segmentation(cfg, name, names, method, classes, things, max_side, is_open)


def configuration_of(model: str) -> tuple[str, list[Any]]:
    """The configuration file of what `load` takes, and the keys that name its teacher."""
    path, key = Path(find_local(model)), "MODEL.LQN.TEACHER"
    device = ["MODEL.DEVICE", "auto"]
    architecture, colon, weights = model.partition(":")
    if path.is_dir():
        kind = "eomt"
        if (path / FOLDER_CONFIG).is_file():
            kind = "clip"
        elif (path / LINEAR_HEAD).is_file():
            kind = "dinov2"
        return _BASE, [*device, f"{key}.NAME", kind, f"{key}.WEIGHTS", model]
    if path.is_file() and path.suffix not in _YAML:
        return _BASE, [*device, f"{key}.WEIGHTS", model]
    if colon and weights:
        names = [f"{key}.CONFIG", architecture, f"{key}.WEIGHTS", weights]
        return _BASE, [*device, f"{key}.NAME", "clip", *names]
    try:
        return str(find_config(model)), device
    except InputError:
        is_hub_id = model.count("/") == 1 and not model.startswith(".")
        if is_hub_id and path.suffix not in _YAML:
            return _BASE, [*device, f"{key}.WEIGHTS", model]
        raise InputError(
            f"{model!r} is neither a folder or file nor an ORGANISATION/NAME of the model hub, an "
            "ARCHITECTURE:TAG of a CLIP, or the name of a shipped configuration such as demo"
        ) from None


def _segmentation(
    cfg: CfgNode,
    name: str,
    names: Sequence[str],
    method: str,
    classes: Sequence[str] | None,
    things: Sequence[str] | None,
    max_side: int,
    is_open: bool,
) -> SegmentationModel:
    """`is_open`: how images meet the teacher is as its checkpoint says: no configuration does."""
    recipes = {each: method_config(cfg, each) for each in names}
    teacher = build_teacher(cfg)
    head = build_head(cfg, teacher)
    if is_open and teacher.preprocessing.inference:
        cfg.MODEL.LQN.INFERENCE = teacher.preprocessing.inference
    if classes is not None and len(classes) != len(head.class_names):
        raise InputError(f"classes: {len(classes)} names, {name} has {len(head.class_names)}")
    categories = categories_of(classes or head.class_names, things)
    table = _metadata(cfg)
    if table is not None and classes is None and things is None:
        categories = table.categories
    thing_ids = frozenset(index for index, c in enumerate(categories) if c.isthing)
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = True
    has_segments = isinstance(head, EomtHead) and cfg.MODEL.LQN.INFERENCE == "pad"
    test.PANOPTIC_ON = test.INSTANCE_ON = has_segments and bool(thing_ids)
    class_names = table.class_names if table else ()
    known = len(categories) if table else None
    segmenter = build_segmenter(cfg, thing_ids, known, recipes, class_names, teacher)
    about = About("segmentation", name, method, tuple(names), tuple(categories))
    return SegmentationModel(cfg, segmenter, about, max_side)


def _classification(
    cfg: CfgNode, name: str, names: Sequence[str], method: str, classes: Sequence[str] | None
) -> ClassificationModel:
    from lqn_seg.engine.classify import build_classifier, build_clip

    cfg.CLASSIFICATION.METHODS = tuple(names)
    check_cfg(cfg)
    recipes = {each: adaptation(cfg, each) for each in names}
    table = _metadata(cfg)
    if classes is None and table is None:
        raise InputError(f"classes: {name} needs the names of the classes to look for")
    known = tuple(classes or (table.class_names if table else ()))
    if isinstance(classes, str) or len(set(known)) < 2:
        raise InputError("classes must be a list of at least two different names")
    teacher = build_clip(cfg)
    calibration = build_calibration(cfg, teacher)
    classifier = build_classifier(cfg, teacher, calibration, known, recipes)
    categories = tuple(Category(index, each, False) for index, each in enumerate(known))
    about = About("classification", name, method, tuple(names), categories)
    return ClassificationModel(cfg, classifier, about)


def _metadata(cfg: CfgNode) -> Metadata | None:
    """Of the configuration's data set, whose table may be unknown where its files are missing."""
    try:
        return get_dataset(cfg.DATASETS.TEST[0]).metadata if cfg.DATASETS.TEST else None
    except InputError:
        return None

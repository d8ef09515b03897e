"""The configuration of a classification run: segmentation's, and a ``CLASSIFICATION`` node.

``MODEL.LQN`` says the same things as ever: the student, its fit, what is done with its answer, the
teacher's files, corruptions. Methods by name: ``zero-shot``, ``ensemble``, ``apm``, ``lqn-src``,
``lqn``, ``restore``, ``teacher`` (the views that ``lqn`` adapts to, not adapted to), and the
baselines of `lqn_seg.adapt.baselines`. ``lqn@paper`` takes another preset, ``lqn:mean``
another read-out, ``lqn@paper:mean`` both.
"""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from lqn_seg.adapt.classification_methods import (
    BASELINES,
    PLAIN,
    PROMPTS,
    VIEWS,
    WITHOUT_STUDENT,
    Adaptation,
    usual_views,
)
from lqn_seg.config.nodes import check_evaluation, check_name, get_cfg, lqn_config, merge_cfg
from lqn_seg.core.config import CONTROLS, VARIANTS, nearest, with_variant
from lqn_seg.errors import InputError

_STUDENTS = tuple(name for name in VARIANTS if name not in ("teacher", *CONTROLS))
METHODS = (*PLAIN, *_STUDENTS, *WITHOUT_STUDENT, *BASELINES)


def get_classification_cfg() -> CfgNode:
    """All keys with their defaults."""
    cfg = get_cfg()
    cfg.MODEL.LQN.TEACHER.NAME = "clip"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0  # of the rate, for the image tower (training a CLIP)
    cfg.CLASSIFICATION = CfgNode(
        {
            "METHODS": ("zero-shot", "lqn"),
            "PROMPTS": "ensemble",
            # Views of a test image that the baselines look at, the image itself included.
            "VIEWS": VIEWS,
            # Where the class scores are read off the student: see `Adaptation`.
            "READOUT": Adaptation.readout,
            "REENTRY_LAYER": Adaptation.reentry_layer,
            "INCLUDE_CLS": Adaptation.include_cls,
            # Views that are adapted to (which of them by students: `Adaptation.students`); their
            # answers are averaged. 0 leaves it to the recipe (`usual_views`).
            "STUDENT_VIEWS": 0,
            # Methods that learn from image to image (tda) depend on the order, and must be allowed.
            "HISTORY": False,
            # (k, n): every n-th image from the k-th on.
            "SHARD": (0, 1),
            # A folder for text features; empty: $LQN_SEG_CACHE or ~/.cache/lqn_seg.
            "CACHE": "",
        }
    )
    return cfg


def load_classification_cfg(path: str, overrides: Sequence[str] = (), device: str = "") -> CfgNode:
    """Read a YAML file and ``KEY VALUE`` overrides.

    Raises:
        InputError: the file is missing or malformed, a key is unknown or a value out of range.
    """
    cfg = get_classification_cfg()
    merge_cfg(cfg, path, overrides, device, check_classification_cfg)
    return cfg


def check_classification_cfg(cfg: CfgNode) -> None:
    """Find what is wrong before the data has loaded.

    Raises:
        InputError: a name is unknown or a number out of range; the key is named.
    """
    own = cfg.CLASSIFICATION
    nearest(own.PROMPTS, PROMPTS, "CLASSIFICATION.PROMPTS")
    if not own.METHODS:
        raise InputError("CLASSIFICATION.METHODS names no method")
    for name in own.METHODS:
        adaptation(cfg, name)
    if not 1 <= own.VIEWS <= 1024:
        raise InputError(f"CLASSIFICATION.VIEWS must be in 1..1024, not {own.VIEWS}")
    shard = own.SHARD
    if len(shard) != 2 or not 0 <= shard[0] < shard[1]:
        raise InputError(f"CLASSIFICATION.SHARD must be (k, n) with 0 <= k < n, not {shard}")
    if "tda" in own.METHODS:
        if not own.HISTORY:
            raise InputError(
                "tda learns from the images before, so its figures depend on their order: set "
                "CLASSIFICATION.HISTORY True to run it all the same"
            )
        if shard[1] > 1:
            raise InputError("tda sees one stream of images: CLASSIFICATION.SHARD must be (0, 1)")
    check_evaluation(cfg)


def adaptation(cfg: CfgNode, name: str) -> Adaptation | None:
    """The recipe of a student (or of ``restore``) by name; None for the methods without one.

    Raises:
        InputError: no method, preset or read-out has that name.
    """
    check_name(name, "CLASSIFICATION.METHODS")
    rest, _, readout = name.partition(":")
    variant, _, recipe = rest.partition("@")
    nearest(variant, (*METHODS, "two-word"), "method in CLASSIFICATION.METHODS")
    if variant in (*PLAIN, *BASELINES):
        if rest != name or recipe:
            raise InputError(f"CLASSIFICATION.METHODS: {variant} has no recipe and no read-out")
        return None
    own, chosen = cfg.CLASSIFICATION, with_variant(lqn_config(cfg, recipe or None), variant)
    return Adaptation(
        chosen,
        readout=readout or own.READOUT,
        reentry_layer=own.REENTRY_LAYER,
        include_cls=own.INCLUDE_CLS,
        views=own.STUDENT_VIEWS or usual_views(chosen),
    )

"""Evaluators in Detectron2's protocol (`reset`, `process`, `evaluate`); none needs Detectron2."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lqn_seg.evaluation.bootstrap import (
        PairedDifference,
        paired_bootstrap,
        paired_bootstrap_totals,
    )
    from lqn_seg.evaluation.cityscapes import CityscapesEvaluator, semantic_evaluator
    from lqn_seg.evaluation.instance import InstanceEvaluator
    from lqn_seg.evaluation.panoptic import PanopticEvaluator
    from lqn_seg.evaluation.semantic import SemanticEvaluator

# Imported when asked for: who counts multiply-adds needs no pycocotools.
_HOMES = {
    "CityscapesEvaluator": "cityscapes",
    "InstanceEvaluator": "instance",
    "PairedDifference": "bootstrap",
    "PanopticEvaluator": "panoptic",
    "SemanticEvaluator": "semantic",
    "paired_bootstrap": "bootstrap",
    "paired_bootstrap_totals": "bootstrap",
    "semantic_evaluator": "cityscapes",
}

__all__ = [
    "CityscapesEvaluator",
    "InstanceEvaluator",
    "PairedDifference",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "paired_bootstrap",
    "paired_bootstrap_totals",
    "semantic_evaluator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Evaluators in Detectron2's protocol (`reset`, `process`, `evaluate`); none needs Detectron2."""

from lqn_seg.evaluation.bootstrap import PairedDifference, paired_bootstrap
from lqn_seg.evaluation.cityscapes import CityscapesEvaluator, semantic_evaluator
from lqn_seg.evaluation.instance import InstanceEvaluator
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.evaluation.semantic import ConfidenceEvaluator, SemanticEvaluator, TrimapEvaluator

__all__ = [
    "CityscapesEvaluator",
    "ConfidenceEvaluator",
    "InstanceEvaluator",
    "PairedDifference",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "TrimapEvaluator",
    "paired_bootstrap",
    "semantic_evaluator",
]

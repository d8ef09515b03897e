"""``LQNTTTMetaArch`` for Detectron2, and the one explicit call that registers everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Instances

from lqn_seg.detectron2.backbone import build_teacher_backbone
from lqn_seg.detectron2.data import class_table, register_datasets
from lqn_seg.engine.build import build_segmenter
from lqn_seg.engine.config import method_config, resolve_device
from lqn_seg.errors import InputError
from lqn_seg.segmentation import meta_arch
from lqn_seg.segmentation.segmenter import Segmenter


class LQNTTTMetaArch(meta_arch.LQNTTTMetaArch):
    """Teacher, test-time student and head of ``MODEL.LQN`` as a Detectron2 model.

    It does its own resizing, so INPUT.MIN_SIZE_TEST should be 0. It adapts under
    ``torch.no_grad()``, and says so where it cannot: under ``torch.inference_mode()``.
    """

    @configurable
    def __init__(self, segmenter: Segmenter, input_format: str = "RGB") -> None:
        super().__init__(segmenter, input_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor; the classes are those of DATASETS.TEST[0].

        Raises:
            InputError: MODEL.WEIGHTS is not empty, or DATASETS.TEST, MODEL.DEVICE or the teacher
                is missing or does not fit.
        """
        if cfg.MODEL.WEIGHTS:
            raise InputError(
                f"MODEL.WEIGHTS must be empty, not {cfg.MODEL.WEIGHTS!r}: LQNTTTMetaArch loads its "
                "teacher itself, from the directory or hub id in MODEL.LQN.TEACHER.WEIGHTS"
            )
        resolve_device(cfg.MODEL.DEVICE)
        method = method_name(cfg)
        segmenter = build_segmenter(cfg, *class_table(cfg), {method: method_config(cfg, method)})
        return {"segmenter": segmenter, "input_format": cfg.INPUT.FORMAT}

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the base class; ``instances`` are ``detectron2.structures.Instances``."""
        outputs = super().forward(batched_inputs)
        for output in outputs:
            if "instances" in output:
                fields = vars(output["instances"]).copy()
                # Detectron2's evaluator and visualiser ask for boxes.
                boxes = BitMasks(fields["pred_masks"].cpu()).get_bounding_boxes()
                fields["pred_boxes"] = boxes.to(fields["scores"].device)
                output["instances"] = Instances(**fields)
        return outputs


def method_name(cfg: CfgNode) -> str:
    """The one method this engine runs: MODEL.LQN.METHODS if it names one alone, else METHOD."""
    names = cfg.MODEL.LQN.METHODS
    return names[0] if len(names) == 1 else cfg.MODEL.LQN.METHOD


def register() -> None:
    """Fill Detectron2's registries and catalogs; safe to call again.

    Data sets whose files are not there yet are registered too, and say what is missing when they
    are used. A name that Detectron2 itself knows (``ade20k_sem_seg_val``) is left alone.
    """
    if LQNTTTMetaArch.__name__ not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(LQNTTTMetaArch)
        BACKBONE_REGISTRY.register(build_teacher_backbone)
    register_datasets()

"""The meta-architectures for Detectron2, and the one explicit call that registers everything."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import get_event_storage, has_event_storage

from lqn_seg.data.catalog import listeners
from lqn_seg.detectron2.backbone import build_teacher_backbone
from lqn_seg.detectron2.data import class_table, register_datasets, yield_name
from lqn_seg.engine.plugin import NOTHING_TO_TRAIN, check_cfg, one_method_segmenter
from lqn_seg.engine.training.eomt_training import mapped_targets
from lqn_seg.engine.training.trainable_eomt import TrainableEomt, trainable_segmenter
from lqn_seg.segmentation import meta_arch
from lqn_seg.segmentation.segmenter import Segmenter


class LQNTTTMetaArch(meta_arch.LQNTTTMetaArch):
    """Teacher, test-time student and head of ``MODEL.LQN`` as a Detectron2 model. It does its own
    resizing, so INPUT.MIN_SIZE_TEST should be 0. It adapts under ``torch.no_grad()``, and says so
    where it cannot: under ``torch.inference_mode()``."""

    @configurable
    def __init__(self, segmenter: Segmenter, input_format: str = "RGB") -> None:
        super().__init__(segmenter, input_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor; the classes are those of DATASETS.TEST[0]."""
        check_cfg(cfg)
        if cfg.DATASETS.TRAIN:  # a trainer says no more than that its list of parameters is empty
            logging.getLogger("detectron2.lqn_seg").warning(NOTHING_TO_TRAIN)
        segmenter = one_method_segmenter(cfg, *class_table(cfg.DATASETS.TEST))
        return {"segmenter": segmenter, "input_format": cfg.INPUT.FORMAT}

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the base class; ``instances`` are ``detectron2.structures.Instances``."""
        return [_with_instances(output) for output in super().forward(batched_inputs)]


class EomtMetaArch(TrainableEomt):
    """The teacher itself, for Detectron2 to train: losses in training mode, else its answers.

    What Detectron2 saves is loaded by MODEL.WEIGHTS here, and by TEACHER.WEIGHTS everywhere else.
    Any mapper that gives ``instances`` with masks, ``sem_seg`` or both will do; Detectron2's own
    needs MODEL.MASK_ON True and INPUT.MASK_FORMAT bitmask for instances. Masked attention is
    annealed over ``max_iter`` iterations; ``ignore_label`` is of ``sem_seg``, the others are
    `TrainableEomt`'s.
    """

    @configurable
    def __init__(self, max_iter: int = 1, ignore_label: int = 255, **others: Any) -> None:
        super().__init__(**others)
        self.max_iter, self.ignore_label = max_iter, ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor; the classes are those of the first data set named."""
        check_cfg(cfg)
        table = class_table((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        return {
            "segmenter": trainable_segmenter(cfg, *table),
            "input_format": cfg.INPUT.FORMAT,
            "pixel_weight": cfg.MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT,
            "max_iter": cfg.SOLVER.MAX_ITER,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Losses by name in training mode, else predictions as of `LQNTTTMetaArch`."""
        if not self.training:
            return [_with_instances(output) for output in self.predict(batched_inputs)]
        things = self.segmenter.thing_ids
        targets = [mapped_targets(inputs, things, self.ignore_label) for inputs in batched_inputs]
        progress = get_event_storage().iter / self.max_iter if has_event_storage() else None
        return self.losses(batched_inputs, targets, progress)


def _with_instances(output: dict[str, Any]) -> dict[str, Any]:
    """A prediction with Detectron2's own instances, and boxes, which its evaluator asks for."""
    if "instances" in output:
        fields = vars(output["instances"]).copy()
        boxes = BitMasks(fields["pred_masks"].cpu()).get_bounding_boxes()
        fields["pred_boxes"] = boxes.to(fields["scores"].device)
        output["instances"] = Instances(**fields)
    return output


def register() -> None:
    """Fill Detectron2's registries and catalogs; safe to call again. Data sets that are registered
    later follow by themselves. Names that Detectron2 knows or another package registers later are
    theirs."""
    if LQNTTTMetaArch.__name__ not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(LQNTTTMetaArch)
        META_ARCH_REGISTRY.register(EomtMetaArch)
        BACKBONE_REGISTRY.register(build_teacher_backbone)
        DatasetCatalog.register = yield_name
        listeners.append(register_datasets)
        register_datasets()

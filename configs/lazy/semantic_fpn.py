"""Detectron2's semantic FPN on a layer of the frozen teacher."""

from detectron2.config import LazyCall as L
from detectron2.evaluation import SemSegEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from .common import IMAGENET_RGB, backbone, dataloader, lr_multiplier, optimizer, train  # noqa: F401

model = L(SemanticSegmentor)(
    backbone=backbone,
    sem_seg_head=L(SemSegFPNHead)(
        input_shape={"layer8": L(ShapeSpec)(channels=128, stride=8)},
        num_classes=13,
        conv_dims=64,
        common_stride=4,  # the patch size divided by a power of two
        norm="GN",
        ignore_value=255,
    ),
    **IMAGENET_RGB,
)
dataloader["evaluator"] = L(SemSegEvaluator)(dataset_name="demo_panoptic_val")

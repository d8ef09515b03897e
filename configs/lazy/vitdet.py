"""Mask R-CNN as ViTDet has it, on the frozen teacher in place of its ViT.

Needs setuptools < 81: Detectron2's model zoo imports pkg_resources.
"""

from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator
from detectron2.model_zoo import get_config

from .common import IMAGENET_RGB, backbone, dataloader, lr_multiplier, optimizer, train  # noqa: F401

model = get_config("common/models/mask_rcnn_vitdet.py").model
model.backbone.net = backbone
model.backbone.in_feature = "layer8"
model.backbone.square_pad = 0  # the teacher pads to its own size
# From patches of 8 pixels, maps of stride 4, 8 and 16. Patches of 16 pixels (every published EoMT)
# go with ViTDet's own factors and top block, and then with nothing of what follows.
model.backbone.scale_factors, model.backbone.top_block = (2.0, 1.0, 0.5), None
levels = ["p2", "p3", "p4"]
model.proposal_generator.in_features = levels
model.proposal_generator.anchor_generator.sizes = [[8], [16], [32]]
model.proposal_generator.anchor_generator.strides = [4, 8, 16]
model.roi_heads.box_in_features = model.roi_heads.mask_in_features = levels
model.roi_heads.box_pooler.scales = model.roi_heads.mask_pooler.scales = (1 / 4, 1 / 8, 1 / 16)
model.roi_heads.num_classes = 8
model.pixel_mean, model.pixel_std = IMAGENET_RGB["pixel_mean"], IMAGENET_RGB["pixel_std"]
dataloader["evaluator"] = L(COCOEvaluator)(
    dataset_name="demo_panoptic_val", output_dir=train["output_dir"]
)

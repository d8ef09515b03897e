"""A frozen teacher as a Detectron2 backbone: one feature map per layer."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from lqn_seg.engine.build import build_teacher
from lqn_seg.engine.plugin import check_cfg
from lqn_seg.segmentation.feature_maps import FeatureMaps


class TeacherBackbone(FeatureMaps, Backbone):
    """`FeatureMaps` of an EoMT or DINOv2 under any of Detectron2's heads. Images of any size go
    through, whatever wraps the backbone (``FPN``, ``SimpleFeaturePyramid``, Mask2Former)."""

    @property
    def size_divisibility(self) -> int:
        """Of an image padded to it, maps and image lie exactly on each other."""
        return self.stride

    def output_shape(self) -> dict[str, ShapeSpec]:
        shape = ShapeSpec(channels=self.teacher.width, stride=self.stride)
        return dict.fromkeys(self.layers, shape)


def build_teacher_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TeacherBackbone:
    """``MODEL.BACKBONE.NAME: build_teacher_backbone``, with the teacher of MODEL.LQN.TEACHER.
    For a semantic FPN, MODEL.SEM_SEG_HEAD.COMMON_STRIDE must be the patch size divided by a
    power of two."""
    check_cfg(cfg)
    model, features = cfg.MODEL, cfg.MODEL.LQN.BACKBONE.OUT_FEATURES
    return TeacherBackbone(
        build_teacher(cfg), features, model.PIXEL_MEAN, model.PIXEL_STD, cfg.INPUT.FORMAT
    )

"""A frozen teacher as a Detectron2 backbone: one feature map per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from lqn_seg.detectron2.data import check_cfg
from lqn_seg.engine.build import build_teacher
from lqn_seg.errors import InputError
from lqn_seg.segmentation.feature_maps import feature_maps
from lqn_seg.teachers.base import Teacher


class TeacherBackbone(Backbone):
    """Block outputs of a frozen teacher as ``layer1`` ... ``layerL``, at the stride of its patches.

    Images of any size go through: `feature_maps` pads and tiles them, whatever wraps the backbone
    (``FPN``, ``SimpleFeaturePyramid``, Mask2Former).

    Args:
        teacher: EoMT or DINOv2; frozen.
        out_features: names of the maps to give out; all where empty.
        pixel_mean, pixel_std: what the meta-architecture normalises images with, which is taken
            back first: the teacher has its own normalisation.
        input_format: channel order of the images, ``RGB`` or ``BGR``.

    Raises:
        InputError: a name is no layer of the teacher, or the format is another.
    """

    def __init__(
        self,
        teacher: Teacher[Any],
        out_features: Sequence[str] = (),
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        input_format: str = "BGR",
    ) -> None:
        super().__init__()
        if len(pixel_mean) != 3 or input_format not in ("RGB", "BGR"):
            raise InputError(f"INPUT.FORMAT must be RGB or BGR, not {input_format!r}")
        layers = {f"layer{index + 1}": index for index in range(teacher.num_layers)}
        if unknown := [name for name in out_features if name not in layers]:
            raise InputError(
                f"MODEL.LQN.BACKBONE.OUT_FEATURES: there is no map {unknown[0]!r}, the teacher has "
                f"layer1 to layer{teacher.num_layers}"
            )
        self.teacher, self.flip = teacher, input_format == "BGR"
        self.teacher_model = teacher.model  # so that .to() and state_dict() see it
        self.layers = {name: layers[name] for name in out_features or layers}
        self.stride = teacher.image_size[0] // teacher.grid[0]  # side of a patch, in pixels
        values = torch.tensor([list(pixel_mean), list(pixel_std)], device=teacher.device)
        normalisation = (values.flip(1) if self.flip else values)[..., None, None]
        self.register_buffer("normalisation", normalisation, persistent=False)

    @property
    def size_divisibility(self) -> int:
        """Of an image padded to it, maps and image lie exactly on each other."""
        return self.stride

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every map."""
        shape = ShapeSpec(channels=self.teacher.width, stride=self.stride)
        return dict.fromkeys(self.layers, shape)

    def train(self, mode: bool = True) -> TeacherBackbone:
        """Changes nothing: the teacher is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (B, D, ceil(h / stride), ceil(w / stride)) of normalised images (B, 3, h, w)."""
        rgb = images.flip(1) if self.flip else images
        maps = feature_maps(self.teacher, rgb, *self.normalisation)
        return {name: maps[index] for name, index in self.layers.items()}


def build_teacher_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TeacherBackbone:
    """``MODEL.BACKBONE.NAME: build_teacher_backbone``, with the teacher of MODEL.LQN.TEACHER.

    For a semantic FPN, MODEL.SEM_SEG_HEAD.COMMON_STRIDE must be the patch size divided by a power
    of two.
    """
    check_cfg(cfg)
    model, features = cfg.MODEL, cfg.MODEL.LQN.BACKBONE.OUT_FEATURES
    return TeacherBackbone(
        build_teacher(cfg), features, model.PIXEL_MEAN, model.PIXEL_STD, cfg.INPUT.FORMAT
    )

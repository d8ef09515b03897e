"""The teacher as a backbone, under Detectron2's stock semantic FPN."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch
from safetensors.torch import save_file

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")

from detectron2.modeling import FPN, SemanticSegmentor, build_backbone, build_model
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from fvcore.nn import FlopCountAnalysis

from lqn_seg.detectron2 import LQNTrainer, TeacherBackbone
from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt import load_eomt


@pytest.fixture
def fpn_cfg(cfg):
    """A stock semantic FPN on two layers, with means, deviations and an order of its own."""
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"]
        + ["MODEL.BACKBONE.NAME", "build_teacher_backbone"]
        + ["MODEL.LQN.BACKBONE.OUT_FEATURES", ("layer1", "layer3")]
        + ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ("layer1", "layer3")]
        + ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 13, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]
        + ["MODEL.PIXEL_STD", (57.0, 58.0, 59.0), "INPUT.FORMAT", "BGR"]
        + ["INPUT.MIN_SIZE_TRAIN", (50,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1]
        + ["SOLVER.BASE_LR", 0.1, "SOLVER.WARMUP_ITERS", 0]
        + ["DATASETS.TRAIN", ("demo_panoptic_train",)]
        + ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", False]
    )
    return cfg


def test_maps_are_the_teachers_tokens_of_every_tile(fpn_cfg, teacher_dir):
    backbone, teacher = build_backbone(fpn_cfg), load_eomt(str(teacher_dir))
    raw = 255 * torch.rand(2, 3, 64, 96)  # BGR, two tiles down and three across
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (fpn_cfg.MODEL.PIXEL_MEAN, fpn_cfg.MODEL.PIXEL_STD)
    )
    maps = backbone((raw - mean) / std)
    assert list(maps) == ["layer1", "layer3"]
    ours_mean, ours_std = (
        torch.tensor(values)[:, None, None] for values in (teacher.pixel_mean, teacher.pixel_std)
    )
    for row, column in ((0, 0), (1, 2)):
        tile = raw.flip(1)[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] / 255
        field, _ = teacher.encode((tile - ours_mean) / ours_std)
        for name, index in (("layer1", 0), ("layer3", 2)):
            got = maps[name][:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.allclose(got, field[:, index].permute(0, 3, 1, 2), atol=1e-4)


def test_declared_shapes_are_the_real_ones(fpn_cfg):
    fpn_cfg.MODEL.LQN.BACKBONE.OUT_FEATURES = ()
    backbone = build_backbone(fpn_cfg)
    declared = backbone.output_shape()
    side = 2 * backbone.size_divisibility
    assert list(declared) == ["layer1", "layer2", "layer3"]
    for name, feature in backbone(torch.zeros(1, 3, side, side)).items():
        shape = declared[name]
        assert feature.shape == (1, shape.channels, side // shape.stride, side // shape.stride)


def test_what_does_not_fit_is_named(fpn_cfg):
    fpn_cfg.MODEL.LQN.BACKBONE.OUT_FEATURES = ("layer1", "layer4")
    with pytest.raises(InputError, match="'layer4', the teacher has layer1 to layer3"):
        build_backbone(fpn_cfg)
    fpn_cfg.INPUT.FORMAT = "L"
    with pytest.raises(InputError, match=r"INPUT\.FORMAT.*'L'"):
        build_backbone(fpn_cfg)


def test_semantic_fpn_predicts_at_the_image_size(fpn_cfg):
    model = build_model(fpn_cfg).eval()
    assert isinstance(model, SemanticSegmentor) and isinstance(model.backbone, TeacherBackbone)
    image = torch.randint(0, 256, (3, 50, 75), dtype=torch.uint8)
    with torch.no_grad():
        output = model([{"image": image, "height": 100, "width": 150}])[0]["sem_seg"]
        features = model.backbone(torch.zeros(1, 3, 64, 96))
        head = model.sem_seg_head
        assert head.layers(features).shape[-2:] == (
            64 // head.common_stride,
            96 // head.common_stride,
        )
    assert output.shape == (13, 100, 150)


def test_a_training_step_changes_the_head_and_not_the_teacher(fpn_cfg):
    # So that train() hands on what it evaluated at the end, and exits where that is not a number.
    fpn_cfg.TEST.EXPECTED_RESULTS = [["sem_seg", "mIoU", 50.0, 50.0]]
    trainer = LQNTrainer(fpn_cfg)
    assert not any(module.training for module in trainer.model.backbone.modules())
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    results = trainer.train()
    for key, value in trainer.model.state_dict().items():
        frozen = key.startswith("backbone.")
        assert torch.equal(before[key], value) == frozen, key
    assert 0 <= results["sem_seg"]["mIoU"] <= 100


def test_dinov2_alone_is_a_backbone(fpn_cfg, tmp_path):
    shape = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 56}
    about = {"architecture": "vit_small_patch14_reg4_dinov2", "model_args": shape}
    (tmp_path / "config.json").write_text(json.dumps(about))
    model = timm.create_model(about["architecture"], num_classes=0, **shape)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    fpn_cfg.MODEL.LQN.TEACHER.NAME = "dinov2"
    fpn_cfg.MODEL.LQN.TEACHER.WEIGHTS = str(tmp_path)
    backbone = build_backbone(fpn_cfg)
    assert backbone.size_divisibility == 14
    assert {s.stride for s in backbone.output_shape().values()} == {14}
    maps = backbone(torch.zeros(1, 3, 56, 112))
    assert maps["layer3"].shape == (1, 32, 4, 8)


@pytest.mark.parametrize("size", [(32, 64), (50, 75), (20, 33)])
def test_stock_wrappers_and_their_paddings_get_maps_of_their_image(fpn_cfg, size):
    """FPN asks for its own divisibility, SimpleFeaturePyramid for none, and neither for ours."""
    fpn_cfg.MODEL.LQN.BACKBONE.OUT_FEATURES = ("layer3",)
    images, (height, width) = torch.randn(1, 3, *size), size
    fpn = FPN(build_backbone(fpn_cfg), ["layer3"], 16)
    assert fpn.size_divisibility == 8
    (level,) = fpn(images).values()
    assert level.shape == (1, 16, math.ceil(height / 8), math.ceil(width / 8))
    pyramid = SimpleFeaturePyramid(build_backbone(fpn_cfg), "layer3", 16, (2.0, 1.0, 0.5))
    levels = pyramid(images)
    assert list(levels) == ["p2", "p3", "p4"] and pyramid.size_divisibility == 0
    assert levels["p3"].shape[2:] == level.shape[2:]


def test_a_teacher_that_is_not_square_stands_under_a_stock_head(fpn_cfg):
    fpn_cfg.MODEL.LQN.TEACHER.IMAGE_SIZE = (16, 40)
    model = build_model(fpn_cfg).eval()
    assert model.backbone.size_divisibility == 8
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((50, 75), (16, 41))]
    with torch.no_grad():
        outputs = model([{"image": image} for image in images])
    for image, output in zip(images, outputs):
        assert output["sem_seg"].shape == (13, *image.shape[1:])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_backbone_gives_the_same_maps(fpn_cfg):
    backbone, images = build_backbone(fpn_cfg), torch.randn(1, 3, 50, 64)
    traced = torch.jit.trace(backbone, images, strict=False, check_trace=False)
    for name, result in traced(images).items():
        torch.testing.assert_close(result, backbone(images)[name], atol=1e-4, rtol=1e-4)
    assert FlopCountAnalysis(backbone, images).by_operator()["linear"] > 0

"""DINOv2 without a head, against timm's own `forward_intermediates`; and what it is good for."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    EomtConfig,
)

from lqn_seg.adapt.calibration import calibrate
from lqn_seg.config.nodes import load_cfg
from lqn_seg.core.config import LQNConfig, StudentConfig
from lqn_seg.core.lqn import StudentFitter
from lqn_seg.core.random import image_key
from lqn_seg.engine.build import build_segmenter, build_teacher
from lqn_seg.engine.training.train import TeacherTrainer
from lqn_seg.errors import InputError
from lqn_seg.segmentation.feature_maps import feature_maps
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from lqn_seg.teachers.dinov2 import Dinov2Teacher, eomt_from_dinov2, load_dinov2
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt

ARCHITECTURE = "vit_small_patch14_reg4_dinov2"
IMAGENET = IMAGENET_MEAN, IMAGENET_STD
SHAPE = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 56}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small DINOv2 with four registers, saved as timm does."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=0, **SHAPE)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("dinov2")
    save_file(model.state_dict(), path / "model.safetensors")
    about = {"architecture": ARCHITECTURE, "model_args": SHAPE}
    (path / "config.json").write_text(json.dumps(about))
    return path


@pytest.fixture(scope="module")
def teacher(folder) -> Dinov2Teacher:
    return load_dinov2(str(folder))


def test_the_field_is_timms_own(teacher):
    images = torch.randn(2, 3, 56, 56)
    field, context = teacher.encode(images)
    assert field.shape == (2, 4, 4, 4, 32) and context.prefix.shape == (2, 5, 5, 32)
    with torch.no_grad():
        states = teacher.model.forward_intermediates(
            images, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
        )
    for layer, (patches, prefix) in enumerate(states):
        for got, want in (
            (field[:, layer].flatten(1, 2), patches),
            (context.prefix[:, layer + 1], prefix),
        ):  # but for rounding, in standard deviations of the tokens
            assert (got - want).abs().max() <= 1e-5 * want.std()


@pytest.fixture(scope="module", params=[0, 4], ids=["no registers", "four registers"])
def hugging_face(request, tmp_path_factory):
    """A small DINOv2 of transformers' with 0 or 4 registers: the model and its folder."""
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 56}
    torch.manual_seed(0)
    if request.param:
        config = Dinov2WithRegistersConfig(**shape, patch_size=14, num_register_tokens=4)
        model = Dinov2WithRegistersModel(config).eval()
    else:
        model = Dinov2Model(Dinov2Config(**shape, patch_size=14)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(path)
    return model, path


@torch.no_grad()
def test_transformers_own_folder_is_read_without_more(hugging_face):
    model, path = hugging_face
    images = torch.randn(2, 3, 56, 56)
    states = model(images, output_hidden_states=True).hidden_states[1:]
    field, context = load_dinov2(str(path)).encode(images)
    for layer, state in enumerate(states):
        count = state.shape[1] - 16
        for got, want in (
            (field[:, layer].flatten(1, 2), state[:, count:]),
            (context.prefix[:, layer + 1], state[:, :count]),
        ):  # but for rounding, in standard deviations of the tokens
            assert (got - want).abs().max() <= 1e-5 * want.std()


@torch.no_grad()
def test_an_eomt_starts_from_transformers_dinov2(hugging_face):
    model, path = hugging_face
    eomt, _ = eomt_from_dinov2(eomt_config(num_attention_heads=4), str(path))
    images = torch.randn(2, 3, 56, 56)
    states = model(images, output_hidden_states=True).hidden_states[1:4]
    field, _ = EomtTeacher(eomt).encode(images)
    for layer, state in enumerate(states):  # until the queries come in
        patches = state[:, -16:].unflatten(1, (4, 4))
        assert (field[:, layer] - patches).abs().max() <= 1e-5 * patches.std()


def test_metas_file_needs_no_config_where_heads_are_64_wide(tmp_path):
    """Meta's released files stand alone: width, depth, patches, grid and registers are theirs."""
    torch.manual_seed(0)
    shape = {"embed_dim": 128, "depth": 2, "img_size": 28}
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, num_heads=2, **shape)
    torch.save({**vit.state_dict(), "mask_token": torch.zeros(1, 128)}, tmp_path / "meta.pth")
    result = load_dinov2(str(tmp_path / "meta.pth"))
    assert result.grid == (2, 2) and result.model.num_reg_tokens == 0
    images = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        want = vit.eval().forward_features(images)[:, 1:]
        got = result.model.norm(result.encode(images)[0][:, -1].flatten(1, 2))
    assert (got - want).abs().max() <= 1e-5 * want.std()


def test_another_size_is_timms_resampling(folder):
    wide = load_dinov2(str(folder), image_size=(28, 70))
    same = load_dinov2(str(folder)).model
    same.set_input_size((28, 70))
    assert wide.grid == (2, 5)
    assert torch.equal(wide.model.pos_embed, same.pos_embed)


def test_meta_s_own_file_is_read_too(folder, tmp_path):
    state = load_dinov2(str(folder)).model.state_dict()
    meta = {n.replace("reg_token", "register_tokens"): v for n, v in state.items()}
    # Meta's positions begin with the CLS token's, which timm keeps in the token itself
    first = torch.randn(1, 1, 32)
    meta["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    meta["cls_token"] = state["cls_token"] - first
    meta["mask_token"] = torch.zeros(1, 32)
    torch.save(meta, tmp_path / "dinov2_reg4.pth")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    result = load_dinov2(str(tmp_path / "dinov2_reg4.pth")).model.state_dict()
    assert all(torch.allclose(result[name], state[name], atol=1e-6) for name in state)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"architecture": "vit_small_patch14_reg4_dinov2"}, "fit"),
        ({"architecture": "resnet18"}, "not a ViT"),
        ({"architecture": "vit_bogus"}, "does not name a ViT"),
        ({"model_args": SHAPE}, "does not name a ViT"),
    ],
)
def test_a_wrong_config_is_one_sentence(folder, tmp_path, content, words):
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=words) as error:
        load_dinov2(str(tmp_path))
    assert str(tmp_path) in str(error.value) or "resnet18" in str(error.value)


def test_layer_queries_on_dinov2(teacher):
    pixels = torch.randint(0, 256, (3, 56, 56), dtype=torch.uint8)
    field, _ = teacher.encode(torch.randn(1, 3, 56, 56))
    student = StudentConfig(input_size=28, stride=14, widths=(32, 32), position_dim=16)
    fitter = StudentFitter(LQNConfig(student=student), tuple(field.shape[1:4]), 32)
    fitted = fitter.fit(torch.randn(1, 3, 28, 28), field, [image_key(0, pixels)])
    assert fitted.query_layer(2).shape == (1, 4, 4, 32)
    assert fitted.query_layer(2.5).isfinite().all()


def test_it_calibrates_and_gives_feature_maps(teacher):
    result = calibrate(teacher, lambda: iter([torch.rand(3, 3, 56, 56)]))
    assert sorted(result.layers) == [0, 1, 2]
    maps = feature_maps(teacher, torch.rand(1, 3, 56, 112) * 255)
    assert maps.shape == (4, 1, 32, 4, 8)


# --- in a configuration


def test_the_config_names_it_and_says_that_it_has_no_head(small_config, folder):
    overrides = ["MODEL.LQN.TEACHER.NAME", "dinov2", "MODEL.LQN.TEACHER.WEIGHTS", str(folder)]
    cfg = load_cfg(str(small_config), overrides)
    assert isinstance(build_teacher(cfg), Dinov2Teacher)
    with pytest.raises(InputError, match="no segmentation head"):
        build_segmenter(cfg, frozenset())
    cfg.MODEL.LQN.TEACHER.IMAGE_SIZE = (28, 70)
    assert build_teacher(cfg).grid == (2, 5)
    cfg.MODEL.LQN.TEACHER.IMAGE_SIZE = (28,)
    with pytest.raises(InputError, match=r"TEACHER\.IMAGE_SIZE"):
        build_teacher(cfg)


def eomt_config(**changes):
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56}
    head = {"num_blocks": 1, "num_queries": 4, "patch_size": 14, "num_register_tokens": 4}
    return EomtConfig(**{**shape, **head, "num_upscale_blocks": 1, **changes})


def test_an_eomt_starts_as_its_dinov2(folder, teacher):
    model, _ = eomt_from_dinov2(eomt_config(), str(folder))
    images = torch.randn(2, 3, 56, 56)
    field, _ = EomtTeacher(model).encode(images)
    expected, _ = teacher.encode(images)
    # Until the queries come in it is DINOv2: transformers and timm round attention alike here.
    assert torch.allclose(field[:, :3], expected[:, :3], atol=1e-5)


def test_the_eomt_has_the_registers_of_its_dinov2(folder):
    model, _ = eomt_from_dinov2(eomt_config(num_register_tokens=0), str(folder))
    assert model.embeddings.register_tokens.shape == (1, 4, 32)


def test_patches_of_another_size_are_timms_resampling(folder):
    model, _ = eomt_from_dinov2(eomt_config(patch_size=16, image_size=64), str(folder))
    vit = load_dinov2(str(folder)).model
    vit.set_input_size((64, 64), (16, 16))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = vit._pos_embed(vit.patch_embed(images))
        assert torch.allclose(model.embeddings(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 4}, {"num_hidden_layers": 5}, {"hidden_size": 64}]
)
def test_another_shape_cannot_start_from_it(folder, changes):
    with pytest.raises(InputError, match=r"TRAIN\.BACKBONE"):
        eomt_from_dinov2(eomt_config(**changes), str(folder))


def test_training_starts_from_it(small_config, folder, tmp_path):
    path = tmp_path / "shape.json"
    config = eomt_config().to_diff_dict()
    path.write_text(json.dumps({n: v for n, v in config.items() if n in EomtConfig().to_dict()}))
    overrides = [
        *("MODEL.LQN.TEACHER.CONFIG", str(path), "MODEL.LQN.TRAIN.BACKBONE", str(tmp_path)),
        *("DATASETS.TRAIN", '("demo_panoptic_train",)', "SOLVER.IMS_PER_BATCH", "2"),
        *("SEED", "0", "SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "1"),
        *("MODEL.LQN.TRAIN.BACKBONE_WARMUP", "1"),
        *("MODEL.LQN.TRAIN.AUGMENTATION", "crop", "MODEL.LQN.TEACHER.WEIGHTS", ""),
    ]
    about = json.loads((folder / "config.json").read_text())
    said = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**about, "pretrained_cfg": said}))
    trainer = TeacherTrainer(load_cfg(str(small_config), overrides))
    state = load_dinov2(str(folder)).model.state_dict()
    weight = trainer.model.layers[3].mlp.fc1.weight
    assert torch.equal(weight, state["blocks.3.mlp.fc1.weight"])
    # Pixels are prepared as the DINOv2 had them, and the finished teacher says so.
    teacher = trainer.train()
    assert (teacher / "model.safetensors").is_file()
    result = load_eomt(str(teacher))
    assert result.pixel_mean == (0.5, 0.4, 0.3) and result.pixel_std == (0.2, 0.3, 0.4)
    batch = trainer.images.batch([0], (0,))["pixel_values"]
    trainer.images.preprocessing = Preprocessing()
    usual = trainer.images.batch([0], (0,))["pixel_values"]
    pixels = [
        x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        for x, mean, std in ((batch, result.pixel_mean, result.pixel_std), (usual, *IMAGENET))
    ]
    torch.testing.assert_close(*pixels)
    assert not torch.equal(weight, state["blocks.3.mlp.fc1.weight"])

"""Checkpoints in half precision, as many are published: loaded in the precision that is asked for.

transformers 5 gives the weights as they are stored unless it is told otherwise; a teacher in half
precision gives tokens that no student can be fitted to.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from lqn_seg.config.nodes import load_cfg
from lqn_seg.core.config import FitConfig, LQNConfig, StudentConfig
from lqn_seg.core.lqn import StudentFitter
from lqn_seg.core.random import image_key
from lqn_seg.engine.build import describe_teacher
from lqn_seg.segmentation.baselines import BaselineModel, load_universal
from lqn_seg.segmentation.segmenter import SegmentationConfig, Segmenter
from lqn_seg.teachers.clip import load_clip
from lqn_seg.teachers.dinov2 import load_dinov2
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead
from tests.classification.conftest import build_clip
from tests.conftest import save_teacher
from tests.segmentation.test_baselines import CLASSES
from tests.segmentation.test_baselines import build as build_baseline
from tests.teachers.test_original_eomt import Original
from tests.teachers.test_preprocessing import save_clip_folder, save_dinov2

HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)


def all_float32(model) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    return {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}


def rounded(model, half):
    """The model whose weights are what the half-precision file can hold, in float32."""
    return model.to(half).float()


def recipe() -> LQNConfig:
    student = StudentConfig(input_size=32, stride=8, widths=(16,), position_dim=12, init="he")
    return LQNConfig(student, FitConfig(steps=3, precision="float32", target_norm="layer"))


def fits(field) -> bool:
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    fitter = StudentFitter(recipe(), tuple(field.shape[1:4]), field.shape[-1])
    fitted = fitter.fit(torch.randn(1, 3, 32, 32), field[:1], [image_key(0, pixels)])
    return bool(fitted.finite.all()) and bool(fitted.query_layer(1).isfinite().all())


@HALVES
def test_eomt_in_transformers_layout(half, tmp_path, small_config):
    save_teacher(tmp_path / "full")
    teacher = load_eomt(str(tmp_path / "full"))
    rounded(teacher.model, half).save_pretrained(tmp_path / "full")
    exact = load_eomt(str(tmp_path / "full"))
    exact.model.to(half).save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == str(half)[6:]
    result = load_eomt(str(tmp_path / "half"))
    assert all_float32(result.model)
    exact = load_eomt(str(tmp_path / "full"))
    images = [torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8)]
    config = SegmentationConfig()
    predictions = [
        Segmenter(t, EomtHead(t.model), {"teacher": None, "lqn": recipe()}, frozenset(), config)
        for t in (result, exact)
    ]
    (a,), (b,) = (segmenter(images) for segmenter in predictions)
    for name in ("teacher", "lqn"):
        torch.testing.assert_close(a[name].output["sem_seg"], b[name].output["sem_seg"])
        assert torch.equal(a[name].output["panoptic_seg"][0], b[name].output["panoptic_seg"][0])
        assert a[name].stats["fallback"] == 0
    cfg = load_cfg(str(small_config), ["MODEL.LQN.TEACHER.WEIGHTS", str(tmp_path / "half")])
    assert "in float32" in describe_teacher(cfg, result)


@HALVES
def test_the_precision_that_is_asked_for(half, tmp_path, small_config):
    """The log says what the weights are in, not what was asked for."""
    save_teacher(tmp_path / "full")
    load_eomt(str(tmp_path / "full")).model.to(half).save_pretrained(tmp_path / "half")
    cfg = load_cfg(str(small_config))
    for precision in ("bfloat16", "float16", "float32"):
        teacher = load_eomt(str(tmp_path / "half"), precision=precision)
        assert teacher.model.layers[0].mlp.fc1.weight.dtype == getattr(torch, precision)
        assert teacher.model.layers[0].norm1.weight.dtype == torch.float32
        assert f"in {precision}," in describe_teacher(cfg, teacher)
        field, _ = teacher.encode(torch.randn(1, 3, 32, 32))
        assert fits(field)


@HALVES
def test_eomt_in_the_originals_layout(half, tmp_path):
    original = rounded(Original(), half)
    state = {name: value.to(half) for name, value in original.file().items()}
    torch.save(state, tmp_path / "file.bin")
    teacher = load_eomt(str(tmp_path / "file.bin"))
    assert all_float32(teacher.model)
    assert all(isinstance(value, float) for value in teacher.pixel_mean)
    images = torch.randn(1, 3, 64, 64)
    field, context = teacher.encode(images)
    masks, _ = EomtHead(teacher.model)(field[:, -1], context.last_queries)
    expected, _ = original(images)
    assert (masks - expected).abs().max() <= 1e-5 * expected.std()
    assert fits(field)


def test_a_random_eomt_is_float32_whatever_its_config_says(tmp_path):
    save_teacher(tmp_path / "full")
    content = json.loads((tmp_path / "full" / "config.json").read_text())
    (tmp_path / "shape.json").write_text(
        json.dumps(
            {k: content[k] for k in ("hidden_size", "num_hidden_layers", "image_size")}
            | {"num_attention_heads": 2, "num_blocks": 1, "dtype": "float16"}
        )
    )
    assert all_float32(load_eomt("", str(tmp_path / "shape.json")).model)


@HALVES
def test_dinov2(half, tmp_path):
    weights = save_dinov2(tmp_path / "half", half)
    teacher = load_dinov2(weights)
    assert all_float32(teacher.model)
    exact = load_dinov2(save_dinov2(tmp_path / "full"))
    rounded(exact.model, half)
    images = torch.randn(1, 3, 56, 56)
    field, _ = teacher.encode(images)
    torch.testing.assert_close(field, exact.encode(images)[0])
    assert fits(field)


@HALVES
def test_clip(half, tmp_path):
    model = build_clip()
    teacher = load_clip(save_clip_folder(tmp_path / "clip", model, {}, half))
    assert all_float32(teacher.model)
    images = torch.randn(2, 3, 32, 32)
    expected = torch.nn.functional.normalize(rounded(model, half).encode_image(images), dim=-1)
    torch.testing.assert_close(teacher.image_features(images), expected.detach())
    assert fits(teacher.encode(images[:1])[0])


@HALVES
def test_comparators(half, tmp_path):
    model = build_baseline("mask2former")
    rounded(model, half).save_pretrained(tmp_path / "full")
    model.to(half).save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == str(half)[6:]
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    result = {
        name: load_universal(BaselineModel("m", str(tmp_path / name)), "cpu", CLASSES, 64, 64)
        for name in ("full", "half")
    }
    assert all_float32(result["half"].model)
    (full, _), (half_, _) = (model(image, (64, 64), ["semantic"]) for model in result.values())
    for a, b in zip(full["semantic"], half_["semantic"]):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@HALVES
def test_a_file_of_weights_alone(half, tmp_path):
    from lqn_seg.teachers.files import read_weights

    tensors = {"a": torch.randn(3, dtype=half), "b": torch.arange(3)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    for name in ("x.safetensors", "x.bin"):
        result = read_weights(tmp_path / name, "key")
        assert result["a"].dtype == torch.float32 and result["b"].dtype == torch.int64
        assert torch.equal(result["a"], tensors["a"].float())

"""The opened-up CLIP against open_clip's own forward passes."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP

from lqn_seg.engine.training.train_clip import save_clip
from lqn_seg.errors import InputError
from lqn_seg.teachers.clip import ClipTeacher, check_quick_gelu, load_clip
from tests.classification.conftest import TEXT, VISION, build_clip

TOKENIZER = open_clip.SimpleTokenizer(context_length=24)
KINDS = {
    "plain": dict(),
    "quick-gelu": dict(quick_gelu=True),
    "mean": dict(vision=dict(pool_type="avg")),
    "mean, norm last": dict(vision=dict(pool_type="avg", final_ln_after_pool=True)),
    "layer scale, no first norm": dict(vision=dict(ls_init_value=0.5, no_ln_pre=True)),
}


@pytest.fixture(params=KINDS)
def model(request):
    return build_clip(**KINDS[request.param])


def test_features_are_open_clips_own(model):
    images = torch.randn(2, 3, 32, 32)
    teacher = ClipTeacher(model, TOKENIZER)
    field, context = teacher.encode(images)
    assert field.shape == (2, 3, 4, 4, 32) and context.prefix.shape == (2, 4, 1, 32)
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True)
    torch.testing.assert_close(teacher.pooled(field[:, -1], context), expected)
    torch.testing.assert_close(teacher.image_features(images), expected)
    if model.visual.pool_type == "tok":
        torch.testing.assert_close(teacher.project(context.cls), expected)


def test_every_layer_is_that_layers_output(model):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        result = model.visual.forward_intermediates(
            images, output_fmt="NLC", output_extra_tokens=True
        )
    field, context = ClipTeacher(model, TOKENIZER).encode(images)
    for layer, tokens in enumerate(result["image_intermediates"]):
        # To rounding: open_clip's own order of axes is another (see below).
        torch.testing.assert_close(field[:, layer].flatten(1, 2), tokens)
        cls = result["image_intermediates_prefix"][layer]
        torch.testing.assert_close(context.prefix[:, layer + 1], cls)


def test_no_weight_is_copied_for_every_token(model):
    """What PyTorch's attention does to (B, T, D), and what makes CLIP slow for B > 1."""
    teacher = ClipTeacher(model, TOKENIZER, "bfloat16")
    images, texts = torch.randn(3, 3, 32, 32), teacher.tokenize(["a", "b", "c"])
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profile:
        teacher.encode(images)
        teacher.image_features(images)
        teacher.encode_text(texts)
    copies = [event for event in profile.events() if event.name == "aten::copy_"]
    weights = 3 * min(teacher.width, model.transformer.width) ** 2
    tokens = 1 + teacher.grid[0] * teacher.grid[1]
    assert max(math.prod(event.input_shapes[0]) for event in copies) < tokens * weights


def test_text_features_are_open_clips_own_and_take_embeddings():
    custom = CustomTextCLIP(24, VISION, TEXT).eval()
    for model in (build_clip(), custom):
        teacher = ClipTeacher(model, TOKENIZER)
        tokens = teacher.tokenize(["a photo of a cat.", "two dogs"])
        with torch.no_grad():
            expected = model.encode_text(tokens, normalize=True)
        assert torch.equal(teacher.encode_text(tokens), expected)
        embedded = teacher.token_embedding(tokens).detach().requires_grad_()
        assert torch.equal(teacher.encode_text(tokens, embedded), expected)
        (gradient,) = torch.autograd.grad(teacher.encode_text(tokens, embedded)[0, 0], embedded)
        assert gradient[0, :6].abs().sum() > 0 and not gradient[1].any()
        assert torch.equal(teacher.encode_text(tokens), expected)  # the exchange is undone


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close(precision):
    images, model = torch.randn(2, 3, 32, 32), build_clip()
    exact = ClipTeacher(model, TOKENIZER)
    for teacher in (exact, ClipTeacher(model, TOKENIZER, precision)):
        field, context = teacher.encode(images)
        features = teacher.pooled(field[:, -1], context)
        assert features.dtype == torch.float32
        assert F.cosine_similarity(features, exact.image_features(images)).min() > 0.999


def test_quick_gelu_must_match():
    check_quick_gelu("ViT-B-16-quickgelu", "openai")
    check_quick_gelu("ViT-L-14-quickgelu", "openai")
    check_quick_gelu("ViT-H-14", "laion2b_s32b_b79k")
    with pytest.raises(InputError, match=r"QuickGELU mismatch.*set .* ViT-B-16-quickgelu"):
        check_quick_gelu("ViT-B-16", "openai")
    with pytest.raises(InputError, match="nor a tag of ViT-H-14-quickgelu"):
        check_quick_gelu("ViT-H-14-quickgelu", "laion2b_s32b_b79k")


def test_a_file_that_says_openai_needs_it_too(tmp_path):
    file = tmp_path / "vit_b_16_openai.safetensors"
    file.touch()
    check_quick_gelu("ViT-B-16-quickgelu", str(file))
    with pytest.raises(InputError, match="QuickGELU mismatch"):
        check_quick_gelu("ViT-B-16", str(file))


def test_round_trip_through_a_folder(tmp_path):
    model = build_clip(quick_gelu=True)
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    save_clip(tmp_path, model, config)
    images = torch.randn(2, 3, 32, 32)
    loaded = load_clip(str(tmp_path))
    direct = ClipTeacher(model.half().float(), TOKENIZER)
    assert torch.equal(loaded.image_features(images), direct.image_features(images))
    texts = ["a red fox.", "a ship"]
    assert torch.equal(loaded.tokenize(texts), direct.tokenize(texts))
    assert loaded.pixel_mean == pytest.approx((0.485, 0.456, 0.406))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="WEIGHTS is empty"):
        load_clip("")
    with pytest.raises(InputError, match=r"no open_clip_config\.json"):
        load_clip(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no weights"):
        load_clip(str(tmp_path))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="could not be loaded"):
        load_clip(str(tmp_path))
    with pytest.raises(InputError, match="knows no model 'ViT-B-17'"):
        load_clip("openai", "ViT-B-17")
    with pytest.raises(InputError, match=r"nor a tag of ViT-B-16 \(tags: openai"):
        load_clip("nowhere", "ViT-B-16")
    tower = dict(layers=(1, 1, 1, 1), width=8, head_width=16, image_size=32)
    resnet = open_clip.model.CLIP(16, tower, TEXT)
    with pytest.raises(InputError, match="not a ModifiedResNet"):
        ClipTeacher(resnet, TOKENIZER)

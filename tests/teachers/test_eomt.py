"""The opened-up EoMT against transformers' own forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt
from lqn_seg.teachers.eomt_head import EomtHead

SMALL = dict(
    hidden_size=16,
    num_hidden_layers=5,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
    num_blocks=2,
    num_queries=6,
    num_register_tokens=3,
    num_labels=4,
)


def same(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Of two implementations: equal but for rounding, in standard deviations of the values."""
    return got.shape == want.shape and bool((got - want).abs().max() <= tolerance * want.std())


def build(masked: tuple[float, float] = (0.0, 0.0), **changes) -> EomtForUniversalSegmentation:
    torch.manual_seed(0)
    model = EomtForUniversalSegmentation(EomtConfig(**{**SMALL, **changes})).eval()
    model.attn_mask_probs.copy_(torch.tensor(masked))
    # Learned values differ from layer to layer; transformers' start values would hide a mix-up.
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("masked", [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_field_and_head_reproduce_transformers(masked):
    model, images = build(masked), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True)
    teacher, head = EomtTeacher(model), EomtHead(model)
    field, context = teacher.encode(images)
    assert field.shape == (2, 5, 4, 4, 16)
    masks, classes = head(field[:, -1], context.last_queries)
    # transformers adds 1 instead of 0 to allowed attention logits: the same softmax, other rounding
    tolerance = 1e-5 if masked == (0.0, 0.0) else 1e-4
    assert same(masks, expected.masks_queries_logits, tolerance)
    assert same(classes, expected.class_queries_logits, tolerance)


def test_every_layer_is_that_layers_output():
    model, images = build(), torch.randn(1, 3, 32, 32)
    outputs = []
    handles = [
        layer.register_forward_hook(lambda m, i, out: outputs.append(out)) for layer in model.layers
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    field, context = EomtTeacher(model).encode(images)
    for index, state in enumerate(outputs):
        assert same(field[:, index].flatten(1, 2), state[:, -16:])
        assert same(context.prefix[:, index + 1], state[:, -20:-16])
    assert same(context.queries[:, 1], outputs[3][:, :6])
    assert same(context.queries[:, 2], outputs[4][:, :6])


@pytest.mark.parametrize("masked", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("layer", range(6))
def test_resume_reproduces_the_logits_from_every_layer(layer, masked):
    model, images = build(masked), torch.randn(2, 3, 32, 32)
    teacher, head = EomtTeacher(model), EomtHead(model)
    field, context = teacher.encode(images)
    count = model.embeddings.num_prefix_tokens
    embedded = model.embeddings(images)[:, count:].unflatten(1, (4, 4))
    tokens = field[:, layer - 1] if layer else embedded
    last, resumed = teacher.resume(layer, tokens, context)
    for got, want in zip(
        head(last, resumed.last_queries), head(field[:, -1], context.last_queries)
    ):
        assert torch.equal(got, want)
    assert torch.equal(resumed.prefix, context.prefix)
    assert torch.equal(resumed.queries, context.queries)


def test_resume_listens_to_the_tokens_it_is_given():
    model, images = build(), torch.randn(1, 3, 32, 32)
    teacher = EomtTeacher(model)
    field, context = teacher.encode(images)
    changed, _ = teacher.resume(2, field[:, 1] + 1, context)
    assert not torch.allclose(changed, field[:, -1], atol=1e-3)


def test_vit_l_is_just_a_config():
    with torch.device("meta"):
        model = EomtForUniversalSegmentation(EomtConfig(image_size=512, num_queries=100))
    parameters = sum(p.numel() for name, p in model.named_parameters() if "layers." in name)
    # 24 blocks of width 1024: 4 d^2 attention + 8 d^2 MLP, biases, two norms, two layer scales
    assert parameters == 24 * (12 * 1024**2 + 13 * 1024 + 2 * 1024)


def test_round_trip_through_a_directory(tmp_path):
    model, images = build(), torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    field, _ = load_eomt(str(tmp_path)).encode(images)
    assert torch.equal(field, EomtTeacher(model).encode(images)[0])


def test_random_weights_from_a_config_run_without_masked_attention(tmp_path):
    path = tmp_path / "eomt.json"
    path.write_text(json.dumps(SMALL))
    assert load_eomt("", str(path)).model.attn_mask_probs.tolist() == [0.0, 0.0]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json"):
        load_eomt("", str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match=r"no config\.json"):
        load_eomt(str(tmp_path))
    with pytest.raises(InputError, match="32x32 pixels, not 48x32"):
        EomtTeacher(build()).encode(torch.zeros(1, 3, 48, 32))
    build(num_queries=5).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "num_queries": 9}))
    with pytest.raises(InputError, match=r"query\.weight|could not be loaded"):
        load_eomt(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="could not be loaded"):
        load_eomt(str(tmp_path))


@pytest.mark.parametrize("content", ["[1]", '{"hidden_size": "a"}', '{"bogus": 1}', "{"])
def test_a_wrong_config_file_is_named(content, tmp_path):
    path = tmp_path / "eomt.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"eomt\.json"):
        load_eomt("", str(path))
    build().save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text(content)
    if content != '{"bogus": 1}':  # transformers itself lets that pass; the shapes then differ
        with pytest.raises(InputError, match="could not be loaded"):
            load_eomt(str(tmp_path / "whole"))


def test_a_truncated_weights_file_is_named(tmp_path):
    build().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="could not be loaded"):
        load_eomt(str(tmp_path))


# --- edits while the teacher runs


@pytest.mark.parametrize("masked", [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("layer", range(6))
def test_an_edit_is_what_resuming_from_other_tokens_is(layer, masked):
    teacher = EomtTeacher(build(masked))
    images, other = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 4, 16)
    plain, context = teacher.encode(images)
    edited, after = teacher.encode(images, lambda at, tokens: other if at == layer else tokens)
    last, resumed = teacher.resume(layer, other, context)
    assert torch.equal(edited[:, -1], last)
    assert torch.equal(after.last_queries, resumed.last_queries)
    assert torch.equal(after.prefix, resumed.prefix)
    if layer:  # what was put there is what the field says, and nothing before it changed
        assert torch.equal(edited[:, layer - 1], other)
        assert torch.equal(edited[:, : layer - 1], plain[:, : layer - 1])
    if layer < 5:
        assert not torch.allclose(edited[:, -1], plain[:, -1], atol=1e-3)


def test_an_edit_sees_every_layer_once_and_may_leave_it():
    teacher, images = EomtTeacher(build()), torch.randn(2, 3, 32, 32)
    seen = []

    def look(layer, tokens):
        seen.append((layer, tokens.clone()))
        return tokens

    field, context = teacher.encode(images, look)
    plain, same = teacher.encode(images)
    assert torch.equal(field, plain) and torch.equal(context.queries, same.queries)
    assert [layer for layer, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert torch.equal(seen[0][1], teacher.embed(images))
    for layer, tokens in seen[1:]:
        assert torch.equal(tokens, field[:, layer - 1])


# --- another input size


def test_a_resized_teacher_is_transformers_at_that_size():
    """timm resamples the position embedding, transformers builds the model; all else is shared."""
    from timm.layers import resample_abs_pos_embed

    model = build((1.0, 0.0))
    teacher = EomtTeacher(model)
    larger = teacher.resized((40, 40))
    assert larger.grid == (5, 5) and larger.image_size == (40, 40)
    assert teacher.grid == (4, 4) and model.config.image_size == 32
    state = model.state_dict()
    name = "embeddings.position_embeddings.weight"
    state[name] = resample_abs_pos_embed(state[name][None], [5, 5], num_prefix_tokens=0)[0]
    plain = EomtForUniversalSegmentation(EomtConfig(**{**SMALL, "image_size": 40})).eval()
    plain.load_state_dict(state)
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = plain(images)
    field, context = larger.encode(images)
    masks, classes = EomtHead(larger.model)(field[:, -1], context.last_queries)
    torch.testing.assert_close(masks, expected.masks_queries_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(classes, expected.class_queries_logits, atol=1e-5, rtol=1e-5)
    shared = dict(model.named_parameters())
    for key, parameter in larger.model.named_parameters():
        assert (parameter.data_ptr() == shared[key].data_ptr()) == (key != name)
    same = teacher.resized((32, 32))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(same.encode(images)[0], teacher.encode(images)[0])
    wide = teacher.resized((32, 48))
    assert wide.grid == (4, 6) and wide.encode(torch.randn(1, 3, 32, 48))[0].shape[2:4] == (4, 6)
    with pytest.raises(InputError, match="36x32"):
        teacher.resized((36, 32))


def test_the_embedding_alone_is_transformers_own():
    model, images = build(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.embeddings(images)[:, model.embeddings.num_prefix_tokens :]
    embedded = EomtTeacher(model).embed(images)
    assert embedded.shape == (2, 4, 4, 16)
    assert same(embedded.flatten(1, 2), expected)

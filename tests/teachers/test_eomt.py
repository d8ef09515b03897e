"""The opened-up EoMT against transformers' own forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt
from lqn_seg.teachers.eomt_head import EomtHead

SMALL = dict(hidden_size=16, num_hidden_layers=5, num_attention_heads=2, image_size=32)
SMALL |= dict(patch_size=8, num_blocks=2, num_queries=6, num_register_tokens=3, num_labels=4)


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

"""A linear head on a DINOv2 against transformers' model and a product written out."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from lqn_seg.errors import InputError
from lqn_seg.teachers.dinov2 import load_dinov2
from lqn_seg.teachers.linear_head import LinearHead, StoredHead, write_linear_head

NAMES = ("road", "car", "sky")


@pytest.fixture
def folder(tmp_path):
    """A small DINOv2 of transformers' at 56 px, and a head that was trained at 28 x 42."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**shape, image_size=56, patch_size=14)).save_pretrained(tmp_path)
    head = StoredHead(torch.randn(3, 32), torch.randn(3), NAMES, (28, 42))
    write_linear_head(tmp_path, head)
    return tmp_path


def test_its_logits_are_transformers_normed_tokens_times_the_weights(folder):
    teacher = load_dinov2(str(folder), image_size=(56, 56))
    head = LinearHead(teacher.model)
    images = torch.randn(2, 3, 56, 56)
    field, context = teacher.encode(images)
    logits, classes = head(field[:, -1], context.last)
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(folder)(images).last_hidden_state[:, 1:]
    stored = teacher.model.head
    expected = torch.einsum("bnd,cd->bcn", tokens, stored.weight) + stored.bias[:, None]
    torch.testing.assert_close(logits, expected.unflatten(2, (4, 4)), atol=1e-4, rtol=1e-4)
    assert classes is None and head.class_names == NAMES


def test_it_takes_images_of_the_size_that_it_was_trained_on(folder):
    assert load_dinov2(str(folder)).image_size == (28, 42)
    assert load_dinov2(str(folder), image_size=(56, 28)).grid == (4, 2)


def test_a_resized_teacher_shares_its_weights_and_keeps_its_head(folder):
    teacher = load_dinov2(str(folder))
    larger = teacher.resized((56, 56))
    assert larger.grid == (4, 4) and teacher.grid == (2, 3)
    assert larger.model.head.weight is teacher.model.head.weight
    assert LinearHead(larger.model).class_names == NAMES


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_names": ["road", "car"]}, r"head\.safetensors must hold a weight \(2, D\)"),
        ({"class_names": "road"}, "class_names must be a list of names, not 'road'"),
        ({"image_size": [28]}, r"image_size must be \[height, width\], not \[28\]"),
        ({"image_size": [True, 28]}, "image_size must be"),
        ({"image_size": [28, 30]}, "28x30 pixels are not a whole number of patches of 14"),
    ],
)
def test_a_head_that_does_not_fit_is_one_sentence(folder, changes, message):
    path = folder / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message):
        load_dinov2(str(folder))


def test_a_head_without_names_or_of_another_width_is_refused(folder):
    write_linear_head(folder, StoredHead(torch.randn(3, 16), torch.randn(3), NAMES, (28, 28)))
    with pytest.raises(InputError, match="width 16, but the ViT's width is 32"):
        load_dinov2(str(folder))
    (folder / "head.json").unlink()
    with pytest.raises(InputError, match=r"no head\.json that names its classes"):
        load_dinov2(str(folder))

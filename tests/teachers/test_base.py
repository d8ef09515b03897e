"""What holds for every teacher: resuming, hooks, and what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from lqn_seg.errors import InputError
from lqn_seg.teachers.clip import ClipTeacher
from lqn_seg.teachers.dinov2 import Dinov2Teacher
from lqn_seg.teachers.eomt import EomtTeacher
from tests.classification.conftest import build_clip
from tests.teachers.test_clip import KINDS
from tests.teachers.test_eomt import build


def build_dinov2() -> Dinov2Teacher:
    torch.manual_seed(0)
    shape = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 56}
    return Dinov2Teacher(timm.create_model("vit_small_patch14_reg4_dinov2", **shape))


MASKED = [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)]


@pytest.fixture(params=[*MASKED, *KINDS, "dinov2"], ids=str)
def teacher(request):
    if request.param == "dinov2":
        return build_dinov2()
    if request.param in KINDS:
        return ClipTeacher(build_clip(**KINDS[request.param]), None)
    return EomtTeacher(build(request.param))


def images_for(teacher) -> Tensor:
    return torch.randn(2, 3, *teacher.image_size)


def same(one, other) -> bool:
    """Whether two contexts are equal to the bit."""
    pairs = zip(vars(one).values(), vars(other).values())
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def test_resuming_from_its_own_tokens_changes_nothing(teacher):
    images = images_for(teacher)
    field, context = teacher.encode(images)
    assert context.prefix.shape[1] == teacher.num_layers + 1
    for layer in range(teacher.num_layers + 1):
        tokens = field[:, layer - 1] if layer else teacher.embed(images)
        last, after = teacher.resume(layer, tokens, context)
        assert torch.equal(last, field[:, -1]) and same(after, context)


def test_a_hook_is_what_resuming_from_other_tokens_is(teacher):
    images = images_for(teacher)
    plain, context = teacher.encode(images)
    other = torch.randn_like(plain[:, 0])
    for layer in range(teacher.num_layers + 1):
        hooked, after = teacher.encode(images, lambda at, x, k=layer: other if at == k else x)
        last, resumed = teacher.resume(layer, other, context)
        assert torch.equal(hooked[:, -1], last) and same(after, resumed)
        if layer:  # what was put there is in the field, and nothing before it changed
            assert torch.equal(hooked[:, layer - 1], other)
            assert torch.equal(hooked[:, : layer - 1], plain[:, : layer - 1])
        assert not torch.allclose(last, plain[:, -1], atol=1e-3)


def test_a_hook_sees_every_layer_once_and_may_leave_it(teacher):
    images, seen = images_for(teacher), {}

    def hook(layer, tokens):
        assert layer not in seen
        seen[layer] = tokens.clone()
        return tokens

    field, context = teacher.encode(images, hook)
    plain, untouched = teacher.encode(images)
    assert torch.equal(field, plain) and same(context, untouched)
    assert list(seen) == list(range(teacher.num_layers + 1))
    assert torch.equal(seen.pop(0), teacher.embed(images))
    assert torch.equal(torch.stack(list(seen.values()), 1), field)


def test_wrong_sizes_and_layers_are_named(teacher):
    height, width = teacher.image_size
    with pytest.raises(InputError, match=f"{height}x{width} pixels, not {2 * height}x{width}"):
        teacher.encode(torch.zeros(1, 3, 2 * height, width))
    field, context = teacher.encode(images_for(teacher))
    with pytest.raises(InputError, match=rf"0\.\.{teacher.num_layers}, not -1"):
        teacher.resume(-1, field[:, 0], context)

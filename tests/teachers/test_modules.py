"""A teacher's exchanged layers against PyTorch's own."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lqn_seg.core.precision import has_bfloat16, resolve_precision
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import measure
from lqn_seg.teachers import modules
from lqn_seg.teachers.clip import ClipTeacher
from lqn_seg.teachers.modules import ONE_DNN, accelerate, attend, lower_weights, quantise
from tests.classification.conftest import build_clip

WIDTH, HEADS = 192, 6


def attention(**options) -> nn.MultiheadAttention:
    made = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def exchanged(module: nn.Module) -> nn.Module:
    """The same weights, other products."""
    made = copy.deepcopy(module)
    accelerate(made)
    return made


@pytest.mark.parametrize("shape", [(7, WIDTH), (2, 50, WIDTH), (2, 5, 60, WIDTH)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_the_same_linear_layer(shape, bias):
    plain = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
    ours, x = exchanged(plain), torch.randn(shape)
    assert isinstance(ours, nn.Linear) and ours.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ours(x), plain(x))
    x.requires_grad_()
    (theirs,) = torch.autograd.grad(plain(x).square().sum(), x)
    (gradient,) = torch.autograd.grad(ours(x).square().sum(), x)
    assert torch.equal(gradient, theirs)


@pytest.mark.skipif(ONE_DNN is None, reason="PyTorch without oneDNN")
def test_large_float32_products_go_to_one_dnn():
    layer, x = exchanged(nn.Linear(WIDTH, WIDTH)), torch.randn(4, 100, WIDTH)
    for inputs, expected in ((x, True), (x[:1, :2], False)):
        with torch.no_grad(), torch.profiler.profile() as profile:
            layer(inputs)
        names = {event.name for event in profile.events()}
        assert ("mkldnn::_linear_pointwise" in names) == expected


@pytest.mark.parametrize("mask", [None, "causal", "per head"])
def test_self_attention_is_pytorchs_own(mask):
    plain, x = attention(), torch.randn(3, 20, WIDTH)
    masks = {
        None: None,
        "causal": torch.full((20, 20), -torch.inf).triu_(1),
        "per head": torch.randn(3 * HEADS, 20, 20),
    }
    ours = exchanged(plain)
    for inputs in (x, x.clone().requires_grad_()):
        expected = plain(inputs, inputs, inputs, need_weights=False, attn_mask=masks[mask])[0]
        result = ours(inputs, inputs, inputs, need_weights=False, attn_mask=masks[mask])[0]
        torch.testing.assert_close(result, expected)
    (theirs,) = torch.autograd.grad(expected.square().sum(), inputs)
    (gradient,) = torch.autograd.grad(result.square().sum(), inputs)
    torch.testing.assert_close(gradient, theirs)


@pytest.fixture
def plain_products(monkeypatch):
    """`attend` by plain products, whatever the processor; as if 60 tokens were thousands."""
    monkeypatch.setattr(modules, "_plain_products_pay", lambda: True)
    monkeypatch.setattr(modules, "_PIECE", 1 << 10)


def queries_keys_values(length: int, **options) -> list[torch.Tensor]:
    """(2, 5, T, 16) each; the keys share a mean, as a ViT's do."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, length, 16).unbind()
    return [x.bfloat16().to(**options) for x in (2 * q, k + 8 * torch.randn(16), v)]


@pytest.mark.parametrize("length", [1, 20, 61])  # all heads at once, some, and some rows of one
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bfloat16_is_close_to_float32s(plain_products, length, autocast):
    q, k, v = queries_keys_values(length)
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = attend(*(x.float() if autocast else x for x in (q, k, v)))
    assert ours.dtype == torch.bfloat16 and ours.shape == exact.shape
    # 2 % where the keys keep their mean
    assert (ours - exact).norm() <= 0.008 * exact.norm()


@pytest.mark.parametrize("case", ["mask", "gradients", "float32", "other processors"])
def test_attention_is_pytorchs_own_elsewhere(plain_products, monkeypatch, case):
    float32 = {"dtype": torch.float32} if case == "float32" else {}
    q, k, v = queries_keys_values(20, **float32)
    q.requires_grad_(case == "gradients")
    mask = torch.randn(20, 20).to(q.dtype) if case == "mask" else None
    if case == "other processors":
        monkeypatch.setattr(modules, "_plain_products_pay", lambda: False)
    ours, usual = attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask)
    assert torch.equal(ours, usual) and ours.requires_grad == q.requires_grad


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lowered_weights_answer_as_autocast_does(precision):
    model = build_clip().eval()
    accelerate(model)
    lowered = copy.deepcopy(model)
    lower_weights(lowered.visual, precision)
    assert lowered.visual.conv1.weight.dtype == getattr(torch, precision)
    assert lowered.visual.ln_post.weight.dtype == torch.float32
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, precision)):
        assert torch.equal(lowered.encode_image(images), model.encode_image(images))


def test_float32_weights_stay_as_they_are():
    model = nn.Linear(3, 3)
    lower_weights(model, "float32")
    assert model.weight.dtype == torch.float32


needs_int8 = pytest.mark.skipif(
    not (torch.cpu._is_vnni_supported() and has_bfloat16(torch.device("cpu"))), reason="no VNNI"
)


def in_int8(plain: nn.Linear) -> nn.Linear:
    made = copy.deepcopy(plain)
    lower_weights(made, "int8")
    quantise([made])
    return made


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
def test_int8_products_are_close_image_by_image_and_leave_the_weights(bias):
    plain, x = nn.Linear(WIDTH, 3 * WIDTH, bias=bias), torch.rand(2, 50, WIDTH) - 0.1
    x[1] *= 100
    ours = in_int8(plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, exact = ours(x), plain(x)
        assert got.dtype == torch.bfloat16 and got.shape == exact.shape
        assert ((got - exact).flatten(1).norm(dim=1) < 0.02 * exact.flatten(1).norm(dim=1)).all()
        assert not torch.equal(got, exact)
        assert torch.equal(got[:1], ours(x[:1]))
        weights = {name: value.bfloat16() for name, value in plain.state_dict().items()}
        torch.testing.assert_close(ours.state_dict(), weights, rtol=0, atol=0)
        ours.weight.mul_(2)  # other weights, loaded into the same layer
        assert (ours(x) - got).norm() > 0.1 * got.norm()


@needs_int8
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_in_int8_what_is_not_finite_stays_so_and_in_its_image(bad):
    """The method that it came from falls back then; an exception would end an evaluation."""
    ours, x = in_int8(nn.Linear(WIDTH, WIDTH)), torch.randn(2, 50, WIDTH)
    with torch.no_grad():
        plain = ours(x)
        x[1, 3, 5] = bad
        got = ours(x)
    assert torch.equal(got[0], plain[0])
    assert not got[1, 3].isfinite().any() and got[1, :3].isfinite().all()


@needs_int8
def test_int8_layers_learn_in_bfloat16():
    plain, x = nn.Linear(WIDTH, WIDTH), torch.randn(2, 50, WIDTH, requires_grad=True)
    lowered = copy.deepcopy(plain).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(in_int8(plain)(x), lowered(x))


@needs_int8
def test_a_teacher_in_int8_is_close_is_copied_and_is_counted():
    model = build_clip().eval()
    exact = ClipTeacher(copy.deepcopy(model), None)
    teacher = ClipTeacher(model, None, "int8")
    lower_weights(model.visual, "int8")
    images = torch.randn(2, 3, 32, 32)
    field, want = teacher.encode(images)[0], exact.encode(images)[0]
    assert 0 < (field - want).norm() < 0.05 * want.norm()
    assert torch.equal(copy.deepcopy(teacher).encode(images)[0], field)
    counted = [measure(partial(x.encode, images)).forward_gmacs for x in (teacher, exact)]
    assert counted[0] == pytest.approx(counted[1])


def test_int8_is_refused_where_there_is_none():
    with pytest.raises(InputError, match="int8 needs a CPU"):
        resolve_precision("int8", torch.device("cuda"))

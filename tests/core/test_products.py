from __future__ import annotations

import math

import pytest
import torch
from lqn_seg.core.fast import products
from lqn_seg.core.fast.products import dense, linear, product

# Small: torch.bmm. Large: student by student. The last one's outputs come in pieces.
SIZES = [(5, 7, 3), (96, 160, 120), (300, 130, 131)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(products, "_OUTPUTS_AT_ONCE", 100 * 131)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("n", "k", "m"), SIZES)
def test_products_of_any_layout_are_right(batch, n, k, m):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(batch, n, k, generator=generator)
    right = torch.randn(batch, k, m, generator=generator)
    expected = left.double() @ right.double()
    turned = left.mT.contiguous().mT, right.mT.contiguous().mT
    for a, b in [(left, right), (turned[0], right), (left, turned[1]), turned]:
        close(product(a, b), expected)
        # into a piece of a larger buffer, as gradients are
        flat = torch.zeros(batch, n * m + 16)
        place = flat[:, : n * m].unflatten(1, (n, m))
        assert product(a, b, out=place).data_ptr() == flat.data_ptr()
        close(place, expected)
        assert not flat[:, n * m :].any()
    bias = torch.randn(batch, m, generator=generator)
    close(linear(left, right.mT, bias), expected + bias[:, None].double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k", "m"), SIZES[1:])
def test_a_students_large_product_does_not_depend_on_its_company(n, k, m, dtype):
    left, right, bias = (torch.randn(3, *s).to(dtype) for s in ((n, k), (k, m), (m,)))
    together, apart = product(left, right), [product(left[[b]], right[[b]]) for b in range(3)]
    assert torch.equal(together, torch.cat(apart))
    one = linear(left[[1]], right.mT[[1]], bias[[1]])
    assert torch.equal(linear(left, right.mT, bias)[[1]], one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_lie_apart_are_not_copied(dtype):
    """As views of a flat buffer do; torch.bmm would make them lie together first."""
    n, k, m = SIZES[1]
    flat = torch.randn(3, k * m + 16).to(dtype)
    weight, inputs = flat[:, : k * m].unflatten(1, (m, k)), torch.randn(3, n, k).to(dtype)
    with torch.profiler.profile(record_shapes=True) as profile:
        product(inputs, weight.mT)
        linear(inputs, weight, torch.zeros(3, m, dtype=dtype))
    copies = [event for event in profile.events() if event.name == "aten::copy_"]
    elements = [math.prod(event.input_shapes[0]) for event in copies]
    assert max(elements, default=0) < weight.numel()


def test_large_float32_products_go_to_one_dnn(monkeypatch):
    if products.ONE_DNN_LINEAR is None:
        pytest.skip("this PyTorch is without oneDNN")
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return one_dnn(*arguments)

    one_dnn = products.ONE_DNN_LINEAR
    monkeypatch.setattr(products, "ONE_DNN_LINEAR", spy)
    large, small = torch.randn(2, 128, 128), torch.randn(2, 8, 8)
    product(large, large)
    assert len(calls) == 2
    product(small, small)
    product(large.bfloat16(), large.bfloat16())
    product(large.double(), large.double())
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_tracer_records_pytorchs_own_products():
    """It knows no oneDNN product: a flop counter would stop, and not count it if it did not."""
    weight, bias, other = torch.randn(128, 128), torch.randn(128), torch.randn(2, 128, 128)

    def layers(x):
        return product(linear(dense(x, weight, bias), other, bias.expand(2, -1)), other)

    traced = torch.jit.trace(layers, torch.randn(2, 128, 128))
    assert "mkldnn" not in str(traced.graph)
    inputs = torch.randn(2, 128, 128)
    torch.testing.assert_close(traced(inputs), layers(inputs), atol=1e-2, rtol=1e-4)

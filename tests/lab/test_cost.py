"""Measured costs against closed forms."""

from __future__ import annotations

import pytest
import torch

from lqn_seg.lab.cost.cost import UncountedOperatorError, measure
from lqn_seg.lab.cost.flops import clip_gmacs
from tests.classification.conftest import build_clip


def test_a_product_costs_two_on_the_way_back():
    weight, x = torch.randn(30, 50, requires_grad=True), torch.randn(20, 30, requires_grad=True)
    cost = measure(lambda: (x @ weight).square().sum().backward())
    assert cost.forward_gmacs == pytest.approx(20 * 30 * 50 / 1e9)
    assert cost.backward_gmacs == pytest.approx(2 * 20 * 30 * 50 / 1e9)


def test_a_clip_costs_what_its_shape_says():
    model, images = build_clip(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        cost = measure(lambda: model.encode_image(images))
    assert cost.forward_gmacs == pytest.approx(clip_gmacs(model)["teacher"])
    assert cost.backward_gmacs == 0


def test_matrix_times_vector_is_counted():
    cost = measure(lambda: torch.ones(7, 9) @ torch.ones(9))
    assert cost.forward_gmacs == pytest.approx(63 / 1e9)


def test_peak_is_what_is_held_at_once():
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.ones(1000)

    def together() -> None:
        held = [torch.ones(1000) for _ in range(5)]
        [x.view(10, 100) for x in held]  # views cost nothing

    assert measure(one_after_the_other).peak_bytes == 4000
    assert measure(together).peak_bytes == 20_000


def test_what_has_no_rule_is_an_error():
    with pytest.raises(UncountedOperatorError, match="addmv"):
        measure(lambda: torch.addmv(torch.ones(3), torch.ones(3, 3), torch.ones(3)))

"""The kernel's leave-one-out error against loops of NumPy's, and on fields with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lqn_seg.adapt.noise import guided_kernel, leave_one_out_error
from lqn_seg.core.view import guiding_tokens


@pytest.mark.parametrize("shape", [(3, 4), (5, 2)])
def test_error_is_what_a_loop_finds(make_fields, shape):
    fields = make_fields(2, (4, *shape), 5)
    kernel = guided_kernel(guiding_tokens(fields, 0.5))
    errors = leave_one_out_error(kernel, fields[:, -1])
    for b in range(2):
        tokens = fields[b, -1].double().flatten(0, 1).numpy()
        weights = kernel[b].double().numpy()
        squares = []
        for n in range(len(tokens)):
            others = [m for m in range(len(tokens)) if m != n]
            mean = sum(weights[n, m] * tokens[m] for m in others) / weights[n, others].sum()
            squares.append((tokens[n] - mean) ** 2)
        expected = np.mean(squares) / tokens.var(0).mean()
        assert errors[b].item() == pytest.approx(expected, rel=1e-3)


def test_twins_predict_each_other_and_strangers_do_not():
    guide = 100 * torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    twins = guide.repeat(1, 2, 1, 1)  # two rows, alike column by column, unlike otherwise
    tokens = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(1)).repeat(1, 2, 1, 1)
    kernel = guided_kernel(twins)
    assert kernel.diagonal(dim1=1, dim2=2).allclose(torch.ones(1, 12))
    assert leave_one_out_error(kernel, tokens).item() < 1e-4
    strangers = guided_kernel(guide)  # nobody is like anybody: predicted from the mean of all
    assert leave_one_out_error(strangers, tokens[:, :1]).item() == pytest.approx(1, rel=1e-4)


def test_a_field_without_variance_has_an_error_of_zero():
    fields = torch.ones(2, 3, 4, 4, 5)
    kernel = guided_kernel(guiding_tokens(fields, 0.1))
    assert leave_one_out_error(kernel, fields[:, -1]).tolist() == [0, 0]

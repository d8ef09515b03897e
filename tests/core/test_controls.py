"""The closed-form fields against loops and a solver of NumPy's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lqn_seg.adapt.closed_forms import ClosedFormField

from lqn_seg.core.config import LQNConfig, StudentConfig, with_variant
from lqn_seg.core.random import RandomKey

FEATURES = 5
CONFIG = LQNConfig(StudentConfig(12, 4, (8,), 20, guide=0.5))
KEYS = [RandomKey(0, 1), RandomKey(0, 2)]


def smoothed(variant: str, fields: torch.Tensor, guide: float = 0.5):
    config = with_variant(replace(CONFIG, student=replace(CONFIG.student, guide=guide)), variant)
    field = ClosedFormField(config, tuple(fields.shape[1:4]), fields.shape[-1], "cpu")
    return field.fit(torch.zeros(len(fields), 3, 12, 12), fields, KEYS[: len(fields)])


def slow_kernel(guide: np.ndarray) -> np.ndarray:
    """(N, N) how much two positions have to do with each other, one pair at a time."""
    rows, columns, features = guide.shape
    guide = (guide - guide.mean((0, 1))) / guide.std((0, 1))
    kernel = np.empty((rows * columns, rows * columns))
    for a in range(rows * columns):
        for b in range(rows * columns):
            (i, j), (k, m) = divmod(a, columns), divmod(b, columns)
            alike = sum((guide[i, j, f] - guide[k, m, f]) ** 2 for f in range(features)) / features
            near = ((i - k) ** 2 + (j - m) ** 2) / (max(rows, columns) / 6) ** 2
            kernel[a, b] = math.exp(-0.5 * (alike / 0.5**2 + near))
    return kernel


@pytest.mark.parametrize("shape", [(3, 4), (6, 5)])
@pytest.mark.parametrize("share, layer", [(0.5, 2), (1.0, 4), (0.0, 1)])
def test_kernel_and_ridge_are_what_numpy_finds(make_fields, shape, share, layer):
    fields = make_fields(2, (4, *shape), FEATURES)
    kernel, ridge = (smoothed(name, fields, share) for name in ("kernel", "ridge"))
    assert kernel.finite.tolist() == ridge.finite.tolist() == [True, True]
    for b in range(2):
        weights = slow_kernel(fields[b, layer - 1].double().numpy())
        last = fields[b, -1].double().numpy().reshape(-1, FEATURES)
        mean = np.empty_like(last)
        for n, row in enumerate(weights):
            mean[n] = sum(w * token for w, token in zip(row, last)) / sum(row)
        found = kernel.query_layer(4)[b].flatten(0, 1)
        np.testing.assert_allclose(found, mean, atol=1e-3, rtol=1e-3)
        middle = last.mean(0)
        solved = np.linalg.solve(weights + 0.3 * np.eye(len(weights)), last - middle)
        found = ridge.query_layer(4)[b].flatten(0, 1)
        np.testing.assert_allclose(found, weights @ solved + middle, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("variant", ["kernel", "ridge"])
def test_a_constant_stays_and_units_come_back(make_fields, variant):
    fields = make_fields(2, (4, 3, 4), FEATURES)
    answer = smoothed(variant, fields).query_layer(4)
    moved = fields.clone()
    moved[:, -1] = 3 * fields[:, -1] + 7
    torch.testing.assert_close(
        smoothed(variant, moved).query_layer(4), 3 * answer + 7, atol=1e-3, rtol=1e-4
    )
    moved[:, -1] = 7
    seven = smoothed(variant, moved).query_layer(4)
    torch.testing.assert_close(seven, torch.full_like(seven, 7))


@pytest.mark.parametrize("variant", ["kernel", "ridge"])
def test_images_are_alone_and_a_broken_one_is_told(make_fields, variant):
    fields = make_fields(2, (4, 6, 5), FEATURES)
    both = smoothed(variant, fields).query_layer(4)
    for b in range(2):
        alone = smoothed(variant, fields[b : b + 1]).query_layer(4)
        torch.testing.assert_close(alone[0], both[b], atol=1e-4, rtol=1e-4)
    fields[1, -1, 2, 2, 0] = float("nan")
    result = smoothed(variant, fields)
    assert result.finite.tolist() == [True, False] and result.finite.device.type == "cpu"
    torch.testing.assert_close(result.query_layer(4)[0], both[0], atol=1e-4, rtol=1e-4)

"""The plain implementation that the fast one is held against, and a synthetic token field."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.core import plain_port


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    return plain_port


def make_fields(batch: int, grid: tuple[int, int, int], features: int, seed: int = 0) -> Tensor:
    """(B, L, H, W, D) smooth fields whose norm grows with depth, as a teacher's do."""
    generator = torch.Generator().manual_seed(seed)
    layers, rows, columns = grid
    i = torch.linspace(-1, 1, rows)[:, None, None]
    j = torch.linspace(-1, 1, columns)[None, :, None]
    waves = torch.randn(batch, 1, 1, 6, 3, generator=generator)
    basis = torch.sin(3 * (waves[..., 0] * i + waves[..., 1] * j + waves[..., 2]))
    mix = torch.randn(batch, layers, 6, features, generator=generator)
    fields = torch.einsum("bhwk,blkd->blhwd", basis, mix)
    return fields * torch.linspace(1, 4, layers)[:, None, None, None] + 2


@pytest.fixture(name="make_fields", scope="session")
def _make_fields():
    return make_fields

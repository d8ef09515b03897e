"""Addresses in a token field, and their encoding: the only definition of either.

An address is (i, j, l) = (row, column, layer), 1-based: i = 1..H, j = 1..W, and l = 1..L are the
outputs of the teacher's blocks. 0 is off the grid: ANCHOR = (0, 0, 0) is the constant source of the
paper's binding step and read-out. Queries may be fractional.

A location is encoded in d_p features (Eq. 2): the coordinate code P(i, j, l) in the first d_p - 2,
and a flag that tells source from destination in the last two. There are no learnable parameters.

The code is *separable*: P(i, j, l) is the concatenation of a block for i, a block for j and a block
for l. Padded with zeros to full width, the three blocks *sum* to the code, so whatever is linear in
the code (the student's first layer is) needs only one row per axis value, H + W + L rows and the
anchor's in place of H x W x L, and an address is three look-ups, summed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lqn_seg.core.config import FLAG_FEATURES, axis_features
from lqn_seg.core.fast.graphs import constant

# Where a grid's rows (H,) and its columns (W,) lie, if not at 1..H and 1..W: windows of an image
# that lie side by side in a grid overlap in the image. Off the grid, 0 stays 0.
Places = tuple[Tensor, Tensor]

ANCHOR = (0, 0, 0)
SOURCE_FLAG = 0
DESTINATION_FLAG = 1
_BASE = 10000.0


def grid_positions(
    rows: int, columns: int, layer: float, device: torch.device | str = "cpu"
) -> Tensor:
    """(rows * columns, 3) float32 addresses of one layer, row by row."""
    i = torch.arange(1, rows + 1, device=device, dtype=torch.float32)
    j = torch.arange(1, columns + 1, device=device, dtype=torch.float32)
    i, j = torch.meshgrid(i, j, indexing="ij")
    return torch.stack((i, j, torch.full_like(i, layer)), dim=-1).flatten(0, 1)


def placed(positions: Tensor, places: Places | None) -> Tensor:
    """(..., 3) addresses in rows and columns of a grid to where they lie, linear in between."""
    if places is None:
        return positions
    *where, layer = positions.float().unbind(-1)
    for axis, place in enumerate(places):
        known = F.pad(place.float().to(positions.device), (1, 0))
        below = where[axis].floor().clamp(0, len(known) - 2).long()
        where[axis] = torch.lerp(known[below], known[below + 1], where[axis] - below)
    return torch.stack((*where, layer), dim=-1)


def axis_code(values: Tensor, features: int) -> Tensor:
    """Sinusoidal code of coordinates along one axis (Vaswani et al., 2017).

    Shapes: (...) to (..., features).
    Pair k of K is (sin, cos) of value x 10000^(-k / K), k = 0..K-1.
    """
    pairs = features // 2
    frequencies = constant(
        tuple(_BASE ** (-k / pairs) for k in range(pairs)), values.device, torch.float32
    )
    angles = values.float().unsqueeze(-1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def encode_positions(positions: Tensor, position_dim: int, flag: int, axes: int = 3) -> Tensor:
    """A location's block of the student's input: (..., 3) addresses to (..., d_p) features.

    Args:
        positions: addresses (i, j, l), fractional allowed; l is ignored when `axes` is 2.
        flag: SOURCE_FLAG or DESTINATION_FLAG.
    """
    widths = axis_features(position_dim, axes)
    blocks = [axis_code(positions[..., axis], width) for axis, width in enumerate(widths)]
    return torch.cat((*blocks, _flag_code(flag, positions[..., 0])), dim=-1)


def _flag_code(flag: int, like: Tensor) -> Tensor:
    code = constant((math.sin(flag), math.cos(flag)), like.device, torch.float32)
    return code.expand(*like.shape, FLAG_FEATURES)


class AddressTable(NamedTuple):
    """The axis values that a set of addresses uses, each encoded once, for both roles.

    `source` and `destination` are (R, d_p): one row per value of i, then of j, then of l, each in
    its own columns and zero elsewhere, so that the rows an address names add up to its encoding.
    Every address names exactly one row of i, which is why the flag can ride there.
    """

    source: Tensor
    destination: Tensor


def grid_table(
    grid: tuple[int, int, int],
    position_dim: int,
    axes: int = 3,
    device: torch.device | str = "cpu",
    places: Places | None = None,
) -> AddressTable:
    """The table of every whole address of a grid (L, H, W), and of the anchor."""
    layers, rows, columns = grid
    values = [torch.arange(size + 1, device=device) for size in (rows, columns, layers)]
    if places is not None:
        values[:2] = [F.pad(place.float().to(device), (1, 0)) for place in places]
    return _table(values[:axes], position_dim)


def grid_rows(positions: Tensor, grid: tuple[int, int, int], axes: int = 3) -> Tensor:
    """Rows of `grid_table` for whole addresses: (..., 3) int64 to (..., axes)."""
    _, rows, columns = grid
    offsets = constant((0, rows + 1, rows + columns + 2)[:axes], positions.device)
    return positions[..., :axes] + offsets


def tabulate(positions: Tensor, position_dim: int, axes: int = 3) -> tuple[AddressTable, Tensor]:
    """A table of just the values that (..., 3) addresses use, fractional ones included.

    Returns:
        The table, and the addresses as rows of it, (..., axes) int64.
    """
    values, rows, offset = [], [], 0
    for axis in range(axes):
        unique, inverse = torch.unique(positions[..., axis], return_inverse=True)
        values.append(unique)
        rows.append(inverse + offset)
        offset += len(unique)
    return _table(values, position_dim), torch.stack(rows, dim=-1)


def _table(values: list[Tensor], position_dim: int) -> AddressTable:
    widths = axis_features(position_dim, len(values))
    code = torch.block_diag(*(axis_code(axis, width) for axis, width in zip(values, widths)))
    roles = []
    for flag in (SOURCE_FLAG, DESTINATION_FLAG):
        flags = code.new_zeros(len(code), FLAG_FEATURES)
        flags[: len(values[0])] = _flag_code(flag, values[0])
        roles.append(torch.cat((code, flags), dim=1))
    return AddressTable(*roles)

from __future__ import annotations

import pytest
import torch
from lqn_seg.core.positions import (
    ANCHOR,
    DESTINATION_FLAG,
    SOURCE_FLAG,
    encode_positions,
    grid_positions,
    grid_rows,
    grid_table,
    placed,
    tabulate,
)

from lqn_seg.core.config import axis_features
from lqn_seg.errors import InputError

GRID = (5, 3, 4)  # L, H, W


def test_grid_positions_are_one_based_and_row_major():
    positions = grid_positions(2, 3, 7)
    assert positions.tolist() == [[i, j, 7] for i in (1, 2) for j in (1, 2, 3)]


def test_features_split_in_thirds_of_pairs_with_the_remainder_to_layers():
    assert axis_features(768, 3) == (254, 254, 258)
    assert axis_features(96, 3) == (30, 30, 34)
    assert axis_features(96, 2) == (46, 48)
    for bad, reason in ((97, "even"), (6, "at least 8")):
        with pytest.raises(InputError, match=reason):
            axis_features(bad, 3)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("flag", [0, 1])
def test_encoding_is_the_reference_one(reference, axes, flag):
    positions = torch.tensor([ANCHOR, (1, 2, 3), (64, 40, 24), (1.5, 2.25, 0.125)])
    expected = reference.encode(positions, 26, flag, axes)
    torch.testing.assert_close(
        encode_positions(positions, 26, flag, axes).double(), expected, atol=1e-5, rtol=0
    )


def test_flag_tells_source_from_destination_and_touches_nothing_else():
    position = torch.tensor([[1.0, 2.0, 3.0]])
    source, destination = (encode_positions(position, 20, flag) for flag in (0, 1))
    assert torch.equal(source[:, :-2], destination[:, :-2])
    assert not torch.equal(source[:, -2:], destination[:, -2:])


@pytest.mark.parametrize("axes", [2, 3])
def test_rows_of_the_grid_table_add_up_to_the_encoding(axes):
    positions = torch.cartesian_prod(torch.arange(4), torch.arange(5), torch.arange(6))
    table = grid_table(GRID, 20, axes)
    rows = grid_rows(positions, GRID, axes)
    for flag, codes in enumerate(table):
        assert len(codes) == sum((3 + 1, 4 + 1, 5 + 1)[:axes])
        summed = codes[rows].sum(dim=1)
        assert torch.equal(summed, encode_positions(positions, 20, flag, axes))


@pytest.mark.parametrize("axes", [2, 3])
def test_tabulate_serves_fractional_addresses(axes):
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(2, 7, 3, generator=generator) * 5
    positions[1] = positions[0].round()
    table, rows = tabulate(positions, 20, axes)
    for flag, codes in enumerate(table):
        summed = codes[rows].sum(dim=-2)
        assert torch.equal(summed, encode_positions(positions, 20, flag, axes))


def test_places_move_rows_and_columns_and_leave_the_anchor():
    places = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 1.5, 2.5])
    positions = torch.tensor([[0.0, 0, 0], [2, 3, 4], [3, 4, 1], [1, 2.5, 2], [1, 0.5, 2]])
    expected = torch.tensor([[0.0, 0, 0], [2, 1.5, 4], [3, 2.5, 1], [1, 1.75, 2], [1, 0.5, 2]])
    assert torch.equal(placed(positions, places), expected)
    assert placed(positions, None) is positions
    # A table of the places, read at whole addresses, is the encoding of where they lie.
    grid = (4, 3, 4)
    whole = positions[:3].long()
    table = grid_table(grid, 20, 3, "cpu", places)
    rows = grid_rows(whole, grid)
    for flag, codes in ((SOURCE_FLAG, table.source), (DESTINATION_FLAG, table.destination)):
        found = codes[rows].sum(-2)
        torch.testing.assert_close(found, encode_positions(expected[:3], 20, flag))


def test_the_usual_places_are_the_grid_itself():
    usual = torch.arange(1, 4).float(), torch.arange(1, 5).float()
    plain, given = (grid_table((2, 3, 4), 20, 3, "cpu", places) for places in (None, usual))
    assert torch.equal(plain.source, given.source)
    assert torch.equal(plain.destination, given.destination)

"""The field of an image: what several views of it say of any place in it.

A view moved by half a patch has its tokens between those of the first. A Gaussian kernel over the
addresses of all views answers for every place; nothing is fitted. What a head says of tokens
(logits, on a finer grid where it upscales them) is such a field as well.

Related: Nadaraya and Watson's kernel regression (1964).

Shapes: B images, h x w grid of a view, D features or classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lqn_seg.core.precision import operand_precision

# Standard deviation of the kernel, in cells of a view's grid: one cell away counts e^8 times less
# than in the place itself, so a view alone is answered by its nearest cells.
BANDWIDTH = 0.25


@dataclass(frozen=True)
class Placed:
    """What a view says, and where.

    Attributes:
        values: (B, h, w, D).
        rows, columns: (h,) and (w,), ascending coordinates in the image, in patches from 1.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def on(cls, grid: Sequence[int], values: Tensor, move: Sequence[float] = (0, 0)) -> Placed:
        """Values of a view that covers a grid of patches, moved (down, right) by so many."""
        sides = zip(grid, values.shape[1:3], move)
        rows, columns = (
            cell_centres(side, count / side, values.device) + moved for side, count, moved in sides
        )
        return cls(values, rows, columns)


def evaluate(views: Sequence[Placed], rows: Tensor, columns: Tensor) -> Tensor:
    """(B, R, C, D) of all views on the grid of (R,) rows and (C,) columns, in float32. Outside of
    the first view its nearest cell answers."""
    first, parts, weights = views[0], [], []
    rows = rows.clamp(first.rows[0], first.rows[-1])
    columns = columns.clamp(first.columns[0], first.columns[-1])
    with operand_precision(rows.device):
        for view in views:
            down, right = _kernel(rows, view.rows), _kernel(columns, view.columns)
            # A Gaussian of a distance in the plane is one of its rows times one of its columns.
            summed = torch.einsum("rh,bhwd->brwd", down, view.values.float())
            parts.append(torch.einsum("cw,brwd->brcd", right, summed))
            weights.append(down.sum(1)[:, None] * right.sum(1))
    return sum(parts[1:], parts[0]) / sum(weights[1:], weights[0])[..., None]


def _kernel(wanted: Tensor, known: Tensor) -> Tensor:
    """(n, m) of coordinates (n,) and (m,)."""
    spacing = known[1] - known[0] if len(known) > 1 else known.new_ones(())
    return ((wanted[:, None] - known) / (BANDWIDTH * spacing)).square().mul(-0.5).exp()


def cell_centres(side: int, density: float, device: torch.device | str = "cpu") -> Tensor:
    """(d side,) coordinates of the centres of the d cells of each of so many patches, from 1."""
    count = round(density * side)
    return (torch.arange(count, device=device) + 0.5) / density + 0.5

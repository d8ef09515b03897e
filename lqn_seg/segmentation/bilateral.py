"""Joint bilateral upsampling: a control of what several views gain at boundaries.

Source: Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007, Eq. 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 2  # cells of the coarse grid to each side
SPATIAL, RANGE = 0.5, 0.1  # deviations: in cells, and of colours in 0..1


def upsample(logits: Tensor, guide: Tensor) -> Tensor:
    """(B, C, h, w) logits to (B, C, H, W), H >= h: means of the near cells, weighted by distance
    and by how alike the colours of the guide (B, 3, H, W), in 0..1, are there."""
    size = guide.shape[-2:]
    cells = F.interpolate(guide, logits.shape[-2:], mode="area")
    rows, columns = (
        # Of a fine pixel's centre, in coarse cells.
        (torch.arange(fine, device=logits.device) + 0.5) * coarse / fine - 0.5
        for fine, coarse in zip(size, logits.shape[-2:])
    )
    row, column = (places.round().long() for places in (rows, columns))
    places, exponents = [], []
    for down in range(-RADIUS, RADIUS + 1):
        for right in range(-RADIUS, RADIUS + 1):
            i = (row + down).clamp(0, logits.shape[-2] - 1)
            j = (column + right).clamp(0, logits.shape[-1] - 1)
            distance = (rows - row - down).square()[:, None] + (columns - column - right).square()
            unlike = (guide - _at(cells, i, j)).square().sum(1, keepdim=True)
            places.append((i, j))
            exponents.append(-distance / (2 * SPATIAL**2) - unlike / (2 * RANGE**2))
    # Softmax: the weights of a pixel that is unlike all cells underflow.
    weights = torch.stack(exponents).softmax(0)
    total = logits.new_zeros(*logits.shape[:2], *size)
    for weight, (i, j) in zip(weights, places):
        total = total + weight * _at(logits, i, j)
    return total


def _at(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return values[..., rows, :][..., columns]

"""Several views of a window: the window itself, and moved by half a patch.

Each goes through teacher, method and frozen head on its own; what the head says of them is joined
where it lies, on a grid that is at least twice as fine as the teacher's.

Shapes: B windows, V views of each, one view of all windows after the other; H x W patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.core.field import Placed, cell_centres, evaluate
from lqn_seg.teachers.base import Size

# (down, right) in patches, of the first so many views.
MOVES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0))
DENSITY = 2  # of the joined grid, at least


def views_of(pixels: Tensor, views: int, patch: Size) -> Tensor:
    """(B, 3, h, w) pixels to (V B, 3, h, w); `patch` is in pixels. What lies outside of a window
    repeats its edge."""
    if views == 1:
        return pixels
    return torch.cat([_moved(pixels, move, patch) for move in MOVES[:views]])


def _moved(pixels: Tensor, move: tuple[float, float], patch: Size) -> Tensor:
    down, right = (round(part * side) for part, side in zip(move, patch))
    return F.pad(pixels[..., down:, right:], (0, right, 0, down), mode="replicate")


def join(logits: Tensor, views: int, grid: Size) -> Tensor:
    """(V B, C, h, w) logits of the views to (B, C, h', w'), h' = max(h, `DENSITY` H) and w'
    likewise; `grid` is (H, W)."""
    if views == 1:
        return logits
    values = logits.movedim(1, -1).chunk(views)
    placed = [Placed.on(grid, part, move) for part, move in zip(values, MOVES)]
    rows, columns = (
        cell_centres(side, max(known / side, DENSITY), logits.device)
        for side, known in zip(grid, logits.shape[2:])
    )
    return evaluate(placed, rows, columns).movedim(-1, 1)

"""Token fields as pictures: three principal directions as red, green and blue, the same for every
map of a figure. Shapes: H x W grid, D features, n tokens."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lqn_seg.visualization.files import Pixels

Float = NDArray[np.floating]


def _colors(values: Float, low: Float, high: Float) -> Pixels:
    """(..., 3) values, `low` to `high`, to 0..255."""
    return (255 * ((values - low) / (high - low)).clip(0, 1)).round().astype(np.uint8)


def _stacked(maps: Sequence[Float]) -> Float:
    """(n, D) tokens of (H, W, D) maps together."""
    return np.concatenate([tokens.reshape(-1, tokens.shape[-1]) for tokens in maps])


def standardised(tokens: Float, teacher: Float) -> Float:
    """(H, W, D) tokens of a layer less the teacher's mean, over its deviation over all positions
    and features together: squared differences are errors over variance."""
    centred = teacher - teacher.mean((0, 1))
    return (tokens - teacher.mean((0, 1))) / max(float(np.sqrt(np.square(centred).mean())), 1e-12)


def shared_basis(maps: Sequence[Float]) -> Callable[[Float], Pixels]:
    """What colours an (H, W, D) map by the principal directions of standardised maps together. The
    largest entry of a direction is positive, whatever the linear algebra library."""
    tokens = _stacked(maps).astype(np.float64)
    _, vectors = np.linalg.eigh(tokens.T @ tokens / len(tokens))
    directions = vectors[:, ::-1][:, :3]
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    low, high = np.quantile(tokens @ directions, (0.01, 0.99), axis=0)
    high = np.maximum(high, low + 1e-12)
    return lambda tokens: _colors(tokens @ directions, low, high)

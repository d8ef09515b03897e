"""Token fields as pictures: three principal directions as red, green and blue.

One basis serves every map of a figure, teacher's and student's, so that colours can be compared.
Layers differ in scale by a factor of ten and more, so a layer is standardised first.

Shapes: H x W grid, D features, n tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError

Float = NDArray[np.floating]


@dataclass(frozen=True)
class ColorBasis:
    """How tokens become colours: (D, 3) orthonormal directions, and the range shown of each."""

    directions: Float
    low: Float
    high: Float

    def __call__(self, tokens: Float) -> NDArray[np.uint8]:
        """(H, W, D) standardised tokens to uint8 (H, W, 3)."""
        return _colors(tokens @ self.directions, self.low, self.high)


def _colors(values: Float, low: Float, high: Float) -> NDArray[np.uint8]:
    """(..., 3) values, `low` to `high`, to 0..255."""
    return (255 * ((values - low) / (high - low)).clip(0, 1)).round().astype(np.uint8)


def _stacked(maps: Sequence[Float]) -> Float:
    """(n, D) tokens of (H, W, D) maps together."""
    return np.concatenate([tokens.reshape(-1, tokens.shape[-1]) for tokens in maps])


def standardised(tokens: Float, teacher: Float) -> Float:
    """(H, W, D) tokens of a layer less the teacher's mean, over its deviation over all positions
    and features together."""
    centred = teacher - teacher.mean((0, 1))
    return (tokens - teacher.mean((0, 1))) / max(float(np.sqrt(np.square(centred).mean())), 1e-12)


def shared_basis(maps: Sequence[Float]) -> ColorBasis:
    """The principal directions of (H, W, D) standardised maps together.

    Signs are fixed (the largest entry of a direction is positive), so colours do not depend on the
    linear algebra library.
    """
    tokens = _stacked(maps).astype(np.float64)
    _, vectors = np.linalg.eigh(tokens.T @ tokens / len(tokens))
    directions = vectors[:, ::-1][:, :3]
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    low, high = np.quantile(tokens @ directions, (0.01, 0.99), axis=0)
    return ColorBasis(directions, low, np.maximum(high, low + 1e-12))


def tsne_maps(maps: Sequence[Float], seed: int = 0) -> list[NDArray[np.uint8]]:
    """The maps coloured by t-SNE of all their tokens together, in three dimensions.

    Raises:
        InputError: scikit-learn is not installed, or there are too few tokens.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError(
            "--projection tsne needs scikit-learn: pip install 'lqn_seg[figures]'"
        ) from error
    tokens = _stacked(maps)
    if len(tokens) < 8:
        raise InputError(f"--projection tsne needs at least 8 tokens, not {len(tokens)}")
    perplexity = min(30.0, (len(tokens) - 1) / 3)
    embedded = TSNE(3, perplexity=perplexity, init="pca", random_state=seed).fit_transform(tokens)
    colors = _colors(embedded, *np.quantile(embedded, (0.01, 0.99), axis=0))
    ends = np.cumsum([m.shape[0] * m.shape[1] for m in maps])[:-1]
    return [part.reshape(*m.shape[:2], 3) for part, m in zip(np.split(colors, ends), maps)]


def position_error(student: Float, teacher: Float) -> Float:
    """(H, W) squared error of each token over the teacher's variance at its layer.

    Its mean is the layer's error over variance: 1 for the mean token, 0 for the teacher's.
    """
    centred = teacher - teacher.mean((0, 1))
    variance = max(float(np.square(centred).sum(-1).mean()), 1e-24)
    return np.square(student - teacher).sum(-1) / variance

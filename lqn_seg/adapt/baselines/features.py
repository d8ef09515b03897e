"""What every method looks at: images encoded once, texts encoded once; and what many ask of them.

Shapes: B images, V views each, N patches, E joint features, C classes, S selected views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """B encoded images and the classes' texts, unit vectors all, in float32.

    Attributes:
        views: (B, V, E) features of the views; view 0 is the image itself.
        patches: (B, N, E) projected patch tokens of view 0.
        text: (C, E) class features.
        scale: what a cosine is multiplied by before the softmax.
    """

    views: Tensor
    patches: Tensor
    text: Tensor
    scale: float

    def logits(self) -> Tensor:
        """(B, V, C) class logits of every view."""
        return self.scale * self.views @ self.text.T


class Baseline:
    """`Features` to class probabilities (B, C).

    Attributes:
        views: whether it looks at random views of the image too.
        history: whether its answer to an image depends on those before it.
    """

    views: ClassVar[bool] = True
    history: ClassVar[bool] = False

    def __call__(self, features: Features) -> Tensor:
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the images before."""


def entropy(log_p: Tensor) -> Tensor:
    """(..., C) logarithms of probabilities to (...) entropies in nats."""
    return -(log_p.exp() * log_p).sum(-1)


def log_mean(log_p: Tensor) -> Tensor:
    """(..., S, C) logarithms of distributions to (..., C), that of their mean."""
    return log_p.logsumexp(-2) - math.log(log_p.shape[-2])


def marginal_entropy(logits: Tensor) -> Tensor:
    """(..., S, C) logits to (...): entropy of the views' mean distribution."""
    return entropy(log_mean(logits.log_softmax(-1)))


def confident_order(logits: Tensor) -> Tensor:
    """(..., V, C) logits to (..., V) views, the one of lowest entropy first; ties keep order."""
    return entropy(logits.log_softmax(-1)).argsort(dim=-1, stable=True)


def select_confident(logits: Tensor, fraction: float, rows: Tensor | None = None) -> Tensor:
    """Rows (..., V, .) of the int(share V) most confident views, at least one.

    Args:
        logits: (..., V, C), which decide.
        rows: what is selected; the logits themselves by default.
    """
    rows = logits if rows is None else rows
    count = selected_views(logits.shape[-2], fraction)
    confident = confident_order(logits)[..., :count, None]
    return rows.gather(-2, confident.expand(*confident.shape[:-1], rows.shape[-1]))


def selected_views(views: int, fraction: float) -> int:
    """How many of so many views a share is: rounded down, at least one."""
    return max(1, int(views * fraction))


def marginal_entropy_gradient(logits: Tensor) -> Tensor:
    """(..., S, C) logits to (..., C): how their marginal entropy changes with a bias on all.

    With p_s a view's distribution and m their mean, dH/db_c = -mean_s p_sc (log m_c - p_s . log m).
    """
    p = logits.softmax(-1)
    log_m = log_mean(logits.log_softmax(-1))
    expected = (p * log_m[..., None, :]).sum(-1, keepdim=True)
    return -(p * (log_m[..., None, :] - expected)).mean(-2)

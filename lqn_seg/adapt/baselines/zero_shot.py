"""The teacher as it is: an image's feature against the classes' texts, and the two controls.

``teacher CLS`` and ``teacher patch mean`` bound what a student of the teacher's tokens can reach:
one reads the token that the teacher was trained to be read by, the other the tokens that a student
is fitted to.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def class_probabilities(features: Tensor, text: Tensor, scale: float) -> Tensor:
    """(B, E) unit features and (C, E) unit texts to (B, C): softmax of scaled cosines."""
    return (scale * features @ text.T).softmax(-1)


def mean_direction(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """(B, N, E) unit features to (B, E): their (weighted) mean, unit length again."""
    if weights is not None:
        features = weights[..., None] * features
    return F.normalize(features.mean(1), dim=-1)

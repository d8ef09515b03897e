"""The teacher as it is: an image's feature against the classes' texts, and the two controls.

``teacher CLS`` and ``teacher patch mean`` bound what a student of the teacher's tokens can reach:
one is of the token that the teacher was trained to be read by, the other of the tokens that a
student is fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features


def class_probabilities(features: Tensor, text: Tensor, scale: float) -> Tensor:
    """(B, E) unit features and (C, E) unit texts to (B, C): softmax of scaled cosines."""
    return (scale * features @ text.T).softmax(-1)


def mean_direction(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """(B, N, E) unit features to (B, E): their (weighted) mean, unit length again."""
    if weights is not None:
        features = weights[..., None] * features
    return F.normalize(features.mean(1), dim=-1)


@dataclass(frozen=True)
class ZeroShot(Baseline):
    """text: (C, E) class features of prompts of its own; None for the run's."""

    views: ClassVar[bool] = False
    text: Tensor | None = None

    def __call__(self, features: Features) -> Tensor:
        text = features.text if self.text is None else self.text
        return class_probabilities(features.views[:, 0], text, features.scale)


class PatchMean(Baseline):
    """The mean direction of the patches in place of the image's feature."""

    views: ClassVar[bool] = False

    def __call__(self, features: Features) -> Tensor:
        return class_probabilities(mean_direction(features.patches), features.text, features.scale)

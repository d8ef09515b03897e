"""TDA: two caches of what was seen before, one of what images are and one of what they are not.

Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models" (CVPR 2024). No
gradients. It learns from the test stream: its answer to an image depends on those before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features, entropy, log_mean, select_confident


@dataclass(frozen=True)
class Cache:
    """The best few entries of each class, by their loss.

    Attributes:
        capacity: entries a class.
        entries: class -> [(loss, feature (E,), probabilities (C,))], the lowest loss first.
    """

    capacity: int
    entries: dict[int, list[tuple[float, Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, label: int, loss: float, feature: Tensor, p: Tensor) -> None:
        """Take an entry in where there is room, or in place of the class's worst."""
        kept = self.entries.setdefault(label, [])
        if len(kept) == self.capacity:
            if loss >= kept[-1][0]:
                return
            kept.pop()
        kept.append((loss, feature, p))
        kept.sort(key=lambda entry: entry[0])

    def keys(self) -> Tensor:
        """(K, E) features."""
        return torch.stack([entry[1] for kept in self.entries.values() for entry in kept])

    def probabilities(self) -> Tensor:
        """(K, C) what the teacher thought of them."""
        return torch.stack([entry[2] for kept in self.entries.values() for entry in kept])

    def labels(self) -> list[int]:
        """K pseudo-labels."""
        return [label for label, kept in self.entries.items() for _ in kept]


@dataclass(frozen=True)
class Tda(Baseline):
    """Attributes:
    keep: share of the views that an image is represented by, the most confident ones.
    positive_shots, positive_weight, positive_sharpness: capacity, alpha and beta of what is.
    negative_shots, negative_weight, negative_sharpness: likewise of what is not.
    gate: normalised entropies between which an image enters the negative cache.
    mask: probabilities between which a class counts as what an image is not.
    """

    history: ClassVar[bool] = True
    keep: float = 0.1
    positive_shots: int = 3
    positive_weight: float = 2.0
    positive_sharpness: float = 5.0
    negative_shots: int = 2
    negative_weight: float = 0.117
    negative_sharpness: float = 1.0
    gate: tuple[float, float] = (0.2, 0.5)
    mask: tuple[float, float] = (0.03, 1.0)
    positive: Cache = field(init=False, repr=False)
    negative: Cache = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        object.__setattr__(self, "positive", Cache(self.positive_shots))
        object.__setattr__(self, "negative", Cache(self.negative_shots))

    def __call__(self, features: Features) -> Tensor:
        """(B, C), the images taken in their order; each enters the caches before it is answered."""
        return torch.stack(
            [
                self._next(views, logits, features)
                for views, logits in zip(features.views, features.logits())
            ]
        )

    def _next(self, views: Tensor, logits: Tensor, features: Features) -> Tensor:
        feature = select_confident(logits, self.keep, views).mean(0)
        confident = select_confident(logits, self.keep)
        mean_logits, log_p = confident.mean(0), log_mean(confident.log_softmax(-1))
        loss, label = float(entropy(log_p)), int(mean_logits.argmax())
        p, classes = log_p.exp(), len(features.text)
        self.positive.add(label, loss, feature, p)
        if self.gate[0] < loss / math.log2(classes) < self.gate[1]:
            self.negative.add(label, loss, feature, p)
        answer = mean_logits
        one_hot = F.one_hot(torch.tensor(self.positive.labels(), device=p.device), classes)
        near = self._affinity(feature, self.positive, self.positive_sharpness)
        answer = answer + self.positive_weight * near @ one_hot.to(near.dtype)
        if self.negative.entries:
            known = self.negative.probabilities()
            against = ((known > self.mask[0]) & (known < self.mask[1])).to(near.dtype)
            near = self._affinity(feature, self.negative, self.negative_sharpness)
            answer = answer - self.negative_weight * near @ against
        return answer.softmax(-1)

    @staticmethod
    def _affinity(feature: Tensor, cache: Cache, sharpness: float) -> Tensor:
        """(K,) exp(-beta (1 - f . k))."""
        return (-sharpness * (1 - cache.keys() @ feature)).exp()

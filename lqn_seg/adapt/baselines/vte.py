"""VTE: the mean feature of the most confident views, against many prompts' mean.

Döbler et al., "A Lost Opportunity for Vision-Language Models: A Comparative Study of Online
Test-Time Adaptation for Vision-Language Models" (ECCV Workshops 2024). The prompts are the run's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features, select_confident
from lqn_seg.adapt.baselines.zero_shot import class_probabilities, mean_direction


@dataclass(frozen=True)
class Vte(Baseline):
    """Attributes:
    keep: share of the views that count, the most confident ones.
    """

    keep: float = 0.1

    def __call__(self, features: Features) -> Tensor:
        confident = select_confident(features.logits(), self.keep, features.views)
        return class_probabilities(mean_direction(confident), features.text, features.scale)

"""ZERO: a majority vote of the most confident views.

Farina et al., "Frustratingly Easy Test-Time Adaptation of Vision-Language Models" (NeurIPS 2024):
marginalising over views at zero temperature is voting. No gradients, nothing to tune.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features, confident_order, selected_views

# How much of a vote the tie-break is worth: it decides between equal counts and nothing else.
_TIE_BREAK = 0.5


@dataclass(frozen=True)
class Zero(Baseline):
    """Attributes:
    keep: share of the views that vote, the most confident ones.
    """

    keep: float = 0.3

    def __call__(self, features: Features) -> Tensor:
        """(B, C): each class's share of the votes.

        A tie goes to the class that the next most confident view votes for, among those tied.
        """
        logits = features.logits().float()
        views, classes = logits.shape[-2:]
        votes = logits.argmax(-1).gather(-1, confident_order(logits))  # (B, V), best view first
        count = selected_views(views, self.keep)
        # Views in the order in which they are asked about a tie: those left out first.
        asked = votes.roll(-count, -1)
        ballots = F.one_hot(votes[:, :count], classes).sum(1).float()
        named = F.one_hot(asked, classes).float()  # (B, V, C)
        first = named.argmax(1).where(named.any(1), views)  # (B, C) when a class is first named
        scores = ballots + _TIE_BREAK * (1 - first.float() / views) * (ballots > 0)
        # The tie-break is a thousandth of itself, so that shares of votes stay what they are.
        fractions = ballots + 1e-3 * (scores - ballots)
        return fractions / fractions.sum(-1, keepdim=True)

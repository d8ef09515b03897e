"""The paper's two losses (Eqs. 3-5) and the entropy objective of its ablation.

Tokens are (B, n, D): B students, n positions, D features. Every loss is (B,), one number per
student. The squared norms of the paper are *means* over positions and features here ("an MSE loss",
section 3.2.2): the same scale for every n and D. Adam does not see a constant factor as long as
gradients are large beside its eps; the literal recipe's are not (its N(0, 0.01^2) start leaves the
hidden layers gradients below 1e-8), so there it moves about half as far as with sums. It stays at
the mean token either way.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def binding_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L_B = |S(Src0, Dest, x) - Y[dest]|^2 (Eq. 3)."""
    return F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2))


def recirculation_loss(from_source1: Tensor, from_source2: Tensor) -> Tensor:
    """L_R = |S(Src1, Dest, x) - S(Src2, Dest, x)|^2 (Eq. 4)."""
    return F.mse_loss(from_source1, from_source2, reduction="none").mean(dim=(1, 2))


def total_loss(binding: Tensor, recirculation: Tensor, alpha: float) -> Tensor:
    """L_B + alpha L_R (Eq. 5)."""
    return binding + alpha * recirculation


def entropy_loss(logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of the class distributions of (B, n, C) logits: what the ablation
    "L2 outperforms entropy minimisation" puts in L_B's place."""
    log_p = logits.float().log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean(dim=1)

"""SITTA: the encoder learns its own answer, class by class, so that small classes count as much.

Janouskova, Shor, Baskin and Matas, "Single Image Test-Time Adaptation for Segmentation" (TMLR
2024): of its methods the best without a network of its own, pseudo-labels under a soft IoU loss.
All weights of the layers are learnt.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lqn_seg.adapt.dense.encoder import OneImage, OnSteps, all_weights
from lqn_seg.adapt.dense.settings import Sitta
from lqn_seg.teachers.base import Teacher


class OnSitta(OnSteps[Sitta]):
    def parameters(self, teacher: Teacher[Any]) -> list[nn.Parameter]:
        return all_weights(teacher)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.chosen, lr=self.settings.learning_rate, momentum=0.9)

    def loss(self, image: OneImage) -> Tensor:
        p = image.log_p(image.see()).exp().flatten(0, -2)
        return soft_iou_loss(p, p.argmax(-1))


def soft_iou_loss(p: Tensor, labels: Tensor) -> Tensor:
    """() 1 - mean over all classes of the IoU between probabilities (m, C) and labels (m,); unions
    are a pixel larger than they are. A class that no label has gives no gradient."""
    truth = F.one_hot(labels, p.shape[-1]).to(p.dtype)
    shared = (p * truth).sum(0)
    return 1 - (shared / ((p + truth).sum(0) - shared + 1)).mean()

"""TENT: the norms learn to lower the entropy of each pixel's answer.

Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization" (ICLR 2021), whose dense
experiment starts afresh for every image and takes ten steps. An EoMT's answer at a pixel is the
share of each class in its semantic scores.
"""

from __future__ import annotations

from torch import Tensor

from lqn_seg.adapt.baselines.features import entropy
from lqn_seg.adapt.dense.encoder import OneImage, OnSteps
from lqn_seg.adapt.dense.settings import Tent


class OnTent(OnSteps[Tent]):
    def loss(self, image: OneImage) -> Tensor:
        return entropy(image.log_p(image.see())).mean()

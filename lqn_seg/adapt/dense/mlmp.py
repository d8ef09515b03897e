"""MLMP: entropy of the answer to several layers' tokens together.

Noori et al., "Test-Time Adaptation of Vision-Language Models for Open-Vocabulary Semantic
Segmentation" (NeurIPS 2025). The norms learn to lower the entropy of what the head says of the
layers' mean; the answer weighs each layer by how sure the head is of it alone. Its further terms (a
CLS token's, one for each of several prompts) need a text tower. The paper joins what attention adds
in each layer of a CLIP; a frozen head reads tokens, so tokens are joined here, each layer's brought
to the last one's mean and deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lqn_seg.adapt.baselines.features import entropy
from lqn_seg.adapt.dense.encoder import OneImage, OnSteps, Seen, log_p
from lqn_seg.adapt.dense.settings import Mlmp


class OnMlmp(OnSteps[Mlmp]):
    def loss(self, image: OneImage) -> Tensor:
        seen = image.see()
        joined = self._layers(seen).mean(1)
        return entropy(log_p(image.task, joined, seen.context)).mean()

    @torch.no_grad()
    def answer(self, image: OneImage) -> Seen:
        """The layers' tokens, joined, in the last layer's place."""
        seen = image.see()
        layers = self._layers(seen)[0]
        unsure = [entropy(log_p(image.task, x[None], seen.context)).mean() for x in layers]
        weights = (-torch.stack(unsure)).softmax(0).to(layers.dtype)
        joined = (weights[:, None, None, None] * layers).sum(0)
        return Seen(joined[None, None], seen.context)

    def _layers(self, seen: Seen) -> Tensor:
        """(1, l, H, W, D) tokens of the last layers, at the scale of the last one's."""
        count = max(round(self.settings.layers * seen.field.shape[1]), 1)
        layers = seen.field[:, -count:]
        deviation, mean = torch.std_mean(layers, (2, 3), keepdim=True)
        last_deviation, last_mean = deviation[:, -1:], mean[:, -1:]
        return (layers - mean) / deviation.clamp(min=1e-6) * last_deviation + last_mean

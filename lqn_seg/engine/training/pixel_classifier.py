"""An auxiliary loss for training a teacher: a linear classifier of its last patch tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EomtForUniversalSegmentation

IGNORE = -1  # what `pixel_labels` gives pixels of no segment


class PixelClassifier(nn.Module):
    """Patch tokens to a class per pixel, for training only: the exported teacher is without it.

    Set prediction reaches the patch tokens through a matching that is random at first. A per-pixel
    cross-entropy tells every token its class from the first iteration on.

    Shapes: B images, Q + P query and prefix tokens before H W patch tokens of D features.
    """

    def __init__(self, model: EomtForUniversalSegmentation) -> None:
        super().__init__()
        config = model.config
        self.grid: tuple[int, int] = model.grid_size
        self.first_patch: int = config.num_queries + model.embeddings.num_prefix_tokens
        self.linear = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled pixels; 0 where none is.

        Args:
            tokens: (B, Q + P + H W, D) last layer's tokens, normed (``last_hidden_state``).
            labels: (B, h, w) int64 classes, ``IGNORE`` where unlabelled.
        """
        logits = self.linear(tokens[:, self.first_patch :]).float()
        logits = logits.transpose(1, 2).unflatten(2, self.grid)
        logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear")
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp(min=1)

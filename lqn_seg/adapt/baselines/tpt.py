"""TPT: the words before the class name are learned for every image, through the text tower.

Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models"
(NeurIPS 2022): four context embeddings shared by all classes, started at "a photo of a".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features, marginal_entropy, select_confident
from lqn_seg.errors import InputError
from lqn_seg.teachers.clip import ClipTeacher

CONTEXT = "a photo of a"
# Half-precision gradients of the first layers underflow without it; AdamW does not see it.
_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class Tpt(Baseline):
    """Attributes:
    teacher: whose text tower is run, and run back through.
    class_names: in the order of the labels.
    keep: share of the views whose marginal entropy is lowered, the most confident ones.
    learning_rate, steps: of AdamW; context and optimiser start afresh for every image.
    """

    teacher: ClipTeacher
    class_names: Sequence[str]
    keep: float = 0.1
    learning_rate: float = 5e-3
    steps: int = 1
    tokens: Tensor = field(init=False, repr=False)
    embedded: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tokens = self.teacher.tokenize([f"{CONTEXT} {name}." for name in self.class_names])
        words = len(CONTEXT.split())
        if not (tokens[:, 1 : words + 1] == tokens[0, 1 : words + 1]).all():
            raise InputError(f"tpt needs a tokenizer that gives each word of {CONTEXT!r} one token")
        with torch.no_grad():
            embedded = self.teacher.token_embedding(tokens)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "embedded", embedded)

    @property
    def words(self) -> int:
        return len(CONTEXT.split())

    def __call__(self, features: Features) -> Tensor:
        """(B, C): what view 0 is classified as with the tuned context.

        One image after the other: a batch of them would hold as many text towers' activations.
        """
        answers = [self._tune(views, features.scale) for views in features.views]
        return torch.stack(answers)

    def _tune(self, views: Tensor, scale: float) -> Tensor:
        start = self.embedded[0, 1 : self.words + 1]
        with torch.enable_grad():
            context = start.clone().requires_grad_()
            optimizer = torch.optim.AdamW([context], lr=self.learning_rate)
            confident = views
            for step in range(self.steps):
                logits = scale * confident @ self.text(context).T
                if step == 0:  # which views are confident is settled by the untuned prompt
                    confident = select_confident(logits.detach(), self.keep, views)
                    logits = select_confident(logits, self.keep)
                loss = marginal_entropy(logits)
                (gradient,) = torch.autograd.grad(_LOSS_SCALE * loss, context)
                context.grad = gradient / _LOSS_SCALE
                optimizer.step()
        with torch.no_grad():
            return (scale * views[0] @ self.text(context).T).softmax(-1)

    def text(self, context: Tensor) -> Tensor:
        """(C, E) unit features of the classes, with the (4, d) context before their names."""
        rest = self.embedded[:, self.words + 1 :]
        shared = context.expand(len(rest), -1, -1)
        prompts = torch.cat([self.embedded[:, :1], shared, rest], 1)
        return self.teacher.encode_text(self.tokens, prompts)

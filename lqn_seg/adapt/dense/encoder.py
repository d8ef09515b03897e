"""What the methods share that change an encoder for an image: its weights, and what the head says.

The head is frozen, as it is for a student. Where a method's paper adapts its norms too, that is a
departure: here what every method hands over are tokens.

Shapes: B images, L layers, H x W grid, D features, C classes, m pixels of the head's map.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from lqn_seg.adapt.dense.settings import Learning
from lqn_seg.adapt.journey import Answer, Images, Method, Pass, Task
from lqn_seg.core.random import RandomKey
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Teacher

SettingsT = TypeVar("SettingsT", bound=Learning)
Parameters = Sequence[nn.Parameter]


@dataclass(frozen=True)
class Seen:
    """What the encoder, as it is now, makes of B images: field (B, L, H, W, D) and context."""

    field: Tensor
    context: Any


@dataclass(frozen=True)
class OneImage:
    """An image and what looks at it: pixels (1, 3, h, w) in 0..1."""

    images: Images
    task: Task
    pixels: Tensor
    key: RandomKey

    def see(self, pixels: Tensor | None = None) -> Seen:
        """The teacher's pass over the image, or over B copies of it (B, 3, h, w), with gradients
        where they are on."""
        inputs = self.images.inputs(self.pixels if pixels is None else pixels)
        return Seen(*self.images.teacher.forward(inputs))

    def log_p(self, seen: Seen, mirrored: Tensor | None = None) -> Tensor:
        """`log_p` of the last layer; of copies, (B,) bool, that are mirrored the tokens are turned
        back."""
        tokens = seen.field[:, -1]
        if mirrored is not None:
            tokens = torch.where(mirrored[:, None, None, None], tokens.flip(2), tokens)
        return log_p(self.task, tokens, seen.context)


def log_p(task: Task, tokens: Tensor, context: Any) -> Tensor:
    """(B, h, w, C) logarithms of each pixel's class probabilities, of tokens (B, H, W, D)."""
    return task.log_scores(tokens, context).float().movedim(1, -1).log_softmax(-1)


class OnWeights(Method, Generic[SettingsT]):
    """Learns weights of the encoder from one image after another, each afresh or, marked
    ``continual``, from where the last one left them.

    A sub-class says which weights (`parameters`) and how (`learn`).

    Raises:
        RuntimeError: called under `torch.inference_mode()`.
    """

    def __init__(self, settings: SettingsT, teacher: Teacher[Any]) -> None:
        super().__init__(teacher)
        self.settings, self.teachers = settings, [teacher]  # that see the learnt weights
        self.history = settings.continual
        self.chosen = self.parameters(teacher)
        self.source = [parameter.detach().float() for parameter in self.chosen]
        self.reset()

    def reset(self) -> None:
        """Forget the images before."""
        self.kept: list[Tensor] | None = None

    @abstractmethod
    def parameters(self, teacher: Teacher[Any]) -> Parameters:
        """The weights that are learnt."""

    @abstractmethod
    def learn(self, image: OneImage) -> Seen:
        """Change the weights by an image, with gradients on; what the result makes of it."""

    def encode(self, images: Images) -> Pass:
        # The teacher's answer is what failures fall back to. Its time is not this method's: every
        # pass that the method needs is counted as its fit.
        return replace(images.encode(), ms=0.0)

    def mixing_weight(self, images: Images, seen: Pass) -> Tensor:
        return torch.ones(len(images.pixels), device=images.teacher.device)

    def fit(self, images: Images, seen: Pass) -> Callable[[], Answer]:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("learning needs gradients, which torch.inference_mode forbids")
        if self.history and len(images.pixels) > 1:
            raise InputError("a continual method takes one image at a time: set MODEL.LQN.BATCH 1")
        assert images.task is not None
        singles = [
            OneImage(images, images.task, pixels[None], key)
            for pixels, key in zip(images.pixels, images.keys)
        ]
        learnt = [self._one(image) for image in singles]
        tokens = torch.cat([one.field[:, -1] for one in learnt])
        context = torch.cat([one.context.last for one in learnt])
        return lambda: Answer(tokens, context)

    @contextmanager
    def weights(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Within, the learnt weights have other values."""
        before = [parameter.data for parameter in self.chosen]
        _set(self.chosen, values)
        try:
            yield
        finally:
            _set(self.chosen, before)

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Within, layers whose lowered weights are learnt compute in float32: rounding to 16 bits
        would swallow most of a small step."""
        lowered = [t for t in self.teachers if any(p.dtype != torch.float32 for p in self.chosen)]
        for teacher in lowered:
            teacher.layer_precision = "float32"
        try:
            yield
        finally:
            for teacher in lowered:
                teacher.layer_precision = teacher.precision

    def _one(self, image: OneImage) -> Seen:
        with self._in_float32(), trainable(self.chosen), torch.enable_grad():
            _set(self.chosen, [kept.clone() for kept in self.kept or ()])
            seen = self.learn(image)
            if self.history and seen.field[:, -1].isfinite().all():
                self.kept = [parameter.detach().clone() for parameter in self.chosen]
        return seen


class OnSteps(OnWeights[SettingsT]):
    """Learns by steps on a loss: of the norms' gains and shifts, by Adam."""

    def parameters(self, teacher: Teacher[Any]) -> Parameters:
        return norms(list(teacher.blocks))

    def learn(self, image: OneImage) -> Seen:
        optimizer = self.optimizer()
        for _ in range(self.settings.steps):
            self.step(image, optimizer)
        return self.answer(image)

    @torch.no_grad()
    def answer(self, image: OneImage) -> Seen:
        """What the encoder makes of the image in the end."""
        return image.see()

    def step(self, image: OneImage, optimizer: torch.optim.Optimizer) -> None:
        """One step on the `loss`."""
        optimizer.zero_grad()
        self.loss(image).backward()
        optimizer.step()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.chosen, lr=self.settings.learning_rate)

    def loss(self, image: OneImage) -> Tensor:
        """() of the weights as they are."""
        raise NotImplementedError


def norms(blocks: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Gains and shifts of all layer norms of some layers."""
    found = [m for block in blocks for m in block.modules() if isinstance(m, nn.LayerNorm)]
    return [parameter for norm in found for parameter in (norm.weight, norm.bias)]


def all_weights(teacher: Teacher[Any]) -> list[nn.Parameter]:
    """Of all layers: not the embeddings' and the head's."""
    return [parameter for block in teacher.blocks for parameter in block.parameters()]


def _set(parameters: Parameters, values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values):
        parameter.data = value


@contextmanager
def trainable(parameters: Parameters) -> Iterator[None]:
    """A frozen model's parameters in float32 and with gradients; on leaving they are what they
    were, to the bit."""
    before = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = parameter.data.float().clone()
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        _set(parameters, before)

"""The journey of an image, for segmentation and classification alike.

    teacher, aligned on the way -> fit -> query -> mix -> fall back

Shapes: B images, the first S of which have a student each; L x H x W grid, D features, K context
tokens (an EoMT's queries, a CLIP's CLS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lqn_seg.adapt.denoise import remove_noise
from lqn_seg.adapt.ineffective import why_ineffective
from lqn_seg.adapt.timing import Clock, is_out_of_memory
from lqn_seg.core.alignment import Aligner, Calibration
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.random import RandomKey
from lqn_seg.teachers.base import Teacher, normalise


@dataclass
class Pass:
    """One run of the teacher over B images.

    Attributes:
        field: (B, L, H, W, D); (B, 1, H, W, D) where the last layer is enough.
        context: what the frozen rest of the teacher needs beside the patch tokens.
        ms: of the run.
        damage, damaged: (B,) deviation from clean images, and whether it is more than theirs; None
            where it was not measured.
        last: (B, H, W, D) in place of the field's last layer, where several runs were averaged.
    """

    field: Tensor
    context: Any
    ms: float
    damage: Tensor | None = None
    damaged: Tensor | None = None
    last: Tensor | None = None

    def tokens(self, layer: int) -> Tensor:
        """(B, H, W, D) tokens of a layer; where there is but the last one, of that."""
        depth = self.field.shape[1]
        if self.last is not None and layer >= depth:
            return self.last
        return self.field[:, min(layer, depth) - 1]


class Task(Protocol):
    """What the frozen head says of tokens: for ablations that need it."""

    def log_scores(self, tokens: Tensor, context: Any) -> Tensor:
        """(B, H, W, D) last-layer tokens, of any grid, to a map (B, C, h, w) of scores."""

    def segments(self, seen: Pass) -> Tensor:
        """(B, H, W) int64, the segment or class that each position belongs to."""


class Images:
    """B images before one teacher. Each kind of pass is made once, whichever methods share it.

    Args:
        pixels: (B, 3, h, w) in 0..1: of `views` views, one after the other.
        keys: B random keys.
        calibration: the teacher's clean ranges; without it nothing is aligned.
        whole: where the images are windows of one: that image (3, height, width) uint8 and how
            its windows lie.
        moves: (down, right) in patches of each view, where the views are the image itself, moved.
        last_alone: whether a pass needs to hold the last layer alone.
    """

    def __init__(
        self,
        teacher: Teacher[Any],
        pixels: Tensor,
        keys: Sequence[RandomKey],
        calibration: Calibration | None = None,
        task: Task | None = None,
        views: int = 1,
        whole: tuple[Tensor, Any] | None = None,
        moves: Sequence[tuple[float, float]] = (),
        last_alone: bool = False,
    ) -> None:
        self.teacher, self.pixels, self.keys = teacher, pixels, keys
        self.calibration, self.task, self.views, self.whole = calibration, task, views, whole
        self.moves, self.last_alone = moves, last_alone
        self.passes: dict[str, Pass] = {}

    def inputs(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..1 as the teacher takes them."""
        return normalise(pixels, self.teacher.pixel_mean, self.teacher.pixel_std)

    def encode(self, aligned: bool = False) -> Pass:
        """The teacher's pass over the images."""
        name = "aligned" if aligned and self.calibration is not None else "plain"
        return self.once(name, lambda: self.encode_pixels(self.pixels, aligned))

    def once(self, name: str, make: Callable[[], Pass]) -> Pass:
        """A pass by its name, made at the first call."""
        if name not in self.passes:
            self.passes[name] = make()
        return self.passes[name]

    def encode_pixels(self, pixels: Tensor, aligned: bool = False) -> Pass:
        """A pass over other pixels, of these images' number and size."""
        clock = Clock(self.teacher.device)
        aligner = None
        if aligned and self.calibration is not None:
            aligner = Aligner(self.calibration)
            pixels = remove_noise(pixels, self.calibration.noise)
        tokens, context = self.teacher.encode(self.inputs(pixels), aligner, self.last_alone)
        seen = Pass(tokens, context, clock.lap())
        if aligner is not None:
            seen.damage, seen.damaged = aligner.damage, aligner.damaged
        return seen

    def damaged(self) -> Tensor:
        """(B,) bool, more damage than clean images show; False without a calibration."""
        for seen in self.passes.values():
            if seen.damaged is not None:
                return seen.damaged
        if self.calibration is None:
            return torch.zeros(len(self.pixels), dtype=torch.bool, device=self.teacher.device)
        aligner = Aligner(self.calibration)
        aligner(0, self.teacher.embed(self.inputs(self.pixels)))
        return aligner.damaged


class Answer(NamedTuple):
    """What S students (or a function) say: tokens (S, H, W, D), context tokens (S, K, D) or None,
    and whether each student's fit was finite, (S,) bool on the CPU."""

    tokens: Tensor
    context: Tensor | None = None
    finite: Tensor | None = None


class Method:
    """One way to adapt to an image. The base class is the teacher itself, aligned or not.

    A method says how the teacher sees the images (`encode`), how much its own answer counts
    (`mixing_weight`), and gives it in two steps, so that each can be timed: `fit` does the work
    and returns the query.

    Attributes:
        layer: whose tokens it answers with.
        views: of an image, that it wants (`segmentation.views`); ablations have one.
        bilateral: whether what the head says is enlarged along the image's edges.
        student: whether it fits something to the image.
        whole_image: whether it wants all windows of an image at once.
        precision: of its own matrix products; empty where there are none.
        history: whether its answer to an image depends on those before it.
        last_alone: whether it reads no layer of a pass but the last.
    """

    history = False
    views = 1
    bilateral = False
    student = False
    whole_image = False
    precision = ""

    def __init__(
        self,
        teacher: Teacher[Any],
        aligned: bool = False,
        layer: int = 0,
        recipe: LQNConfig | None = None,
    ) -> None:
        self.aligned, self.layer, self.recipe = aligned, layer or teacher.num_layers, recipe
        self.views = recipe.views if recipe else 1
        self.last_alone = type(self).fit is Method.fit and self.layer == teacher.num_layers

    def reset(self) -> None:
        """Forget the images before."""

    def encode(self, images: Images) -> Pass:
        return images.encode(self.aligned)

    def mixing_weight(self, images: Images, seen: Pass) -> Tensor | None:
        """(S,) in 0..1, or None where it has no answer but the teacher's."""
        return None

    def fit(self, images: Images, seen: Pass) -> Callable[[], Answer]:
        raise NotImplementedError

    def ineffective(self, name: str, calibrated: bool) -> str:
        """What the method of that name leaves undone, in one sentence; empty for nothing."""
        return why_ineffective(name, self.recipe, calibrated) if self.recipe else ""

    def check(self, images: Images) -> None:
        """Raises InputError where the method cannot answer for such images."""


@dataclass
class Adapted:
    """What came of B images.

    Attributes:
        tokens: (B, H, W, D) of the method's layer.
        context: (B, K, D) last-layer context tokens.
        seen: the teacher's pass that it started from.
        weight: (S,) mixing weight of the method's own answer; None where it has none.
        fallback: (S,) bool on the CPU, where that answer failed and the teacher's counts.
        fit_ms, query_ms: of all S together.
    """

    tokens: Tensor
    context: Tensor
    seen: Pass
    weight: Tensor | None = None
    fallback: Tensor = field(kw_only=True)
    fit_ms: float = 0.0
    query_ms: float = 0.0


def adapt(method: Method, images: Images) -> Adapted:
    """Adapt to images: align, fit, query, mix, fall back.

    A student that runs out of memory, or whose loss or answer is not finite, loses no image: the
    teacher's tokens count for it.
    """
    seen = method.encode(images)
    clock = Clock(images.teacher.device)
    failed = torch.zeros(len(seen.field), dtype=torch.bool)
    adapted = Adapted(seen.tokens(method.layer), seen.context.last, seen, fallback=failed)
    weight = adapted.weight = method.mixing_weight(images, seen)
    if weight is None:
        return adapted
    adapted.fit_ms = clock.lap()
    adapted.fallback = failed[: len(weight)]
    if not weight.any():
        return adapted
    try:
        query = method.fit(images, seen)
        adapted.fit_ms += clock.lap()
        answer = query()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        adapted.fallback = (weight > 0).cpu()
        return adapted
    adapted.query_ms = clock.lap()
    finite = answer.tokens.flatten(1).isfinite().all(1).cpu()
    if answer.finite is not None:
        finite &= answer.finite
    adapted.fallback = ~finite & (weight > 0).cpu()
    counts = finite.to(weight.device) & (weight > 0)
    adapted.tokens = mix(adapted.tokens, answer.tokens, weight, counts)
    if answer.context is not None:
        adapted.context = mix(adapted.context, answer.context, weight, counts)
    return adapted


def mix(teacher: Tensor, answer: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """(B, ...) teacher's tokens, with (S,) `weight` of the answer (S, ...) mixed into the first S
    of them where `counts`, (S,) bool."""
    shape = (-1,) + (1,) * (teacher.ndim - 1)
    first = teacher[: len(weight)]
    mixed = torch.lerp(first.float(), answer.float(), weight.view(shape)).to(teacher.dtype)
    mixed = torch.where(counts.view(shape), mixed, first)
    return mixed if len(weight) == len(teacher) else torch.cat([mixed, teacher[len(weight) :]])


def centred(tokens: Tensor) -> Tensor:
    """(B, H, W, D) tokens less their mean over positions."""
    return tokens - tokens.mean((1, 2), keepdim=True)


def over_variance(part: Tensor, tokens: Tensor) -> float:
    """Mean square of a part over the variance of (B, H, W, D) tokens over their positions."""
    return (part.square().mean() / centred(tokens).square().mean()).item()

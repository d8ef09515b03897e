"""Teacher, method, head: images in, one prediction per method and image out.

An image meets the teacher in windows, and each of these in one view or several; each method gives
its tokens for them (`adapt.journey`); the frozen head turns tokens into masks and classes.

Shapes: B windows side by side, V views of each, S = teacher input, L x H x W grid, D features, Q
queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.dense.settings import MultiScale
from lqn_seg.adapt.ineffective import warn
from lqn_seg.adapt.journey import Adapted, Images, Pass, adapt, centred
from lqn_seg.adapt.methods import Method, SegmentationConfig
from lqn_seg.adapt.registry import make_method
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.adapt.timing import Clock
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.random import RandomKey, image_key
from lqn_seg.errors import InputError
from lqn_seg.segmentation.baselines import UniversalModel
from lqn_seg.segmentation.bilateral import upsample
from lqn_seg.segmentation.other_sizes import OtherSizes
from lqn_seg.segmentation.postprocess import (
    class_scores,
    instance_inference,
    merged_scores,
    panoptic_inference,
)
from lqn_seg.segmentation.views import MOVES, join, views_of
from lqn_seg.segmentation.windows import (
    PaddedWindow,
    Size,
    SlidingWindows,
    layout_of,
    resize_scores,
)
from lqn_seg.teachers.base import PrefixContext
from lqn_seg.teachers.dinov2 import Dinov2Teacher
from lqn_seg.teachers.eomt import EomtTeacher
from lqn_seg.teachers.eomt_head import EomtHead
from lqn_seg.teachers.linear_head import LinearHead

_TIMES = ("teacher_ms", "fit_ms", "query_ms", "head_ms")


@dataclass
class Prediction:
    """One method's answer for one image.

    Attributes:
        output: ``sem_seg`` (C, h, w), ``panoptic_seg`` (id map, segments), ``instances``, as asked.
        stats: milliseconds of this image's share of the work (``teacher_ms``, ``fit_ms``,
            ``query_ms``, ``head_ms``), ``token_cos`` and ``error_over_variance`` of the answer
            against the teacher's last layer, ``windows``, and 1 in ``fallback`` where the student
            failed and the teacher's tokens counted instead.
    """

    output: dict[str, Any]
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Window:
    """One teacher input.

    image: which image it is from.
    whole: that image, (3, height, width) uint8.
    pixels: (3, *S) uint8.
    """

    image: int
    whole: Tensor
    layout: PaddedWindow | SlidingWindows
    pixels: Tensor
    key: RandomKey


class Segmenter:
    """Runs any number of methods on the same teacher pass.

    Args:
        teacher, head: frozen.
        methods: name -> recipe, control, function, or None for the teacher itself.
        thing_ids: contiguous ids of the classes that have instances.
        config: outputs and protocol.
        calibration: the teacher's clean ranges. Without it nothing is aligned, and a method that
            mixes by noise answers as the teacher does: `ineffective` says so, and the first call
            warns.
        baselines: the models of those methods that are other models altogether.
        class_map: for each of the head's classes the data set's that it counts as; empty where the
            classes are the same.

    Raises:
        InputError: a function of the user's does not answer with tokens, or the head or the map
            cannot make the outputs that are wanted.
    """

    def __init__(
        self,
        teacher: EomtTeacher | Dinov2Teacher,
        head: EomtHead | LinearHead,
        methods: Mapping[str, Method],
        thing_ids: frozenset[int],
        config: SegmentationConfig,
        calibration: Calibration | None = None,
        baselines: Mapping[str, UniversalModel] | None = None,
        class_map: Sequence[int] = (),
    ) -> None:
        self.teacher, self.head, self.methods = teacher, head, dict(methods)
        self.class_map = tuple(class_map)
        self.baselines = dict(baselines or {})
        self.thing_ids, self.config, self.calibration = thing_ids, config, calibration
        if (self.class_map or isinstance(head, LinearHead)) and self.tasks != ["semantic"]:
            why = "a linear head has no segments"
            why = "merged classes have no segments" if self.class_map else why
            raise InputError(
                f"MODEL.MASK_FORMER.TEST: {why}, so SEMANTIC_ON alone can be True, not PANOPTIC_ON "
                "or INSTANCE_ON"
            )
        self.other_sizes = {
            name: self._other_sizes(name, method)
            for name, method in self.methods.items()
            if isinstance(method, MultiScale)
        }
        self.adapters = {
            name: make_method(method, teacher)
            for name, method in self.methods.items()
            if name not in (*self.other_sizes, *self.baselines)
        }
        self.per_image = any(adapter.whole_image for adapter in self.adapters.values())
        self._check_methods()

    @torch.no_grad()
    def _check_methods(self) -> None:
        """Let functions of the user's answer to noise once, so that a wrong shape is named now."""
        shape = (self.config.batch, 3, *self.teacher.image_size)
        pixels = torch.rand(shape, generator=torch.Generator().manual_seed(self.config.seed))
        noise = Images(self.teacher, pixels.to(self.teacher.device), [])
        for adapter in self.adapters.values():
            adapter.check(noise)

    def _other_sizes(self, name: str, settings: MultiScale) -> OtherSizes:
        made = OtherSizes([self._at_scale(scale) for scale in settings.scales], settings.flip)
        if len(made.passes) > 1 and self.tasks != ["semantic"]:
            raise InputError(
                f"method {name} averages class scores, so MODEL.MASK_FORMER.TEST.SEMANTIC_ON alone "
                "can be True, not PANOPTIC_ON or INSTANCE_ON"
            )
        return made

    def _at_scale(self, scale: float) -> Segmenter:
        """The teacher alone, whom images meet in windows of another size."""
        teacher = self.teacher.at_scale(scale)
        head = type(self.head)(teacher.model, teacher.precision)
        parts = teacher, head, {"teacher": None}, self.thing_ids, self.config
        return Segmenter(*parts, class_map=self.class_map)

    @property
    def history(self) -> bool:
        """Whether a method's answer to an image depends on those before it."""
        return any(adapter.history for adapter in self.adapters.values())

    def reset(self) -> None:
        """Forget what methods with a history have seen: a new stream of images begins."""
        for adapter in self.adapters.values():
            adapter.reset()

    @property
    def precisions(self) -> dict[str, str]:
        """What each student's matrix products are computed in: ``auto`` depends on the machine."""
        return {name: a.precision for name, a in self.adapters.items() if a.precision}

    @property
    def ineffective(self) -> dict[str, str]:
        """Methods that do nothing, or not all that they say, with the reason and the remedy."""
        calibrated = self.calibration is not None
        reasons = {name: a.ineffective(name, calibrated) for name, a in self.adapters.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def tasks(self) -> list[str]:
        """The outputs that are made, by OneFormer's words for them."""
        wanted = {
            "semantic": self.config.semantic,
            "panoptic": self.config.panoptic,
            "instance": self.config.instances,
        }
        return [task for task, on in wanted.items() if on]

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Tensor], sizes: Sequence[Size] | None = None
    ) -> list[dict[str, Prediction]]:
        """Predictions by method name, one dict per image.

        Args:
            images: (3, height, width) uint8 RGB each, of any size.
            sizes: (height, width) that the outputs shall have; by default each image's own.

        Raises:
            InputError: an image has another type or shape.
        """
        warn(self.ineffective.values())
        with fixed_threads(self.config.threads):
            return self._predict(images, sizes)

    def _predict(
        self, images: Sequence[Tensor], sizes: Sequence[Size] | None
    ) -> list[dict[str, Prediction]]:
        layouts = [self._layout(image) for image in images]
        sizes = sizes or [layout.image_size for layout in layouts]
        parts: list[dict[str, list[_Part]]] = [{} for _ in images]
        for chunk in self._chunks(self._windows(images, layouts) if self.adapters else []):
            for name, results in self._run_chunk(chunk).items():
                for window, part in zip(chunk, results):
                    parts[window.image].setdefault(name, []).append(part)
        predictions = [
            {name: self._finish(layout, windows, size) for name, windows in by_name.items()}
            for size, layout, by_name in zip(sizes, layouts, parts)
        ]
        for name, other in self.other_sizes.items():
            for by_name, prediction in zip(predictions, other(images, sizes)):
                by_name[name] = prediction
        for image, size, by_name in zip(images, sizes, predictions):
            for name, model in self.baselines.items():
                by_name[name] = self._compare(model, image, size)
        return [{name: by_name[name] for name in self.methods} for by_name in predictions]

    def _layout(self, image: Tensor) -> PaddedWindow | SlidingWindows:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise InputError(
                f"an image must be a (3, height, width) uint8 tensor, got {image.dtype} "
                f"{tuple(image.shape)}"
            )
        return layout_of(image, self.teacher, self.config.inference)

    def _windows(
        self, images: Sequence[Tensor], layouts: Sequence[PaddedWindow | SlidingWindows]
    ) -> list[_Window]:
        return [
            _Window(
                index, image, layout, crop, image_key(self.config.seed, image.contiguous(), number)
            )
            for index, (image, layout) in enumerate(zip(images, layouts))
            for number, crop in enumerate(layout.crops(image).to(self.teacher.device))
        ]

    def _chunks(self, windows: list[_Window]) -> list[list[_Window]]:
        """Windows that are worked on together: a student's each, or all of one student's image."""
        if self.per_image:
            return [list(group) for _, group in groupby(windows, lambda window: window.image)]
        size = self.config.batch
        return [windows[first : first + size] for first in range(0, len(windows), size)]

    def _run_chunk(self, chunk: Sequence[_Window]) -> dict[str, list[_Part]]:
        """What each method gives for each window."""
        # Always the same number of students: a short chunk is filled up, so that a result does not
        # depend on how many images happened to come with it.
        size = len(chunk) if self.per_image else self.config.batch
        filled = [*chunk, *[chunk[-1]] * (size - len(chunk))]
        pixels = torch.stack([window.pixels for window in filled]).float() / 255
        whole = (chunk[0].whole, chunk[0].layout) if self.per_image and len(chunk) > 1 else None
        keys = [window.key for window in filled]
        seen_in = {
            views: self._seen_in(views, pixels, keys, whole)
            for views in {adapter.views for adapter in self.adapters.values()}
        }
        results = {}
        for name, adapter in self.adapters.items():
            images = seen_in[adapter.views]
            adapted, clock = adapt(adapter, images), Clock(self.teacher.device)
            guide = pixels if adapter.bilateral else None
            said = _split(*self._said(adapted, adapter.views, guide))
            stats = window_stats(adapted, adapter.student, clock.lap(), len(chunk))
            results[name] = [_Part(*logits, numbers) for logits, numbers in zip(said, stats)]
        return results

    def _seen_in(self, views: int, pixels: Tensor, keys: list[RandomKey], whole: Any) -> Images:
        """Windows in so many views."""
        sides = zip(self.teacher.image_size, self.teacher.grid)
        height, width = (pixels // tokens for pixels, tokens in sides)
        moved = views_of(pixels, views, (height, width))
        # Beyond the windows of any image: each view has random numbers of its own.
        keys = [k._replace(window=k.window + (view << 16)) for view in range(views) for k in keys]
        moves = MOVES[:views] if views > 1 else ()
        alike = [adapter for adapter in self.adapters.values() if adapter.views == views]
        how = views, whole, moves, all(adapter.last_alone for adapter in alike)
        return Images(self.teacher, moved, keys, self.calibration, self, *how)

    def _said(
        self, adapted: Adapted, views: int, guide: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of B windows, from the head's of V B: the queries are the first view's, so that a
        segment is the same one in all. With the windows' pixels as a guide, enlarged by them."""
        context = adapted.context[: len(adapted.context) // views]
        # One view after the other: the head holds several times what it says.
        said = [self.head(tokens, context) for tokens in adapted.tokens.chunk(views)]
        joined = join(torch.cat([masks for masks, _ in said]), views, self.teacher.grid)
        if guide is not None:
            joined = upsample(joined, guide)
        return joined, said[0][1]

    # ---- what the head says of tokens: `adapt.journey.Task` --------------------------------------

    def log_scores(self, tokens: Tensor, context: PrefixContext) -> Tensor:
        """(B, H, W, D) last-layer tokens to (B, C, h, w) logarithms of semantic scores.

        They are not normalised over classes; their shares are a distribution per pixel.
        """
        said = _split(*self.head(tokens, context.last))
        return torch.stack([class_scores(*logits) for logits in said]).clamp(min=1e-30).log()

    def segments(self, seen: Pass) -> Tensor:
        """(B, H, W) the query, or else the class, that the teacher gives each position to."""
        masks, classes = self.head(seen.field[:, -1], seen.context.last)
        if classes is None:
            return masks.argmax(1)
        inside = F.interpolate(masks.sigmoid(), self.teacher.grid, mode="area")
        objects = classes.softmax(-1)[..., :-1].amax(-1)
        return (objects[:, :, None, None] * inside).argmax(1)

    # ---- from logits to outputs ------------------------------------------------------------------

    def _compare(self, model: UniversalModel, image: Tensor, size: Size) -> Prediction:
        """Another model's answer; its time is the teacher's column, for there is no other stage."""
        clock = Clock(self.teacher.device)
        answers, shape = model(image, size, self.tasks)
        output: dict[str, Any] = {}
        for task, (mask_logits, class_logits) in answers.items():
            output |= self._outputs(mask_logits, class_logits, (task,))
        stats = dict.fromkeys(("fit_ms", "query_ms", "head_ms", "fallback"), 0.0)
        stats |= {"teacher_ms": clock.lap(), "windows": 1.0}
        stats |= dict.fromkeys(("token_cos", "error_over_variance"), math.nan)
        return Prediction(output, {**stats, "input_height": shape[0], "input_width": shape[1]})

    def _finish(
        self, layout: PaddedWindow | SlidingWindows, parts: Sequence[_Part], size: Size
    ) -> Prediction:
        """Window results to one image's outputs, (height, width) = ``size``."""
        stats = {
            key: sum(part.stats[key] for part in parts) / (1 if key in _TIMES else len(parts))
            for key in parts[0].stats
        }
        stats["windows"] = float(len(parts))
        if isinstance(layout, SlidingWindows):
            scores = [
                class_scores(resize_scores(part.masks, layout.window), part.classes)
                for part in parts
            ]
            output = {"sem_seg": layout.average(scores, size)}
        else:
            masks = layout.logits(parts[0].masks, size)
            output = self._outputs(masks, parts[0].classes, self.tasks)
        if self.class_map:
            output["sem_seg"] = merged_scores(output["sem_seg"], self.class_map)
        return Prediction(output, stats)

    def _outputs(
        self, mask_logits: Tensor, class_logits: Tensor | None, tasks: Sequence[str]
    ) -> dict[str, Any]:
        """What is predicted for an image of one window, from logits at the output's size."""
        config = self.config
        output: dict[str, Any] = {}
        if "semantic" in tasks:
            output["sem_seg"] = class_scores(mask_logits, class_logits)
        if class_logits is None:
            return output
        logits = mask_logits, class_logits
        if "panoptic" in tasks:
            thresholds = config.object_mask_threshold, config.overlap_threshold
            output["panoptic_seg"] = panoptic_inference(*logits, self.thing_ids, *thresholds)
        if "instance" in tasks:
            output["instances"] = instance_inference(*logits, self.thing_ids, config.top_k)
        return output


@dataclass(frozen=True)
class _Part:
    """One window's mask logits (Q, h, w), class logits (Q, C + 1) and statistics; of a head without
    queries logits (C, h, w) and None."""

    masks: Tensor
    classes: Tensor | None
    stats: dict[str, float]


def _split(masks: Tensor, classes: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """What a head says of B windows, window by window."""
    return list(zip(masks, [None] * len(masks) if classes is None else classes))


def window_stats(
    adapted: Adapted, student: bool, head_ms: float, count: int
) -> list[dict[str, float]]:
    """Statistics of each of the first `count` windows, times being its share of the chunk's."""
    seen = adapted.seen
    times = (seen.ms, adapted.fit_ms, adapted.query_ms, head_ms)
    shared = {key: ms / count for key, ms in zip(_TIMES, times)}
    cosine, error = fidelity(adapted.tokens, seen.field)
    columns = {"token_cos": cosine, "error_over_variance": error, "fallback": adapted.fallback}
    if student and adapted.weight is not None:
        columns["mixing_weight"] = adapted.weight
    if seen.damage is not None and seen.damaged is not None:
        columns |= {"damage": seen.damage, "aligned": seen.damaged}
    lists = {key: column.float().tolist() for key, column in columns.items()}
    return [{**shared, **{k: column[b] for k, column in lists.items()}} for b in range(count)]


def fidelity(answer: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine and error over variance (B,) of tokens (B, H, W, D) against the last layer of
    (B, L, H, W, D) fields. The error is 1 for the mean token and 0 for the teacher's."""
    target = fields[:, -1]
    cosine = F.cosine_similarity(answer, target, dim=-1).flatten(1).mean(1)
    error, variance = (x.square().flatten(1).sum(1) for x in (answer - target, centred(target)))
    return cosine, error / variance

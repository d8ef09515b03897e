"""Images in, class probabilities per method out: everything is encoded once and shared.

A batch of images goes through the teacher once (and once more with its statistics aligned, if a
method asks for that); its random views are encoded only if a baseline looks at them. Shapes: B
images side by side, V views, S = teacher input, C classes, E joint features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqn_seg.adapt.baselines.features import Baseline, Features
from lqn_seg.adapt.baselines.zero_shot import class_probabilities, mean_direction
from lqn_seg.adapt.classification_methods import (
    NEED_VIEWS,
    VIEWS,
    Adaptation,
    make_baseline,
)
from lqn_seg.adapt.ineffective import warn
from lqn_seg.adapt.journey import Adapted, Images, Pass, adapt
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.adapt.timing import Clock
from lqn_seg.adapt.views import centre_view, corner_view, random_views
from lqn_seg.classification.pooling import image_features, method_for
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.random import image_key
from lqn_seg.errors import InputError
from lqn_seg.teachers.clip import ClipTeacher

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
Stats = dict[str, float]


@dataclass(frozen=True)
class ClassifierConfig:
    """Attributes:
    views: of a test image that the baselines look at, the image itself included.
    seed: of every random number, with the CRC32 of the image's pixels.
    batch: images encoded, and students fitted, side by side. Changing it changes results within
        float rounding.
    threads: CPU threads, likewise; set for each call, and given back after it.
    """

    views: int = VIEWS
    seed: int = 0
    batch: int = 1
    threads: int = field(default=1, repr=False)  # a run's fingerprint has it by its own name


@dataclass
class Prediction:
    """One method's answer for one image.

    Attributes:
        probabilities: (C,) float32 on the CPU.
        stats: milliseconds of this image's share: ``views_ms`` (making the views on the CPU),
            ``teacher_ms`` (the teacher on all that the method looks at), ``method_ms`` (the rest);
            of a student ``mixing_weight``, ``fallback``, and ``damage`` where it was
            measured.
    """

    probabilities: Tensor
    stats: Stats = field(default_factory=dict)


class _Batch:
    """What has been made of B images so far; each part is made when a method first asks for it."""

    def __init__(self, classifier: Classifier, images: Sequence[Pixels]) -> None:
        self.classifier, self.images = classifier, images
        self.teacher, self.config = classifier.teacher, classifier.config
        self.keys = [image_key(self.config.seed, np.ascontiguousarray(x)) for x in images]
        centre = torch.stack([centre_view(image, self.teacher) for image in images])
        self.pixels = centre.to(self.teacher.device).float() / 255  # (B, 3, S, S)
        self.views_ms = self.views_teacher_ms = 0.0
        self._corners: dict[int, tuple[Images, float]] = {}

    def corners(self, views: int) -> tuple[Images, float]:
        """The images' first `views` corner views, one view of all after the other, and the
        milliseconds of making them."""
        if views not in self._corners:
            clock = Clock(self.teacher.device)
            pixels = torch.cat([corner_view(self.pixels, view) for view in range(views)])
            keys = [key._replace(window=view) for view in range(views) for key in self.keys]
            images = Images(
                self.teacher, pixels, keys, self.classifier.calibration, self.classifier, views
            )
            self._corners[views] = images, clock.lap()
        return self._corners[views]

    @cached_property
    def plain(self) -> Pass:
        """The teacher's pass over the images themselves."""
        return self.corners(1)[0].encode()

    @cached_property
    def features(self) -> Features:
        """Of the images alone: one view each."""
        teacher, last = self.teacher, self.plain.field[:, -1]
        pooled = teacher.pooled(last, self.plain.context)[:, None]
        patches = teacher.project(last.flatten(1, 2))
        return Features(pooled, patches, self.classifier.text["text"], teacher.logit_scale)

    @cached_property
    def features_of_views(self) -> Features:
        """Of the random views too."""
        teacher, count = self.teacher, self.config.views - 1
        if not count:
            return self.features
        clock = Clock(teacher.device)
        pieces = [random_views(x, teacher, count, key) for x, key in zip(self.images, self.keys)]
        self.views_ms = clock.lap()
        # One image's views at a time: always the same shape, whatever the batch.
        views = [piece.to(teacher.device).float() / 255 for piece in pieces]
        inputs = self.corners(1)[0].inputs
        encoded = torch.stack([teacher.image_features(inputs(x)) for x in views])
        self.views_teacher_ms = clock.lap()
        return replace(self.features, views=torch.cat([self.features.views, encoded], 1))


class _Answerer(Protocol):
    """A method: a batch to probabilities (B, C) and statistics, the batch's and each image's."""

    precision: str

    def __call__(self, batch: _Batch, count: int) -> tuple[Tensor, Stats, list[Stats]]: ...
    def ineffective(self, name: str, calibrated: bool, views: int) -> str: ...


class _OnTokens:
    """Adapts the teacher's tokens and classifies what is pooled of them."""

    def __init__(self, adaptation: Adaptation, teacher: ClipTeacher, text: Tensor) -> None:
        self.adaptation, self.teacher, self.text = adaptation, teacher, text
        self.method = method_for(adaptation, teacher)
        self.precision = self.method.precision
        noise = torch.rand(1, 3, *teacher.image_size, device=teacher.device)
        with torch.no_grad():
            self.method.check(Images(teacher, noise, []))  # a wrong shape is named now

    def __call__(self, batch: _Batch, count: int) -> tuple[Tensor, Stats, list[Stats]]:
        images, views_ms = batch.corners(self.adaptation.views)
        adapted = adapt(self.method, images)
        clock = Clock(self.teacher.device)
        features = image_features(
            adapted, self.adaptation.pooling, self.method.layer, self.teacher, self.text
        )
        views = features.unflatten(0, (-1, len(batch.keys))).movedim(0, 1)  # (B, views, E)
        features = views[:, 0] if views.shape[1] == 1 else mean_direction(views)
        probabilities = class_probabilities(features, self.text, self.teacher.logit_scale)
        method_ms = adapted.fit_ms + adapted.query_ms + clock.lap()
        times = {"views_ms": views_ms, "teacher_ms": adapted.seen.ms, "method_ms": method_ms}
        return probabilities, times, _readings(adapted, len(batch.keys))

    def ineffective(self, name: str, calibrated: bool, views: int) -> str:
        return self.method.ineffective(name, calibrated)


def _readings(adapted: Adapted, batch: int) -> list[Stats]:
    """For each image the mixing weight of its students, whether one failed, and its damage."""
    weight = torch.zeros(batch) if adapted.weight is None else adapted.weight
    columns = {
        "mixing_weight": weight.view(-1, batch).mean(0).tolist(),
        "fallback": adapted.fallback.view(-1, batch).float().amax(0).tolist(),
    }
    if adapted.seen.damage is not None:
        columns["damage"] = adapted.seen.damage[:batch].tolist()
    return [{key: column[b] for key, column in columns.items()} for b in range(batch)]


class _OnFeatures:
    """A baseline: it looks at features of the image, and most at its random views'."""

    precision = ""

    def __init__(self, baseline: Baseline, teacher: ClipTeacher) -> None:
        self.baseline, self.teacher = baseline, teacher

    def ineffective(self, name: str, calibrated: bool, views: int) -> str:
        if name not in NEED_VIEWS or views > 1:
            return ""
        return (
            f"method {name} predicts the same as its teacher: it compares views of an image, and "
            "CLASSIFICATION.VIEWS is 1"
        )

    def __call__(self, batch: _Batch, count: int) -> tuple[Tensor, Stats, list[Stats]]:
        features = batch.features_of_views if self.baseline.views else batch.features
        if self.baseline.history:  # it must not see what fills up a batch
            views, patches = features.views[:count], features.patches[:count]
            features = replace(features, views=views, patches=patches)
        clock = Clock(self.teacher.device)
        probabilities = self.baseline(features)
        times = {"views_ms": 0.0, "teacher_ms": batch.plain.ms, "method_ms": clock.lap()}
        if self.baseline.views:
            times["views_ms"] = batch.views_ms
            times["teacher_ms"] += batch.views_teacher_ms
        return probabilities, times, [{} for _ in range(count)]


class Classifier:
    """Runs any number of methods on the same images.

    Args:
        teacher: frozen.
        class_names: in the order of the labels.
        text: class features (C, E) by name: ``zero-shot`` and ``ensemble``, and ``text`` for every
            other method.
        methods: name -> a student's recipe, or None for what has none: the plain methods, the
            controls and the baselines.
        config: protocol.
        calibration: the teacher's clean ranges. What cannot do without it is `ineffective`, and the
            first call warns.
    """

    def __init__(
        self,
        teacher: ClipTeacher,
        class_names: Sequence[str],
        text: Mapping[str, Tensor],
        methods: Mapping[str, Adaptation | None],
        config: ClassifierConfig,
        calibration: Calibration | None = None,
    ) -> None:
        self.teacher, self.class_names, self.text = teacher, tuple(class_names), dict(text)
        self.methods, self.config, self.calibration = dict(methods), config, calibration
        self.baselines = {
            name: make_baseline(name, teacher, class_names, self.text.get(name))
            for name, recipe in methods.items()
            if recipe is None
        }
        self.answerers: dict[str, _Answerer] = {
            name: _OnFeatures(self.baselines[name], teacher)
            if recipe is None
            else _OnTokens(recipe, teacher, self.text["text"])
            for name, recipe in methods.items()
        }

    @property
    def history(self) -> bool:
        """Whether a method's answer to an image depends on those before it."""
        return any(baseline.history for baseline in self.baselines.values())

    def reset(self) -> None:
        """Forget what methods with a history have seen: a new stream of images begins."""
        for baseline in self.baselines.values():
            baseline.reset()

    @property
    def precisions(self) -> dict[str, str]:
        """What each student's matrix products are computed in: ``auto`` depends on the machine."""
        return {name: a.precision for name, a in self.answerers.items() if a.precision}

    @property
    def ineffective(self) -> dict[str, str]:
        """Methods that do nothing, or not all that they say, with the reason and the remedy."""
        calibrated, views = self.calibration is not None, self.config.views
        reasons = {n: a.ineffective(n, calibrated, views) for n, a in self.answerers.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    @torch.no_grad()
    def __call__(self, images: Sequence[Pixels]) -> list[dict[str, Prediction]]:
        """Predictions by method name, one dict per image.

        Args:
            images: (H, W, 3) uint8 RGB each, of any size.

        Raises:
            InputError: an image has another type or shape.
        """
        warn(self.ineffective.values())
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise InputError(
                    f"an image must be a (height, width, 3) uint8 array, got {image.dtype} "
                    f"{image.shape}"
                )
        size = self.config.batch
        with fixed_threads(self.config.threads):
            chunks = [self._chunk(images[k : k + size]) for k in range(0, len(images), size)]
        return [prediction for chunk in chunks for prediction in chunk]

    def _chunk(self, images: Sequence[Pixels]) -> list[dict[str, Prediction]]:
        # Always the same number of images: a short chunk is filled up, so that a result does not
        # depend on how many images happened to come with it.
        count = len(images)
        batch = _Batch(self, [*images, *[images[-1]] * (self.config.batch - count)])
        results: list[dict[str, Prediction]] = [{} for _ in images]
        for name, answerer in self.answerers.items():
            probabilities, times, readings = answerer(batch, count)
            shared = {key: ms / count for key, ms in times.items()}
            rows = probabilities.float().cpu()
            for result, row, reading in zip(results, rows, readings):
                result[name] = Prediction(row, {**shared, **reading})
        return results

    # ---- what the texts say of tokens: `adapt.journey.Task` --------------------------------------

    def log_scores(self, tokens: Tensor, context: Any) -> Tensor:
        """(B, H, W, D) last-layer tokens to (B, C, H, W) class logits."""
        logits = self.teacher.logit_scale * self.teacher.project(tokens) @ self.text["text"].T
        return logits.movedim(-1, 1)

    def segments(self, seen: Pass) -> Tensor:
        """(B, H, W) the class that each patch is likest to."""
        return (self.teacher.project(seen.field[:, -1]) @ self.text["text"].T).argmax(-1)

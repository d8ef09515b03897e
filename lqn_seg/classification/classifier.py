"""Images in, class probabilities per method out: everything is encoded once and shared.

A batch of images goes through the teacher once (and once more with its statistics restored, if a
method asks for that); its random views are encoded only if a method looks at them. Shapes: B images
side by side, V views, S = teacher input, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqn_seg.adapt.baselines.features import Features
from lqn_seg.adapt.baselines.tda import Tda
from lqn_seg.adapt.baselines.zero_shot import class_probabilities, mean_direction
from lqn_seg.adapt.classification_lqn import Adapter, Answer, Run
from lqn_seg.adapt.classification_methods import (
    CONTROLS,
    NEED_VIEWS,
    PLAIN,
    VIEWS,
    Adaptation,
    make_baseline,
)
from lqn_seg.adapt.ineffective import warn, why_ineffective
from lqn_seg.adapt.views import centre_view, corner_view, random_views
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.random import RandomKey, image_key
from lqn_seg.core.threads import fixed_threads
from lqn_seg.core.timing import Clock
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import normalise
from lqn_seg.teachers.clip import ClipTeacher

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB


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
            of a student ``blend``, ``fallback``, and ``damage`` where the gauge was asked.
    """

    probabilities: Tensor
    stats: dict[str, float] = field(default_factory=dict)


@dataclass
class _Batch:
    """What has been made of B images so far.

    pixels: (B, 3, S, S) in 0..1 of view 0.
    runs: the teacher's passes, by whether restored and by number of views; (views * B) images each,
        view after view.
    features: for methods without a student; there if any of the classifier's is one.
    """

    images: Sequence[Pixels]
    keys: list[RandomKey]
    pixels: Tensor
    runs: dict[tuple[bool, int], Run] = field(default_factory=dict)
    features: Features = field(init=False)
    views_ms: float = 0.0
    views_teacher_ms: float = 0.0


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
        self.adapters = {
            name: Adapter(teacher, recipe, text["text"], calibration)
            for name, recipe in methods.items()
            if recipe is not None
        }
        self.baselines = {
            name: make_baseline(name, teacher, class_names)
            for name, recipe in methods.items()
            if recipe is None and name not in (*CONTROLS, *PLAIN)
        }

    def reset(self) -> None:
        """Forget what methods with a history have seen: a new stream of images begins."""
        for baseline in self.baselines.values():
            if isinstance(baseline, Tda):
                baseline.reset()

    @property
    def precisions(self) -> dict[str, str]:
        """What each student's matrix products are computed in: ``auto`` depends on the machine."""
        fitters = {name: adapter.fitter for name, adapter in self.adapters.items()}
        return {name: fitter.precision for name, fitter in fitters.items() if fitter is not None}

    @property
    def ineffective(self) -> dict[str, str]:
        """Methods that do nothing, or not all that they say, with the reason and the remedy."""
        calibrated, found = self.calibration is not None, {}
        for name, recipe in self.methods.items():
            if recipe is not None:
                found[name] = why_ineffective(name, recipe.recipe, calibrated)
            elif name in NEED_VIEWS and self.config.views == 1:
                found[name] = (
                    f"method {name} answers as its teacher does: it compares views of an image, "
                    "and CLASSIFICATION.VIEWS is 1"
                )
        return {name: reason for name, reason in found.items() if reason}

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
        filled = [*images, *[images[-1]] * (self.config.batch - len(images))]
        batch = self._encode(filled)
        results: list[dict[str, Prediction]] = [{} for _ in images]
        for name in self.methods:
            for result, prediction in zip(results, self._predict(name, batch, len(images))):
                result[name] = prediction
        return results

    def _encode(self, images: Sequence[Pixels]) -> _Batch:
        """Teacher and views, as far as any of the methods needs them."""
        teacher, config = self.teacher, self.config
        keys = [image_key(config.seed, np.ascontiguousarray(image)) for image in images]
        centre = torch.stack([centre_view(image, teacher) for image in images])
        pixels = centre.to(teacher.device).float() / 255
        batch = _Batch(images, keys, pixels)
        if len(self.adapters) < len(self.methods):
            self._encode_images(batch)
        if self.baselines and config.views > 1:
            self._encode_views(batch)
        return batch

    def _encode_images(self, batch: _Batch) -> None:
        teacher, clock = self.teacher, Clock(self.teacher.device)
        tokens, context = teacher.encode(self._input(batch.pixels))
        batch.runs[False, 1] = Run(tokens, context, clock.lap())
        views = teacher.pooled(tokens[:, -1], context)[:, None]
        patches = teacher.project(tokens[:, -1].flatten(1, 2))
        batch.features = Features(views, patches, self.text["text"], teacher.logit_scale)

    def _encode_views(self, batch: _Batch) -> None:
        teacher, clock = self.teacher, Clock(self.teacher.device)
        pieces = [
            random_views(image, teacher, self.config.views - 1, key)
            for image, key in zip(batch.images, batch.keys)
        ]
        batch.views_ms = clock.lap()
        # One image's views at a time: always the same shape, whatever the batch.
        encoded = [
            teacher.image_features(self._input(piece.to(teacher.device).float() / 255))
            for piece in pieces
        ]
        views = torch.cat([batch.features.views, torch.stack(encoded)], 1)
        batch.views_teacher_ms = clock.lap()
        patches, text, scale = batch.features.patches, batch.features.text, batch.features.scale
        batch.features = Features(views, patches, text, scale)

    def _predict(self, name: str, batch: _Batch, count: int) -> list[Prediction]:
        """One method's predictions for the first ``count`` images of a batch."""
        clock = Clock(self.teacher.device)
        stats: dict[str, float] = {"views_ms": 0.0, "teacher_ms": 0.0}
        single: list[dict[str, float]] = [{} for _ in range(count)]
        if name in self.adapters:
            run, answer, stats["views_ms"] = self._adapt(name, batch)
            stats["teacher_ms"] = run.ms
            clock.lap()
            features = answer.features.unflatten(0, (-1, len(batch.keys)))
            features = features[0] if len(features) == 1 else mean_direction(features.movedim(0, 1))
            probabilities = self._probabilities(features, "text")
            stats["method_ms"] = answer.ms + clock.lap()
            single = self._readings(run, answer, len(batch.keys))
        elif name in self.baselines:
            stats["views_ms"] = batch.views_ms
            stats["teacher_ms"] = batch.runs[False, 1].ms + batch.views_teacher_ms
            probabilities = self._baseline(name, batch.features, count)
            stats["method_ms"] = clock.lap()
        else:
            stats["teacher_ms"] = batch.runs[False, 1].ms
            probabilities = self._plain(name, batch)
            stats["method_ms"] = clock.lap()
        shared = {key: value / count for key, value in stats.items()}
        rows = probabilities.float().cpu()
        return [Prediction(rows[b], {**shared, **single[b]}) for b in range(count)]

    def _plain(self, name: str, batch: _Batch) -> Tensor:
        features = batch.features.views[:, 0]
        if name == CONTROLS[1]:
            return self._probabilities(mean_direction(batch.features.patches), "text")
        return self._probabilities(features, name if name in PLAIN else "text")

    def _probabilities(self, features: Tensor, text: str) -> Tensor:
        return class_probabilities(features, self.text[text], self.teacher.logit_scale)

    def _baseline(self, name: str, features: Features, count: int) -> Tensor:
        """A baseline's answers; a method with a history must not see the filling of a batch."""
        baseline = self.baselines[name]
        if isinstance(baseline, Tda):
            views, patches = features.views[:count], features.patches[:count]
            features = Features(views, patches, features.text, features.scale)
        return baseline(features)

    def _adapt(self, name: str, batch: _Batch) -> tuple[Run, Answer, float]:
        """A student method's pass, its answers for all views, and the time of making these."""
        adapter = self.adapters[name]
        views, students = adapter.adaptation.views, adapter.adaptation.students
        clock = Clock(self.teacher.device)
        pixels = torch.cat([corner_view(batch.pixels, view) for view in range(views)])
        views_ms = clock.lap()
        kind = adapter.restores, views
        if kind not in batch.runs:
            batch.runs[kind] = adapter.encode(pixels)
        keys = [key._replace(window=view) for view in range(students) for key in batch.keys]
        return batch.runs[kind], adapter(pixels, batch.runs[kind], keys), views_ms

    @staticmethod
    def _readings(run: Run, answer: Answer, batch: int) -> list[dict[str, float]]:
        """For each image what the gauge saw in it, how much of its students was taken, and whether
        one failed."""
        share = answer.share.view(-1, batch).mean(0)
        failed = answer.fallback.view(-1, batch).any(0)
        readings = [{"blend": float(s), "fallback": float(f)} for s, f in zip(share, failed)]
        if run.damage is not None:
            for reading, damage in zip(readings, run.damage):
                reading["damage"] = float(damage)
        return readings

    def _input(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self.teacher.pixel_mean, self.teacher.pixel_std)

"""Teacher, student, head: one image (or a few) in, one prediction per method out.

The order is the paper's (Algorithm 1): the teacher runs once; each method gives its own answer for
the last layer's patch tokens; the frozen head turns the answer into masks and classes. ``teacher``
answers with its own tokens, every other method with a student fitted to this image alone.

Shapes: B students side by side, S = teacher input, L x H x W grid, D features, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.core.controls import ClosedFormField
from lqn_seg.core.fit import LQNConfig, StudentFitter
from lqn_seg.core.gauge import Calibration, Restorer
from lqn_seg.core.random import RandomKey, image_key
from lqn_seg.core.timing import Clock, is_out_of_memory
from lqn_seg.errors import InputError
from lqn_seg.heads.eomt import EomtHead
from lqn_seg.segmentation.postprocess import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from lqn_seg.segmentation.views import PixelControl
from lqn_seg.segmentation.windows import (
    PaddedWindow,
    Size,
    SlidingWindows,
    layout_of,
    resize_scores,
)
from lqn_seg.teachers.base import normalise
from lqn_seg.teachers.eomt import IMAGENET_MEAN, IMAGENET_STD, EomtContext, EomtTeacher

Method = LQNConfig | PixelControl | None  # None is the teacher itself
Fitter = StudentFitter | ClosedFormField


@dataclass(frozen=True)
class SegmentationConfig:
    """What is predicted, and how an image meets the teacher.

    Attributes:
        semantic, instances, panoptic: which outputs are made.
        inference: ``pad`` fits the image into one window, ``windows`` slides one along its long
            side (EoMT's protocol for semantic segmentation, the only output it can make).
        object_mask_threshold, overlap_threshold: of the panoptic output.
        top_k: instances kept per image.
        queries: whose query tokens the head reads, the ``teacher``'s or the ``student``'s.
        seed: of every random number, with the CRC32 of the image's pixels and the window.
        batch: students fitted side by side. Changing it changes results within float rounding.
    """

    semantic: bool = True
    instances: bool = False
    panoptic: bool = True
    inference: Literal["pad", "windows"] = "pad"
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    top_k: int = 100
    queries: Literal["teacher", "student"] = "teacher"
    seed: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.inference not in ("pad", "windows"):
            raise InputError(f"INFERENCE must be pad or windows, not {self.inference!r}")
        if self.queries not in ("teacher", "student"):
            raise InputError(f"QUERIES must be teacher or student, not {self.queries!r}")
        if self.inference == "windows" and (self.instances or self.panoptic):
            raise InputError("INFERENCE windows makes semantic output only; panoptic needs pad")
        if self.batch < 1:
            raise InputError(f"BATCH must be at least 1, not {self.batch}")


@dataclass
class Prediction:
    """One method's answer for one image.

    Attributes:
        output: ``sem_seg`` (C, h, w), ``panoptic_seg`` (id map, segments), ``instances``, as asked.
        stats: milliseconds of this image's share of the work (``teacher_ms``, ``fit_ms``,
            ``readout_ms``, ``head_ms``), ``token_cos`` and ``error_over_variance`` of the answer
            against the teacher's last layer, ``windows``, and 1 in ``fallback`` where the student
            failed and the teacher answered instead.
    """

    output: dict[str, Any]
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Window:
    """One teacher input: which image it is from, its pixels (3, *S) uint8 and its random key."""

    image: int
    pixels: Tensor
    key: RandomKey


@dataclass
class _Pass:
    """One run of the teacher over a chunk of windows.

    answer: (B, H, W, D) what the run says of the last layer.
    damage, weight: (B,) what the gauge saw and makes of it; None where it was not asked.
    """

    field: Tensor
    context: EomtContext
    ms: float
    answer: Tensor
    damage: Tensor | None = None
    weight: Tensor | None = None


@dataclass
class _Answer:
    """Last-layer tokens of a chunk of windows, query tokens for the head, and what they cost."""

    tokens: Tensor
    queries: Tensor
    fit_ms: float = 0.0
    readout_ms: float = 0.0
    fallback: Tensor | None = None
    share: Tensor | None = None


class Segmenter:
    """Runs any number of methods on the same teacher pass.

    Args:
        teacher, head: frozen.
        methods: name -> student recipe, None for the teacher itself.
        thing_ids: contiguous ids of the classes that have instances.
        config: outputs and protocol.
        calibration: the teacher's clean ranges. Without it nothing is restored, and a method whose
            blend the gauge decides answers as the teacher does.
    """

    def __init__(
        self,
        teacher: EomtTeacher,
        head: EomtHead,
        methods: Mapping[str, Method],
        thing_ids: frozenset[int],
        config: SegmentationConfig,
        calibration: Calibration | None = None,
    ) -> None:
        self.teacher, self.head, self.methods = teacher, head, dict(methods)
        self.thing_ids, self.config, self.calibration = thing_ids, config, calibration
        rows, columns = teacher.grid
        self.query_rows = 0  # below the grid, where the student gives the query tokens too
        if config.queries == "student":
            self.query_rows = math.ceil(teacher.num_queries / columns)
        grid = (teacher.num_layers, rows + self.query_rows, columns)
        self._fitters = {
            name: self._fitter(method, grid)
            for name, method in self.methods.items()
            if isinstance(method, LQNConfig) and method.fit.variant != "restore"
        }

    def _fitter(self, method: LQNConfig, grid: tuple[int, int, int]) -> Fitter:
        kind = ClosedFormField if method.fit.variant in ("kernel", "ridge") else StudentFitter
        return kind(method, grid, self.teacher.width, self.teacher.device)

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
        layouts = [self._layout(image) for image in images]
        sizes = sizes or [layout.image_size for layout in layouts]
        windows = [
            _Window(index, crop, image_key(self.config.seed, image.contiguous(), number))
            for index, (image, layout) in enumerate(zip(images, layouts))
            for number, crop in enumerate(layout.crops(image.to(self.teacher.device)))
        ]
        logits: list[dict[str, list[Any]]] = [{name: [] for name in self.methods} for _ in images]
        for start in range(0, len(windows), self.config.batch):
            chunk = windows[start : start + self.config.batch]
            for name, results in self._run_chunk(chunk).items():
                for window, result in zip(chunk, results):
                    logits[window.image][name].append(result)
        return [
            {name: self._finish(layout, parts, size) for name, parts in by_method.items()}
            for size, layout, by_method in zip(sizes, layouts, logits)
        ]

    @property
    def precisions(self) -> dict[str, str]:
        """What each student's matrix products are computed in: ``auto`` depends on the machine."""
        return {name: fitter.precision for name, fitter in self._fitters.items()}

    @property
    def unheard(self) -> list[str]:
        """Methods whose student is never asked, because there is no calibration to gauge by."""
        if self.calibration is not None:
            return []
        return [
            name
            for name, method in self.methods.items()
            if isinstance(method, LQNConfig) and method.adapt.gauged and name in self._fitters
        ]

    def _layout(self, image: Tensor) -> PaddedWindow | SlidingWindows:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise InputError(
                f"an image must be a (3, height, width) uint8 tensor, got {image.dtype} "
                f"{tuple(image.shape)}"
            )
        size = (image.shape[1], image.shape[2])
        return layout_of(size, self.teacher.image_size, self.config.inference)

    def _run_chunk(
        self, chunk: Sequence[_Window]
    ) -> dict[str, list[tuple[Tensor, Tensor, dict[str, float]]]]:
        """Mask logits, class logits and statistics of each window, by method."""
        # Always the same number of students: a short chunk is filled up, so that a result does not
        # depend on how many images happened to come with it.
        filled = [*chunk, *[chunk[-1]] * (self.config.batch - len(chunk))]
        crops = torch.stack([window.pixels for window in filled]).float() / 255
        clock = Clock(self.teacher.device)
        passes: dict[str, _Pass] = {}
        results = {}
        for name, method in self.methods.items():
            run = self._encode(method, crops, passes)
            clock.lap()
            answer = self._answer(name, method, crops, run, [w.key for w in filled])
            clock.lap()
            mask_logits, class_logits = self.head(answer.tokens, answer.queries)
            head_ms = clock.lap()
            cosine, error = _fidelity(answer.tokens, run.field[:, -1])
            times = {
                "teacher_ms": run.ms,
                "fit_ms": answer.fit_ms,
                "readout_ms": answer.readout_ms,
                "head_ms": head_ms,
            }
            shared = {key: value / len(chunk) for key, value in times.items()}
            results[name] = [
                (
                    mask_logits[b].float(),
                    class_logits[b].float(),
                    {
                        **shared,
                        "token_cos": cosine[b],
                        "error_over_variance": error[b],
                        "fallback": float(answer.fallback is not None and answer.fallback[b]),
                        **self._gauge_readings(run, answer, b),
                    },
                )
                for b in range(len(chunk))
            ]
        return results

    def _gauge_readings(self, run: _Pass, answer: _Answer, b: int) -> dict[str, float]:
        """What the gauge saw in image ``b`` and how much of the student's answer was taken."""
        readings = {} if answer.share is None else {"blend": float(answer.share[b])}
        if run.damage is not None and self.calibration is not None:
            damage = float(run.damage[b])
            readings["damage"] = damage
            readings["restored"] = float(damage > self.calibration.undamaged)
        return readings

    def _encode(self, method: Method, crops: Tensor, passes: dict[str, _Pass]) -> _Pass:
        """The teacher's run that a method starts from; each kind is made once per chunk."""
        restored = isinstance(method, LQNConfig) and method.adapt.restore
        kind = method.name if isinstance(method, PixelControl) else ("", "restored")[restored]
        if kind not in passes:
            clock = Clock(self.teacher.device)
            restorer = None
            if restored and self.calibration is not None:
                restorer = Restorer(self.calibration)
            if kind == "flip":
                run = self._encode(None, crops, passes)
                mirrored, _ = self.teacher.encode(self._input(crops.flip(-1)))
                answer = (run.field[:, -1] + mirrored[:, -1].flip(2)) / 2
                passes[kind] = _Pass(run.field, run.context, run.ms + clock.lap(), answer)
                return passes[kind]
            if isinstance(method, PixelControl):
                crops = self._changed(method, crops)
            field, context = self.teacher.encode(self._input(crops), restorer)
            passes[kind] = _Pass(field, context, clock.lap(), field[:, -1])
            if restorer is not None:
                passes[kind].damage, passes[kind].weight = restorer.damage, restorer.weight
        return passes[kind]

    def _changed(self, control: PixelControl, crops: Tensor) -> Tensor:
        """Pixels as a control wants them; a gauged one leaves undamaged images alone."""
        changed = control.apply(crops, self.calibration)
        if control.gauged:
            damaged = self._weight(crops).to(crops.device) >= 0.5
            changed = torch.where(damaged[:, None, None, None], changed, crops)
        return changed

    def _input(self, crops: Tensor) -> Tensor:
        return normalise(crops, self.teacher.pixel_mean, self.teacher.pixel_std)

    def _weight(self, crops: Tensor) -> Tensor:
        """(B,) how damaged images look, 0..1; 0 without a calibration."""
        if self.calibration is None:
            return crops.new_zeros(len(crops))
        restorer = Restorer(self.calibration)
        restorer(0, self.teacher.embed(self._input(crops)))
        return restorer.weight

    def _answer(
        self,
        name: str,
        method: Method,
        crops: Tensor,
        run: _Pass,
        keys: Sequence[RandomKey],
    ) -> _Answer:
        """Last-layer tokens: the teacher's own, or a fresh student's, or some of both."""
        own = _Answer(run.answer, run.context.last_queries)
        if name not in self._fitters:
            return own
        assert isinstance(method, LQNConfig)
        share = torch.full((len(keys),), method.adapt.blend, device=own.tokens.device)
        if method.adapt.gauged:
            share = share * (self._weight(crops) if run.weight is None else run.weight)
        own.share = share
        return own if not share.any() else self._student_answer(name, own, crops, run, keys)

    def _student_answer(
        self, name: str, own: _Answer, crops: Tensor, run: _Pass, keys: Sequence[RandomKey]
    ) -> _Answer:
        """``own`` with the student's answer blended in.

        A student that runs out of memory or ends in a non-finite loss loses no image: the teacher
        answers for it, and the statistics say so.
        """
        assert own.share is not None
        fitter = self._fitters[name]
        clock = Clock(self.teacher.device)
        side = fitter.config.student.input_size
        small = F.interpolate(crops, (side, side), mode="bilinear", antialias=True)
        try:
            students = fitter.fit(
                # The student's own normalisation, whatever the teacher's is (ambiguity 21).
                normalise(small, IMAGENET_MEAN, IMAGENET_STD),
                self._with_queries(run.field, run.context),
                keys,
            )
            own.fit_ms = clock.lap()
            answered = students.query_layer(self.teacher.num_layers)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            own.fallback = (own.share > 0).cpu()
            return own
        own.readout_ms = clock.lap()
        finite = students.finite & answered.flatten(1).isfinite().all(1).cpu()
        own.fallback = ~finite & (own.share > 0).cpu()
        share = own.share[:, None, None]
        keep = (finite.to(share.device) & (own.share > 0))[:, None, None]
        rows = self.teacher.grid[0]
        blended = torch.lerp(own.tokens, answered[:, :rows], share[..., None])
        own.tokens = torch.where(keep[..., None], blended, own.tokens)
        if self.query_rows:
            queries = answered[:, rows:].flatten(1, 2)[:, : self.teacher.num_queries]
            own.queries = torch.where(keep, torch.lerp(own.queries, queries, share), own.queries)
        return own

    def _with_queries(self, field: Tensor, context: EomtContext) -> Tensor:
        """The token field, with query tokens as further rows below it where the student gives them.

        In layers before the queries enter, their rows hold the learned query embeddings; the last
        row is filled up by starting over.
        """
        if not self.query_rows:
            return field
        layers, columns = self.teacher.num_layers, self.teacher.grid[1]
        passed = [
            max(layer - (layers - self.teacher.num_query_layers), 0)
            for layer in range(1, layers + 1)
        ]
        queries = context.queries[:, passed]  # (B, L, Q, D)
        cells = self.query_rows * columns
        order = torch.arange(cells, device=field.device) % self.teacher.num_queries
        return torch.cat([field, queries[:, :, order].unflatten(2, (-1, columns))], 2)

    def _finish(
        self,
        layout: PaddedWindow | SlidingWindows,
        parts: Sequence[tuple[Tensor, Tensor, dict[str, float]]],
        size: Size,
    ) -> Prediction:
        """Window results to one image's outputs, (height, width) = ``size``."""
        totals = ("teacher_ms", "fit_ms", "readout_ms", "head_ms")
        stats = {
            key: sum(part[2][key] for part in parts) / (1 if key in totals else len(parts))
            for key in parts[0][2]
        }
        stats["windows"] = float(len(parts))
        config = self.config
        if isinstance(layout, SlidingWindows):
            scores = torch.stack(
                [
                    semantic_inference(resize_scores(masks, layout.window), classes)
                    for masks, classes, _ in parts
                ]
            )
            return Prediction({"sem_seg": layout.average(scores, size)}, stats)
        mask_logits, class_logits = layout.logits(parts[0][0], size), parts[0][1]
        output: dict[str, Any] = {}
        if config.semantic:
            output["sem_seg"] = semantic_inference(mask_logits, class_logits)
        if config.panoptic:
            output["panoptic_seg"] = panoptic_inference(
                mask_logits,
                class_logits,
                self.thing_ids,
                config.object_mask_threshold,
                config.overlap_threshold,
            )
        if config.instances:
            output["instances"] = instance_inference(
                mask_logits, class_logits, self.thing_ids, config.top_k
            )
        return Prediction(output, stats)


def _fidelity(answer: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Mean cosine and error over variance of (B, H, W, D) tokens against the teacher's.

    Error over variance is 1 for the mean token and 0 for the teacher's own.
    """
    cosine = F.cosine_similarity(answer, target, dim=-1).flatten(1).mean(1)
    centred = target - target.mean((1, 2), keepdim=True)
    error = (answer - target).square().flatten(1).sum(1) / centred.square().flatten(1).sum(1)
    return cosine.tolist(), error.tolist()

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
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.augment import augmented_views
from lqn_seg.adapt.closed_forms import ClosedFormField, FittedField
from lqn_seg.adapt.ineffective import CALIBRATE, warn, why_ineffective
from lqn_seg.adapt.methods import (
    Method,
    PixelControl,
    SegmentationConfig,
    TokenMethod,
)
from lqn_seg.adapt.pixel_controls import change_pixels, larger_size
from lqn_seg.core.alignment import Calibration, Restorer, noise_share
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.fit import Classify, FittedStudents, Grid, StudentFitter
from lqn_seg.core.kernel import centred
from lqn_seg.core.random import RandomKey, image_key
from lqn_seg.core.threads import fixed_threads
from lqn_seg.core.timing import Clock, is_out_of_memory
from lqn_seg.errors import InputError
from lqn_seg.segmentation.comparators import UniversalModel
from lqn_seg.segmentation.postprocess import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from lqn_seg.segmentation.windows import (
    PaddedWindow,
    Size,
    SlidingWindows,
    layout_of,
    resize_scores,
)
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from lqn_seg.teachers.eomt import EomtContext, EomtTeacher
from lqn_seg.teachers.eomt_head import EomtHead

Fitter = StudentFitter | ClosedFormField


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


@dataclass
class _Pass:
    """One run of the teacher over a chunk of windows.

    answer: (B, H, W, D) what the run says of the last layer.
    damage, damaged: (B,) what the gauge saw and whether clean images show less; None where it was
        not asked.
    """

    field: Tensor
    context: EomtContext
    ms: float
    answer: Tensor
    damage: Tensor | None = None
    damaged: Tensor | None = None


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
        methods: name -> student recipe, None for the teacher itself, a function of one's own, or
            what is compared with them.
        thing_ids: contiguous ids of the classes that have instances.
        config: outputs and protocol.
        calibration: the teacher's clean ranges. Without it nothing is restored, and a gauged
            method answers as the teacher does: `ineffective` says so, and the first call warns.
        comparators: the models of those methods that are other models altogether.

    Raises:
        InputError: a function of one's own does not answer with tokens.
    """

    def __init__(
        self,
        teacher: EomtTeacher,
        head: EomtHead,
        methods: Mapping[str, Method],
        thing_ids: frozenset[int],
        config: SegmentationConfig,
        calibration: Calibration | None = None,
        comparators: Mapping[str, UniversalModel] | None = None,
    ) -> None:
        self.teacher, self.head, self.methods = teacher, head, dict(methods)
        self.comparators = dict(comparators or {})
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
        self._whole_fitters: dict[tuple[str, Grid], StudentFitter] = {}
        if config.fit_per == "image":
            self._check_fit_per_image()
        larger = [name for name, m in self.methods.items() if m == PixelControl("larger")]
        self.larger = self._larger(larger) if larger else None
        elsewhere = {*larger, *self.comparators}
        self._on_teacher = {
            name: method for name, method in self.methods.items() if name not in elsewhere
        }
        self._check_functions()

    @torch.no_grad()
    def _check_functions(self) -> None:
        """Let functions of one's own answer to noise once, so that a wrong shape is said now.

        Raises:
            InputError: an answer is no tokens of the last layer.
        """
        functions = [m for m in self.methods.values() if isinstance(m, TokenMethod)]
        if not functions:
            return
        shape = (self.config.batch, 3, *self.teacher.image_size)
        crops = torch.rand(shape, generator=torch.Generator().manual_seed(self.config.seed))
        images = self._input(crops.to(self.teacher.device))
        tokens, _ = self.teacher.encode(images)
        for method in functions:
            try:
                method(self.teacher, images, tokens)
            except RuntimeError as error:  # each image has its own chance
                if not is_out_of_memory(error):
                    raise

    def _check_fit_per_image(self) -> None:
        for name, fitter in self._fitters.items():
            fit = fitter.config.fit
            if fit.views > 1 or fit.sampling != "uniform" or fit.objective != "l2":
                raise InputError(
                    f"method {name}: FIT_PER image goes without the ablations VIEWS, SAMPLING "
                    "segments and OBJECTIVE entropy, which are made per window"
                )

    def _larger(self, names: Sequence[str]) -> Segmenter:
        """The teacher alone at a larger input: images meet it in windows of its own."""
        patch = self.teacher.model.config.patch_size
        teacher = self.teacher.resized(larger_size(self.teacher.image_size, patch))
        alone = dict.fromkeys(names)
        head = EomtHead(teacher.model, teacher.precision)
        return Segmenter(teacher, head, alone, self.thing_ids, self.config)

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
        warn(self.ineffective.values())
        with fixed_threads(self.config.threads):
            return self._predict(images, sizes)

    def _predict(
        self, images: Sequence[Tensor], sizes: Sequence[Size] | None
    ) -> list[dict[str, Prediction]]:
        layouts = [self._layout(image) for image in images]
        sizes = sizes or [layout.image_size for layout in layouts]
        windows = [
            _Window(
                index, image, layout, crop, image_key(self.config.seed, image.contiguous(), number)
            )
            for index, (image, layout) in enumerate(zip(images, layouts))
            for number, crop in enumerate(layout.crops(image).to(self.teacher.device))
        ]
        logits: list[dict[str, list[Any]]] = [{} for _ in images]
        for chunk in self._chunks(windows if self._on_teacher else []):
            for name, results in self._run_chunk(chunk).items():
                for window, result in zip(chunk, results):
                    logits[window.image].setdefault(name, []).append(result)
        found = [
            {name: self._finish(layout, parts, size) for name, parts in by_method.items()}
            for size, layout, by_method in zip(sizes, layouts, logits)
        ]
        if self.larger:
            for own, others in zip(found, self.larger(images, sizes)):
                own.update(others)
        for image, size, by_name in zip(images, sizes, found):
            for name, model in self.comparators.items():
                by_name[name] = self._compare(model, image, size)
        return [{name: by_name[name] for name in self.methods} for by_name in found]

    def _chunks(self, windows: list[_Window]) -> list[list[_Window]]:
        """Windows that are worked on together: a student's each, or all of one student's image."""
        if self.config.fit_per == "image":
            return [list(group) for _, group in groupby(windows, lambda window: window.image)]
        size = self.config.batch
        return [windows[first : first + size] for first in range(0, len(windows), size)]

    @property
    def tasks(self) -> list[str]:
        """The outputs that are made, by OneFormer's words for them."""
        wanted = {
            "semantic": self.config.semantic,
            "panoptic": self.config.panoptic,
            "instance": self.config.instances,
        }
        return [task for task, on in wanted.items() if on]

    def _compare(self, model: UniversalModel, image: Tensor, size: Size) -> Prediction:
        """Another model's answer; its time is the teacher's column, for there is no other stage."""
        clock = Clock(self.teacher.device)
        answers, shape = model(image, size, self.tasks)
        output: dict[str, Any] = {}
        for task, (mask_logits, class_logits) in answers.items():
            output |= self._outputs(mask_logits, class_logits, (task,))
        stats = dict.fromkeys(("fit_ms", "readout_ms", "head_ms", "fallback"), 0.0)
        stats |= {"teacher_ms": clock.lap(), "windows": 1.0}
        stats |= dict.fromkeys(("token_cos", "error_over_variance"), math.nan)
        return Prediction(output, {**stats, "input_height": shape[0], "input_width": shape[1]})

    @property
    def precisions(self) -> dict[str, str]:
        """What each student's matrix products are computed in: ``auto`` depends on the machine."""
        return {name: fitter.precision for name, fitter in self._fitters.items()}

    @property
    def ineffective(self) -> dict[str, str]:
        """Methods that do nothing, or not all that they say, with the reason and the remedy."""
        calibrated, found = self.calibration is not None, {}
        for name, method in self.methods.items():
            if isinstance(method, LQNConfig):
                found[name] = why_ineffective(name, method, calibrated)
            elif isinstance(method, PixelControl) and method.calibrated and not calibrated:
                found[name] = (
                    f"method {name} answers as its teacher does: without a calibration it changes "
                    f"no pixel; {CALIBRATE}"
                )
        return {name: reason for name, reason in found.items() if reason}

    def _layout(self, image: Tensor) -> PaddedWindow | SlidingWindows:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise InputError(
                f"an image must be a (3, height, width) uint8 tensor, got {image.dtype} "
                f"{tuple(image.shape)}"
            )
        return layout_of(image, self.teacher, self.config.inference)

    def _run_chunk(
        self, chunk: Sequence[_Window]
    ) -> dict[str, list[tuple[Tensor, Tensor, dict[str, float]]]]:
        """Mask logits, class logits and statistics of each window, by method."""
        # Always the same number of students: a short chunk is filled up, so that a result does not
        # depend on how many images happened to come with it.
        size = len(chunk) if self.config.fit_per == "image" else self.config.batch
        filled = [*chunk, *[chunk[-1]] * (size - len(chunk))]
        crops = torch.stack([window.pixels for window in filled]).float() / 255
        clock = Clock(self.teacher.device)
        passes: dict[str, _Pass] = {}
        results = {}
        for name, method in self._on_teacher.items():
            run = self._encode(method, crops, passes)
            clock.lap()
            answer = self._answer(name, method, crops, run, filled)
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
        if run.damage is not None and run.damaged is not None:
            readings["damage"] = float(run.damage[b])
            readings["restored"] = float(run.damaged[b])
        return readings

    def _encode(self, method: Method, crops: Tensor, passes: dict[str, _Pass]) -> _Pass:
        """The teacher's run that a method starts from; each kind is made once per chunk."""
        restored = isinstance(method, LQNConfig) and method.adapt.restore
        kind = method.name if isinstance(method, PixelControl) else ("", "restored")[restored]
        if kind not in passes:
            clock = Clock(self.teacher.device)
            restorer = self._restorer(method)
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
                passes[kind].damage, passes[kind].damaged = restorer.damage, restorer.damaged
        return passes[kind]

    def _restorer(self, method: Method) -> Restorer | None:
        """What the teacher's tokens go through on its way, if the method wants it."""
        wanted = isinstance(method, LQNConfig) and method.adapt.restore
        return Restorer(self.calibration) if wanted and self.calibration is not None else None

    def _changed(self, control: PixelControl, crops: Tensor) -> Tensor:
        """Pixels as a control wants them; a gauged one leaves undamaged images alone."""
        changed = change_pixels(control, crops, self.calibration)
        if control.gauged:
            damaged = self._damaged(crops)
            changed = torch.where(damaged[:, None, None, None], changed, crops)
        return changed

    def _input(self, crops: Tensor) -> Tensor:
        return normalise(crops, self.teacher.pixel_mean, self.teacher.pixel_std)

    def _damaged(self, crops: Tensor) -> Tensor:
        """(B,) bool, whether images look damaged; none does without a calibration."""
        if self.calibration is None:
            return torch.zeros(len(crops), dtype=torch.bool, device=crops.device)
        restorer = Restorer(self.calibration)
        restorer(0, self.teacher.embed(self._input(crops)))
        return restorer.damaged

    def _share(self, method: LQNConfig, crops: Tensor, run: _Pass) -> Tensor:
        """(B,) share of the student's answer in the whole, 0..1."""
        if not method.adapt.gauged:
            return torch.ones(len(crops), device=crops.device)
        damaged = self._damaged(crops) if run.damaged is None else run.damaged
        if self.calibration is None or not damaged.any():
            return torch.zeros(len(crops), device=crops.device)
        return noise_share(self.calibration, run.field) * damaged

    def _answer(
        self,
        name: str,
        method: Method,
        crops: Tensor,
        run: _Pass,
        chunk: Sequence[_Window],
    ) -> _Answer:
        """Last-layer tokens: the teacher's own, or a fresh student's, or some of both."""
        own = _Answer(run.answer, run.context.last_queries)
        if isinstance(method, TokenMethod):
            return self._function_answer(method, own, crops, run)
        if name not in self._fitters:
            return own
        assert isinstance(method, LQNConfig)
        clock = Clock(self.teacher.device)
        own.share = self._share(method, crops, run)
        own.fit_ms = clock.lap()
        if not own.share.any():
            return own
        return self._student_answer(name, own, crops, run, chunk)

    def _function_answer(
        self, method: TokenMethod, own: _Answer, crops: Tensor, run: _Pass
    ) -> _Answer:
        """What a function answers; where that is not finite or memory runs out, ``own``."""
        clock = Clock(self.teacher.device)
        try:
            answered = method(self.teacher, self._input(crops), run.field)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            own.fallback = torch.ones(len(crops), dtype=torch.bool)
            return own
        own.fit_ms = clock.lap()
        finite = answered.flatten(1).isfinite().all(1)
        own.tokens = torch.where(finite[:, None, None, None], answered, own.tokens)
        own.fallback = ~finite.cpu()
        return own

    def _student_answer(
        self, name: str, own: _Answer, crops: Tensor, run: _Pass, chunk: Sequence[_Window]
    ) -> _Answer:
        """``own`` with the student's answer blended in.

        A student that runs out of memory or ends in a non-finite loss loses no image: the teacher
        answers for it, and the statistics say so.
        """
        assert own.share is not None
        clock = Clock(self.teacher.device)
        layout = self._stitched(name, chunk)
        try:
            if layout is None:
                keys = [window.key for window in chunk]
                students = self._fit(self._fitters[name], crops, run, keys)
            else:
                students = self._fit_image(name, layout, run, chunk[0])
            own.fit_ms += clock.lap()
            answered = students.query_layer(self.teacher.num_layers)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            own.fallback = (own.share > 0).cpu()
            return own
        if layout is not None:
            answered = layout.cut(answered)
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

    def _fit(
        self, fitter: Fitter, crops: Tensor, run: _Pass, keys: Sequence[RandomKey]
    ) -> FittedStudents | FittedField:
        """Students of a chunk of windows, fitted to all that their recipe looks at."""
        recipe = fitter.config

        def seen(pixels: Tensor, field: Tensor, context: EomtContext) -> tuple[Tensor, Tensor]:
            return _shrunk(pixels, recipe), self._with_queries(field, context)

        image = seen(crops, run.field, run.context)
        if isinstance(fitter, ClosedFormField):
            return fitter.fit(*image, keys)
        views = [
            seen(view, *self.teacher.encode(self._input(view), self._restorer(recipe)))
            for view in augmented_views(crops, keys, recipe.fit.views).unbind(1)[1:]
        ]
        classify = self._classifier(run.context) if recipe.fit.objective == "entropy" else None
        segments = self._segments(run) if fitter.needs_segments else None
        return fitter.fit(*image, keys, classify, views, segments)

    def _stitched(self, name: str, chunk: Sequence[_Window]) -> SlidingWindows | None:
        """The windows of a chunk if one student is fitted to all of them, or None.

        A closed form has no coordinates of its own and stays within its window.
        """
        layout = chunk[0].layout
        alone = self.config.fit_per == "window" or isinstance(self._fitters[name], ClosedFormField)
        if alone or not isinstance(layout, SlidingWindows) or len(layout.starts) == 1:
            return None
        return layout

    def _fit_image(
        self, name: str, layout: SlidingWindows, run: _Pass, window: _Window
    ) -> FittedStudents:
        """One student of an image, fitted to the tokens of all its windows."""
        field = layout.stitch(run.field)
        grid = (field.shape[1], field.shape[2], field.shape[3])
        method = self._fitters[name].config
        fitter = self._whole_fitters.get((name, grid))
        if fitter is None:
            fitter = StudentFitter(method, grid, self.teacher.width, self.teacher.device)
            self._whole_fitters[name, grid] = fitter
        whole = window.whole[None].to(self.teacher.device).float() / 255
        return fitter.fit(
            _shrunk(whole, method), field, [window.key], places=layout.places(self.teacher.grid)
        )

    def _classifier(self, context: EomtContext) -> Classify:
        """The frozen head as a classifier of the last layer: a distribution per pixel of its masks.

        Semantic scores are not normalised over classes; their shares are what the entropy is of.
        """

        def classify(tokens: Tensor) -> Tensor:
            height, width = self.teacher.grid
            patches = tokens[:, : height * width].unflatten(1, (height, width))
            masks, classes = self.head(patches, context.last_queries)
            scores = torch.stack([semantic_inference(m, c) for m, c in zip(masks, classes)])
            return scores.flatten(2).mT.clamp(min=1e-30).log()

        return classify

    def _segments(self, run: _Pass) -> Tensor:
        """(B, rows, columns) the query that the teacher gives each position to.

        Rows of query tokens below the grid are a segment of their own.
        """
        masks, classes = self.head(run.answer, run.context.last_queries)
        inside = F.interpolate(masks.sigmoid(), self.teacher.grid, mode="area")
        objects = classes.softmax(-1)[..., :-1].amax(-1)
        winners = (objects[:, :, None, None] * inside).argmax(1)
        return F.pad(winners, (0, 0, 0, self.query_rows), value=self.teacher.num_queries)

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
        if isinstance(layout, SlidingWindows):
            scores = torch.stack(
                [
                    semantic_inference(resize_scores(masks, layout.window), classes)
                    for masks, classes, _ in parts
                ]
            )
            return Prediction({"sem_seg": layout.average(scores, size)}, stats)
        masks = layout.logits(parts[0][0], size)
        return Prediction(self._outputs(masks, parts[0][1], self.tasks), stats)

    def _outputs(
        self, mask_logits: Tensor, class_logits: Tensor, tasks: Sequence[str]
    ) -> dict[str, Any]:
        """What is predicted for an image of one window, from logits at the output's size."""
        config = self.config
        output: dict[str, Any] = {}
        if "semantic" in tasks:
            output["sem_seg"] = semantic_inference(mask_logits, class_logits)
        if "panoptic" in tasks:
            output["panoptic_seg"] = panoptic_inference(
                mask_logits,
                class_logits,
                self.thing_ids,
                config.object_mask_threshold,
                config.overlap_threshold,
            )
        if "instance" in tasks:
            output["instances"] = instance_inference(
                mask_logits, class_logits, self.thing_ids, config.top_k
            )
        return output


def _shrunk(pixels: Tensor, recipe: LQNConfig) -> Tensor:
    """(B, 3, h, w) pixels in 0..1 as the student's input (B, 3, s, s)."""
    side = recipe.student.input_size
    small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    # The student's own normalisation, whatever the teacher's is (ambiguity 21).
    return normalise(small, IMAGENET_MEAN, IMAGENET_STD)


def _fidelity(answer: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Mean cosine and error over variance of (B, H, W, D) tokens against the teacher's.

    Error over variance is 1 for the mean token and 0 for the teacher's own.
    """
    cosine = F.cosine_similarity(answer, target, dim=-1).flatten(1).mean(1)
    error, variance = (x.square().flatten(1).sum(1) for x in (answer - target, centred(target)))
    return cosine.tolist(), (error / variance).tolist()

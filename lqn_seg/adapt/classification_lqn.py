"""LQN for classification: a student fitted to the image's tokens, read out against the texts.

The teacher runs once (its statistics restored while it runs, where the recipe says so); a student
is fitted to its token field; the student's answer, or so much of it as the recipe lets through,
takes the place of the teacher's tokens; the frozen ``ln_post`` and projection and the texts do the
rest. Read-outs:

- ``cls``: the CLS token alone. Its answer is zero-shot's wherever the student is not heard.
- ``mean``: the mean direction of all patches of the last layer, the paper's read-out.
- ``mean_cls``: likewise with the CLS token among them.
- ``text``: likewise without, each patch weighted by how sure it is of some class.
- ``reentry``: the student's patches of ``reentry_layer`` go back into the teacher, which runs on
  from there, and its own CLS token is read.

A student that shall know the CLS token gets it as one more row below the grid of patches, repeated
over its columns, as the segmenter does with query tokens.

Shapes: B images, L x H x W grid, D features, E joint features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.baselines.zero_shot import mean_direction
from lqn_seg.adapt.classification_methods import Adaptation
from lqn_seg.core.alignment import Calibration, Restorer, noise_share
from lqn_seg.core.fit import Classify, StudentFitter
from lqn_seg.core.random import RandomKey
from lqn_seg.core.timing import Clock, is_out_of_memory
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from lqn_seg.teachers.clip import ClipContext, ClipTeacher


@dataclass
class Run:
    """One pass of the teacher over B images.

    damage, damaged: (B,) what the gauge saw and whether clean images show less; None where it was
        not asked.
    """

    field: Tensor
    context: ClipContext
    ms: float
    damage: Tensor | None = None
    damaged: Tensor | None = None

    def first(self, count: int) -> Run:
        """Of the first images alone."""
        readings = (None if x is None else x[:count] for x in (self.damage, self.damaged))
        context = ClipContext(self.context.prefix[:count])
        return Run(self.field[:count], context, self.ms, *readings)


@dataclass
class Answer:
    """(B, E) unit features, and what came of the fit of S students.

    fallback: (S,) where a student failed and the teacher answered.
    share: (S,) how much of the student's answer was taken.
    ms: of all that came after the teacher's pass: gauge, fit and read-out.
    """

    features: Tensor
    fallback: Tensor
    share: Tensor
    ms: float


class Adapter:
    """Adapts to batches of images by one recipe; owns the students' storage.

    Args:
        teacher: frozen.
        adaptation: the recipe.
        text: (C, E) class features, for the read-out ``text`` and the entropy objective.
        calibration: the teacher's clean ranges; without it nothing is restored, and a gauged
            student is not heard.
    """

    def __init__(
        self,
        teacher: ClipTeacher,
        adaptation: Adaptation,
        text: Tensor,
        calibration: Calibration | None = None,
    ) -> None:
        self.teacher, self.adaptation, self.text = teacher, adaptation, text
        self.calibration = calibration
        layer = adaptation.reentry_layer or teacher.num_layers // 2
        if not 1 <= layer <= teacher.num_layers:
            raise InputError(
                f"CLASSIFICATION.REENTRY_LAYER must be in 1..{teacher.num_layers}, not {layer}"
            )
        self.layer = layer if adaptation.readout == "reentry" else teacher.num_layers
        rows, columns = teacher.grid
        grid = (teacher.num_layers, rows + adaptation.knows_cls, columns)
        self.fitter: StudentFitter | None = None
        if adaptation.has_student:
            self.fitter = StudentFitter(adaptation.recipe, grid, teacher.width, teacher.device)
            if adaptation.readout == "reentry" and self.layer not in self.fitter.layers:
                raise InputError(
                    f"the read-out reentry asks for layer {self.layer}, which the student is not "
                    f"fitted to: MODEL.LQN.FIT.LAYERS ({self.layer},) or CLASSIFICATION."
                    "REENTRY_LAYER"
                )

    @property
    def restores(self) -> bool:
        """Whether the pass that the recipe starts from is a restored one."""
        return self.adaptation.restores and self.calibration is not None

    def encode(self, pixels: Tensor) -> Run:
        """The teacher's pass over (B, 3, S, S) pixels in 0..1 that the recipe starts from."""
        clock = Clock(self.teacher.device)
        restorer = None
        if self.restores and self.calibration is not None:
            restorer = Restorer(self.calibration)
        field, context = self.teacher.encode(self._input(pixels), restorer)
        run = Run(field, context, clock.lap())
        if restorer is not None:
            run.damage, run.damaged = restorer.damage, restorer.damaged
        return run

    def __call__(self, pixels: Tensor, run: Run, keys: Sequence[RandomKey]) -> Answer:
        """Answers for (B, 3, S, S) pixels in 0..1, from the teacher's `encode` of them.

        There are as many students as keys, for the first of the images.
        """
        clock = Clock(self.teacher.device)
        own, cls = run.field[:, self.layer - 1], run.context.cls
        pixels, seen = pixels[: len(keys)], run.first(len(keys))
        share = self._share(pixels, seen)
        fallback = torch.zeros(len(keys), dtype=torch.bool)
        if self.fitter is not None and share.any():
            answered, finite = self._fit(self.fitter, pixels, seen, keys)
            heard = finite.to(share.device) & (share > 0)
            fallback = (~finite) & (share > 0).cpu()
            rows = self.teacher.grid[0]
            own = _blend(own, answered[:, :rows], share, heard)
            if self.adaptation.knows_cls:
                cls = _blend(cls, answered[:, rows:].mean((1, 2)), share, heard)
        features = self._readout(own, cls, run)
        return Answer(features, fallback, share, clock.lap())

    def _share(self, pixels: Tensor, run: Run) -> Tensor:
        """(B,) how much of a student's answer is taken: the share of noise in the last layer."""
        nothing = torch.zeros(len(pixels), device=self.teacher.device)
        if self.fitter is None:
            return nothing
        if not self.adaptation.recipe.adapt.gauged:
            return nothing + 1
        if self.calibration is None:
            return nothing
        damaged = run.damaged
        if damaged is None:
            restorer = Restorer(self.calibration)
            restorer(0, self.teacher.embed(self._input(pixels)))
            damaged = restorer.damaged
        return noise_share(self.calibration, run.field) * damaged if damaged.any() else nothing

    def _fit(
        self, fitter: StudentFitter, pixels: Tensor, run: Run, keys: Sequence[RandomKey]
    ) -> tuple[Tensor, Tensor]:
        """Fresh students' tokens of the layer that is read, (B, H [+ 1], W, D), and whether each
        is finite. Running out of memory is a failure of all of them, and loses no image."""
        side = fitter.config.student.input_size
        small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        field = self._with_cls(run.field, run.context)
        entropy = fitter.config.fit.objective == "entropy"
        try:
            students = fitter.fit(
                normalise(small, IMAGENET_MEAN, IMAGENET_STD),
                field,
                keys,
                self._classify() if entropy else None,
                segments=self._segments(run) if fitter.needs_segments else None,
            )
            answered = students.query_layer(self.layer)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return field[:, self.layer - 1].float(), torch.zeros(len(keys), dtype=torch.bool)
        return answered, students.finite & answered.flatten(1).isfinite().all(1).cpu()

    def _classify(self) -> Classify:
        scale, text = self.teacher.logit_scale, self.text
        return lambda tokens: scale * self.teacher.project(tokens) @ text.T

    def _segments(self, run: Run) -> Tensor:
        """(B, H [+ 1], W) the class that each patch is likest to; CLS is a segment of its own."""
        winners = (self.teacher.project(run.field[:, -1]) @ self.text.T).argmax(-1)
        return F.pad(winners, (0, 0, 0, int(self.adaptation.knows_cls)), value=len(self.text))

    def _with_cls(self, field: Tensor, context: ClipContext) -> Tensor:
        """(B, L, H, W, D) field, with CLS as a row below it where the student knows it."""
        if not self.adaptation.knows_cls:
            return field
        row = context.prefix[:, 1:, :, None].expand(-1, -1, -1, field.shape[3], -1)
        return torch.cat([field, row], 2)

    def _readout(self, patches: Tensor, cls: Tensor, run: Run) -> Tensor:
        """(B, H, W, D) patches and (B, D) CLS to (B, E) unit features."""
        teacher, readout = self.teacher, self.adaptation.readout
        if readout == "reentry":
            last, context = teacher.resume(self.layer, patches, run.context)
            return teacher.pooled(last, context)
        if readout == "cls":
            return teacher.project(cls)
        tokens = patches.flatten(1, 2)
        if readout == "mean_cls":
            tokens = torch.cat([cls[:, None], tokens], 1)
        projected = teacher.project(tokens)
        if readout != "text":
            return mean_direction(projected)
        surest = (teacher.logit_scale * projected @ self.text.T).softmax(-1).amax(-1)
        return mean_direction(projected, surest)

    def _input(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self.teacher.pixel_mean, self.teacher.pixel_std)


def _blend(own: Tensor, answered: Tensor, share: Tensor, heard: Tensor) -> Tensor:
    """(B, ..., D): of the first S, the (S,) ``share`` of the answer (S, ..., D) and the rest of the
    teacher's, where it is heard."""
    shape = (-1,) + (1,) * (own.ndim - 1)
    first = own[: len(share)]
    mixed = torch.lerp(first.float(), answered, share.view(shape)).to(own.dtype)
    return torch.cat([torch.where(heard.view(shape), mixed, first), own[len(share) :]])

"""Images in a teacher: its tokens at any depth, students of all layers, and what it cannot know."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lqn_seg.adapt.familiarity import Familiarity
from lqn_seg.adapt.journey import over_variance
from lqn_seg.adapt.timing import Clock
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.lqn import FittedStudents, StudentFitter
from lqn_seg.core.random import image_key
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import PaddedWindow, layout_of
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Hook, Teacher, normalise

UNLIKE = "unlike anything this teacher was calibrated on"
_NAMED = 16  # classes


class Probe:
    """B images in one teacher.

    Args:
        images: (3, h, w) uint8 each; of an image that needs several windows, the first.
        inference: how images meet the teacher, as `SegmentationConfig.inference`.
        seed: of the students.
        hook: what is done to the teacher's tokens on their way.

    Attributes:
        windows: (B, 3, *S) pixels in 0..1, as the teacher sees them.
        inside: (rows, columns) of each window that are image, the rest is padding.
        field: (B, L, H, W, D).
    """

    @torch.no_grad()
    def __init__(
        self,
        teacher: Teacher,
        images: Sequence[Tensor],
        inference: str = "pad",
        seed: int = 0,
        hook: Hook | None = None,
    ) -> None:
        self.teacher = teacher
        self.keys = [image_key(seed, image, 0) for image in images]
        layouts = [layout_of(image, teacher, inference) for image in images]
        self.inside = [
            layout.inside if isinstance(layout, PaddedWindow) else teacher.image_size
            for layout in layouts
        ]
        crops = [layout.crops(image)[0] for layout, image in zip(layouts, images)]
        self.windows = torch.stack(crops).to(teacher.device).float() / 255
        self.normalised = normalise(self.windows, teacher.pixel_mean, teacher.pixel_std)
        self.field, _ = teacher.encode(self.normalised, hook)

    @property
    def depth(self) -> int:
        return self.field.shape[1]

    def fit(self, method: LQNConfig, other: Tensor | None = None) -> FittedStudents:
        """Fresh students of all layers; `other` is a (B, l, H, W, D') field in place of `field`."""
        tokens = self.field if other is None else other
        method = replace(method, fit=replace(method.fit, layers=None))
        layers, rows, columns, features = tokens.shape[1:]
        fitter = StudentFitter(method, (layers, rows, columns), features, tokens.device)
        side = method.student.input_size
        small = F.interpolate(self.windows, (side, side), mode="bilinear", antialias=True)
        clock = Clock(tokens.device)
        students = fitter.fit(normalise(small, IMAGENET_MEAN, IMAGENET_STD), tokens, self.keys)
        self.fit_ms = clock.lap()
        return students

    def at(self, layer: float) -> Tensor:
        """(B, H, W, D) teacher's tokens; between two layers, what is linear between them. An
        `InputError` where the layer is not in 1..L."""
        if not 1 <= layer <= self.depth:
            raise InputError(f"the layer must be in 1..{self.depth}, not {layer:g}")
        below, above = math.floor(layer), math.ceil(layer)
        return torch.lerp(self.field[:, below - 1], self.field[:, above - 1], layer - below)

    def errors(self, students: FittedStudents) -> list[float]:
        """Error over variance by layer, over all images together."""
        layers = range(1, self.depth + 1)
        return [over_variance(students.query_layer(k) - self.at(k), self.at(k)) for k in layers]

    @property
    def shown(self) -> tuple[int, int]:
        """Rows and columns of the first window's grid that are image."""
        size, grid = self.teacher.image_size, self.teacher.grid
        rows, columns = (math.ceil(i * g / s) for i, g, s in zip(self.inside[0], grid, size))
        return rows, columns

    def visible(self, tokens: Tensor) -> NDArray[np.float32]:
        """(B, H, W, D) to the first window's (h, w, D), without positions that are padding."""
        rows, columns = self.shown
        return tokens[0, :rows, :columns].float().cpu().numpy()

    def picture(self) -> NDArray[np.uint8]:
        """The first image as the teacher sees it, without padding."""
        return self._cropped(self.windows[0])

    def pixel_field(self) -> Tensor:
        """(B, 1, H, W, 3 p q) the windows' pixels in 0..1, a patch of p x q for each position."""
        rows, columns = self.teacher.grid
        patches = self.windows.unflatten(2, (rows, -1)).unflatten(4, (columns, -1))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3)[:, None]

    def picture_of(self, tokens: Tensor) -> NDArray[np.uint8]:
        """(B, H, W, 3 p q) tokens of `pixel_field` as the first window's picture."""
        patch = [s // g for s, g in zip(self.teacher.image_size, self.teacher.grid)]
        pixels = tokens[0].unflatten(-1, (3, *patch)).permute(2, 0, 3, 1, 4)
        return self._cropped(pixels.flatten(3).flatten(1, 2))

    def _cropped(self, window: Tensor) -> NDArray[np.uint8]:
        rows, columns = self.inside[0]
        pixels = (255 * window[:, :rows, :columns].clamp(0, 1)).round().to(torch.uint8)
        return pixels.movedim(0, 2).cpu().numpy()


def student_recipe(name: str, method: object, all_layers: bool = True) -> LQNConfig:
    """A method's recipe; an `InputError` where it has no student whose fit can be looked at, or
    with `all_layers` none of all layers, as APM's."""
    variants = ("lqn", "lqn-src") if all_layers else ("lqn", "lqn-src", "apm")
    if not isinstance(method, LQNConfig) or method.fit.variant not in variants:
        kind = "that covers all layers" if all_layers else "that is fitted step by step"
        raise InputError(f"--methods: {name} has no student {kind}")
    if not method.fit.steps:
        raise InputError(f"--methods: {name} takes no step, so there is no curve")
    return method


def known_classes(names: Sequence[str], who: str = "this teacher") -> str:
    """Which classes a teacher knows, in words: anything else gets one of these names too. `who` is
    the run for a CLIP, whose classes are given."""
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{who} knows only {len(names)} classes: {shown}"


def is_unlike(
    teacher: Teacher[Any], calibration: Calibration | None, image: Tensor, inference: str = "pad"
) -> bool:
    """Whether a (3, h, w) uint8 image lies far outside what the teacher was calibrated on, damage
    apart; none does without a calibration, or with one that has not measured it."""
    if calibration is None:
        return False
    hook = Familiarity(calibration.to(teacher.device))
    return bool(hook.unlike(Probe(teacher, [image], inference, hook=hook).shown))

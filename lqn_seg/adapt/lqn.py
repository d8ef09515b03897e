"""LQN as a method: a student fitted to an image's token field.

A student that shall give context tokens too (an EoMT's queries, a CLIP's CLS) finds them as further
rows below the grid of patches, repeated until the rows are full.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.ablations import fit_options, fit_whole_image, query_options
from lqn_seg.adapt.journey import Answer, Images, Method, Pass
from lqn_seg.adapt.noise import noise_fraction
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.field import cell_centres
from lqn_seg.core.lqn import StudentFitter
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Teacher, normalise


class LQN(Method):
    """A student per image.

    Args:
        recipe: student, fit, and what is done before and after.
        context: whether what is made of the answer needs the context tokens.
        layer: that is queried; 0 is the last.
    """

    student = True

    def __init__(
        self, recipe: LQNConfig, teacher: Teacher[Any], context: bool = False, layer: int = 0
    ) -> None:
        super().__init__(teacher, recipe.adapt.align, layer, recipe)
        self.recipe: LQNConfig = recipe
        self.whole_image = recipe.ablation == "fit-per-image"
        self.context_size = context_size(recipe, teacher, context)
        rows, columns = teacher.grid
        self.rows = rows  # of the patches; those of the context tokens come below
        self.context_rows = math.ceil(self.context_size / columns)
        self.grid = (teacher.num_layers, rows + self.context_rows, columns)
        self.fitter = StudentFitter(recipe, self.grid, teacher.width, teacher.device)
        self.precision = self.fitter.precision

    def mixing_weight(self, images: Images, seen: Pass) -> Tensor:
        return mixing_weight(self.recipe, images, seen)

    def fit(self, images: Images, seen: Pass) -> Callable[[], Answer]:
        if self.whole_image and images.whole is not None:
            return fit_whole_image(self, images, seen)
        count = students(self.recipe, images)
        views = len(images.moves) or 1
        fields = self.field(seen.field[: views * count], seen.context).chunk(views)
        inputs = self.student_input(images.pixels[:count])
        keys, options = images.keys[:count], fit_options(self, images, seen, count)
        if images.moves:
            places = map(self._moved, images.moves)
            options = {"views": list(zip([inputs] * views, fields, places))[1:]}
        fitted = self.fitter.fit(inputs, fields[0], keys, **options)

        def query() -> Answer:
            options = query_options(self, keys, self.grid[1] * self.grid[2])
            tokens = [fitted.query_layer(self.layer, view=k, **options) for k in range(views)]
            return Answer(*self.split(torch.cat(tokens)), fitted.finite.repeat(views))

        return query

    def _moved(self, move: tuple[float, float]) -> list[Tensor]:
        """Coordinates of the rows and of the columns of a moved view's tokens."""
        return [cell_centres(side, 1) + by for side, by in zip(self.grid[1:], move)]

    def student_input(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) pixels in 0..1 as the student's input (B, 3, s, s).

        ImageNet's normalisation, whatever the teacher's is (ambiguity 21).
        """
        side = self.recipe.student.input_size
        small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        return normalise(small, IMAGENET_MEAN, IMAGENET_STD)

    def field(self, field: Tensor, context: Any) -> Tensor:
        """(B, L, H, W, D) with the context tokens of every layer in the rows below."""
        if not self.context_rows:
            return field
        tokens = context.by_layer(field.shape[1])[: len(field)]  # (B, L, K, D)
        below = tokens[:, :, self._cells(field.device)].unflatten(2, (self.context_rows, -1))
        return torch.cat([field, below], 2)

    def split(self, answer: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, H + rows, W, D) to patches (B, H, W, D) and context tokens (B, K, D), each the mean
        of its cells."""
        if not self.context_rows:
            return answer, None
        below = answer[:, self.rows :].flatten(1, 2)  # (B, cells, D)
        cells = self._cells(answer.device)
        assignment = F.one_hot(cells, self.context_size).to(below.dtype)  # (cells, K)
        return answer[:, : self.rows], (assignment / assignment.sum(0)).T @ below

    def _cells(self, device: torch.device) -> Tensor:
        """Which context token each cell below the grid holds."""
        cells = self.context_rows * self.grid[2]
        return torch.arange(cells, device=device) % self.context_size


def context_size(recipe: LQNConfig, teacher: Teacher[Any], queried: bool = False) -> int:
    """K: how many context tokens a student is fitted to and gives; 0 leaves them the teacher's.

    Args:
        queried: whether what is made of the answer needs them.
    """
    gives = queried or recipe.ablation in ("student-queries", "cls-in-field")
    return max(getattr(teacher, "num_queries", 1), 1) if gives else 0


def students(recipe: LQNConfig, images: Images) -> int:
    """Every crop of an image has a student; of a recipe that mixes by the noise fraction, whose
    student mends what alignment has left, the image itself alone. An image and itself moved have
    one together."""
    one = recipe.adapt.mix_by_noise or images.moves
    return len(images.pixels) // (images.views if one else 1)


def mixing_weight(recipe: LQNConfig, images: Images, seen: Pass) -> Tensor:
    """(S,) weight of the student's answer: the noise fraction of the last layer, or 1. Moved views
    of an image have its weight."""
    count = students(recipe, images)
    weight = torch.ones(count, device=images.teacher.device)
    if recipe.adapt.mix_by_noise:
        damaged = (images.damaged() if seen.damaged is None else seen.damaged)[:count]
        if images.calibration is None or not damaged.any():
            weight = 0 * weight
        else:
            weight = noise_fraction(images.calibration, seen.field[:count]) * damaged
    return weight.repeat(len(images.moves) or 1)

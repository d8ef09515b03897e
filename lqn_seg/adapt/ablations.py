"""The paper's ablations that gain nothing (REPORT.md): runnable, and out of everybody's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.augment import augmented_views
from lqn_seg.adapt.journey import Answer, Images, Pass
from lqn_seg.core.fit import StudentFitter

if TYPE_CHECKING:
    from lqn_seg.adapt.lqn import LQN


def ablation_inputs(method: LQN, images: Images, seen: Pass) -> dict[str, Any]:
    """What the fit of an ablation is given beside the image: views, a classifier, segments."""
    fit = method.recipe.fit
    extra: dict[str, Any] = {}
    if fit.views > 1:
        views = augmented_views(images.pixels, images.keys, fit.views).unbind(1)[1:]
        extra["views"] = [fitted_view(method, images, view) for view in views]
    if fit.objective == "entropy":
        extra["classify"] = classifier(images, seen)
    if method.fitter.needs_segments:
        extra["segments"] = segments(method, images, seen)
    return extra


def fitted_view(method: LQN, images: Images, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What a student sees of another view: its input, and the teacher's tokens."""
    seen = images.encode_pixels(pixels, method.aligned)
    return method.student_input(pixels), method.field(seen.field, seen.context)


def classifier(images: Images, seen: Pass) -> Callable[[Tensor], Tensor]:
    """Last-layer tokens (B, n, D), the patches first, to what the frozen head says of them."""
    assert images.task is not None
    task, count = images.task, seen.field.shape[2] * seen.field.shape[3]
    return lambda tokens: task.log_scores(tokens[:, :count], seen.context)


def segments(method: LQN, images: Images, seen: Pass) -> Tensor:
    """(B, H + rows, W) the segment of each position; context tokens are one of their own."""
    assert images.task is not None
    labels = images.task.segments(seen)
    return F.pad(labels, (0, 0, 0, method.context_rows), value=int(labels.max()) + 1)


def fit_whole_image(method: LQN, images: Images, seen: Pass) -> Callable[[], Answer]:
    """One student for all windows of an image, fitted to their tokens where they lie in it."""
    assert images.whole is not None
    whole, layout = images.whole
    field = layout.stitch(seen.field)
    grid = (field.shape[1], field.shape[2], field.shape[3])
    fitter = StudentFitter(method.recipe, grid, field.shape[-1], field.device)
    pixels = whole[None].to(field.device).float() / 255
    places = layout.places(images.teacher.grid)
    fitted = fitter.fit(method.student_input(pixels), field, images.keys[:1], places=places)

    def query() -> Answer:
        finite = fitted.finite.expand(len(seen.field))
        return Answer(layout.cut(fitted.query_layer(method.layer)), finite=finite)

    return query

"""The paper's ablations, and ours, that gain nothing (docs/results): runnable, out of the way.

Each hands something to the fit or the query: a sampler, a loss, further views, a source, tied
weights. (``student-queries`` and ``cls-in-field`` fit the context tokens: `lqn.context_size`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.adapt.baselines.features import entropy
from lqn_seg.adapt.dense.encoder import log_p
from lqn_seg.adapt.journey import Answer, Images, Pass
from lqn_seg.adapt.methods import parse_ablation
from lqn_seg.core.lqn import Loss, Sampler, StudentFitter, Students
from lqn_seg.core.random import RandomKey, Stream, generator, image_seed
from lqn_seg.core.view import View
from lqn_seg.errors import InputError

if TYPE_CHECKING:
    from lqn_seg.adapt.lqn import LQN


def fit_options(method: LQN, images: Images, seen: Pass, count: int) -> dict[str, Any]:
    """What the fit of the first `count` images is given beside them."""
    make = _OPTIONS.get(parse_ablation(method.recipe.ablation)[0])
    return make(method, images, seen, count) if make else {}


def query_options(method: LQN, keys: Sequence[RandomKey], count: int) -> dict[str, Any]:
    """What a query of so many addresses is given."""
    word, numbers = parse_ablation(method.recipe.ablation)
    if word == "source":
        return {"source": numbers}
    if word != "random-source":
        return {}
    device, (_, rows, columns) = method.fitter.device, method.grid
    streams = [generator(key, Stream.QUERY, device) for key in keys]
    layers = torch.tensor(method.fitter.layers, device=device)
    size = torch.tensor((rows, columns, len(layers)), device=device)
    drawn = [torch.rand(count, 3, generator=g, device=device) for g in streams]
    i, j, layer = (torch.stack(drawn) * size).long().unbind(-1)
    return {"source": torch.stack((i + 1, j + 1, layers[layer]), -1).float()}


def _views(method: LQN, images: Images, seen: Pass, count: int) -> dict[str, Any]:
    """Random parts of the images, mirrored half the time, each with a pass of its own.

    torchvision's RandomResizedCrop and RandomHorizontalFlip at their defaults.
    """
    further = []
    (views,) = parse_ablation(method.recipe.ablation)[1]
    for number in range(1, views):
        pixels = torch.cat([_part(x, key, number) for x, key in zip(images.pixels, images.keys)])
        other = images.encode_pixels(pixels, method.aligned)
        field = method.field(other.field[:count], other.context)
        further.append((method.student_input(pixels[:count]), field, ()))
    return {"views": further}


def _part(pixels: Tensor, key: RandomKey, number: int) -> Tensor:
    """(3, h, w) pixels to one view (1, 3, h, w)."""
    from torchvision.transforms import v2  # takes seconds, for one ablation

    cut = v2.Compose([v2.RandomResizedCrop(tuple(pixels.shape[1:])), v2.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(image_seed(key, Stream.VIEW) + number)
        return cut(pixels)[None]


def _entropy(method: LQN, images: Images, seen: Pass, count: int) -> dict[str, Any]:
    """The entropy of what the frozen head says of the whole last layer, in L_B's place."""
    assert images.task is not None
    task, fitter, (_, rows, columns) = images.task, method.fitter, method.grid
    patches = rows - method.context_rows
    field = method.field(seen.field[:count], seen.context)
    shape = (count, *method.grid, fitter.feature_dim)
    side = method.recipe.student.input_size
    blank = field.new_zeros(count, 3, side, side)
    view = View.of(blank, field, method.recipe, fitter.layers, shape)
    depth = field.new_full((count, rows * columns), method.grid[0])

    if fitter.layers[-1] != method.grid[0]:
        raise InputError("MODEL.LQN.ABLATION entropy needs the last layer among FIT.LAYERS")

    def loss(tokens: Tensor, _: Tensor) -> Tensor:
        tokens = view.in_units(tokens, depth)[:, : patches * columns].unflatten(1, (-1, columns))
        return entropy(log_p(task, tokens, seen.context)).flatten(1).mean(1)

    def sampler(student: int, key: RandomKey) -> Tensor:
        drawn = fitter.uniform(student, key)[1:, :, : rows * columns]
        last = torch.arange(rows * columns, device=field.device) + (len(fitter.layers) - 1) * (
            rows * columns
        )
        whole = last.expand(1, method.recipe.fit.steps, -1)
        if not len(drawn):
            return whole
        repeats = -(-whole.shape[2] // drawn.shape[2])
        return torch.cat([whole, drawn.repeat(1, 1, repeats)[..., : whole.shape[2]]])

    options: dict[str, Sampler | Loss] = {"sampler": sampler, "binding": loss}
    return options


def _segments(method: LQN, images: Images, seen: Pass, count: int) -> dict[str, Any]:
    """Source 1, source 2 and destination from three different segments (the paper's section 10).

    Each source is uniform over addresses outside the others' segments, or over all where none is
    left: an image of one segment has no other.
    """
    assert images.task is not None
    labels = images.task.segments(seen)[:count]
    labels = F.pad(labels, (0, 0, 0, method.context_rows), value=int(labels.max()) + 1).flatten(1)
    fitter, size = method.fitter, labels.shape[1]

    def sampler(student: int, key: RandomKey) -> Tensor:
        drawn, segments = fitter.uniform(student, key), labels[student]  # (draws, N, n), (H W,)
        taken = [segments[drawn[0] % size]]
        random = generator(key, Stream.SEGMENT, labels.device)
        for index in range(1, len(drawn)):
            free = torch.stack([segments != other[..., None] for other in taken]).all(0)
            free |= ~free.any(-1, keepdim=True)  # (N, n, H W)
            place = free.flatten(0, 1).float().multinomial(1, generator=random).view(taken[0].shape)
            drawn[index] = drawn[index] // size * size + place
            taken.append(segments[place])
        return drawn

    return {"sampler": sampler}


class AddedPositions(Students):
    """P(src) + P(dest) in one block of the first matrix, in place of one beside the other."""

    def __init__(self, fitter: StudentFitter, keys: Sequence[RandomKey]) -> None:
        super().__init__(fitter, keys)
        self.weights["first.source"] = self.weights["first.destination"]


_OPTIONS: dict[str, Callable[[LQN, Images, Pass, int], dict[str, Any]]] = {
    "views": _views,
    "entropy": _entropy,
    "segments": _segments,
    "added-positions": lambda *_: {"students": AddedPositions},
}


def fit_whole_image(method: LQN, images: Images, seen: Pass) -> Callable[[], Answer]:
    """One student for all windows of an image, fitted to their tokens where they lie in it."""
    assert images.whole is not None
    whole, layout = images.whole
    field = layout.stitch(seen.field)
    grid = (field.shape[1], field.shape[2], field.shape[3])
    fitter = StudentFitter(method.recipe, grid, field.shape[-1], field.device)
    pixels = method.student_input(whole[None].to(field.device).float() / 255)
    coordinates = layout.coordinates(images.teacher.grid)
    fitted = fitter.fit(pixels, field, images.keys[:1], coordinates=coordinates)

    def query() -> Answer:
        finite = fitted.finite.expand(len(seen.field))
        return Answer(layout.cut(fitted.query_layer(method.layer)), finite=finite)

    return query

"""Milliseconds and GMACs of a stage against each size, and of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from lqn_seg.core.config import LQNConfig, with_variant
from lqn_seg.lab.benchmark.references import Run, with_fit
from lqn_seg.lab.benchmark.teachers import Scene
from lqn_seg.lab.cost.flops import fit_gmacs, query_gmacs
from lqn_seg.lab.cost.speed import exponent, interleaved, layer_times, query_times

_BATCHES = (1, 2, 4)
_DOUBLINGS = (0.5, 1, 2)
_STEPS = 4  # enough: a step costs what another does

Point = tuple[int, Callable[[], Any], float]  # size, what is timed, GMACs


def sweeps(
    scene: Scene, resized: Callable[[int], Scene], recipe: LQNConfig, repeats: int
) -> dict[str, Any]:
    """Cost against positions, steps, batch and image side, with the exponent of each."""
    few = min(_STEPS, recipe.fit.steps)
    recipe = with_fit(recipe, steps=few)
    positions = recipe.fit.visited(scene.grid)
    halves = [max(1, round(factor * positions)) for factor in _DOUBLINGS]
    sides = [round(factor * scene.side) for factor in _DOUBLINGS]
    scenes = [scene if side == scene.side else resized(side) for side in sides]
    sweep = partial(_sweep, repeats=repeats, device=scene.field.device)
    return {
        "positions": sweep("fit", _fits(scene, recipe, "positions_per_step", halves)),
        "steps": sweep("fit", _fits(scene, recipe, "steps", (few, 2 * few, 4 * few))),
        "batch": sweep("fit", _fits(scene, recipe, None, _BATCHES)),
        "image_side_teacher": sweep(
            "teacher", ((x.side, x.encode, x.gmacs["teacher"]) for x in scenes)
        ),
        "image_side_readout": sweep("query", _readouts(scenes, recipe)),
    }


def _fits(
    scene: Scene, recipe: LQNConfig, option: str | None, sizes: Sequence[int]
) -> Iterator[Point]:
    """Fits with an option at several sizes; None is the number of students side by side."""
    for size in sizes:
        changed, batch = (with_fit(recipe, **{option: size}), 1) if option else (recipe, size)
        run = Run(scene, changed, batch)
        yield size, run.fit, batch * fit_gmacs(changed, run.grid, run.width)


def _readouts(scenes: Sequence[Scene], recipe: LQNConfig) -> Iterator[Point]:
    for scene in scenes:
        run = Run(scene, with_fit(recipe, steps=1))
        yield scene.side, run.query, query_gmacs(recipe, run.grid, run.width)


def _sweep(
    stage: str, points: Iterator[Point], repeats: int, device: torch.device
) -> dict[str, Any]:
    # One point after the other: storage for all at once may be more than there is.
    sizes, times, gmacs = [], [], []
    for size, function, cost in points:
        sizes.append(float(size))
        times.append(interleaved({stage: function}, repeats, device)[stage])
        gmacs.append(cost)
    ms, busy_ms = [t.median_ms for t in times], [t.busy_ms for t in times]
    return {
        "stage": stage,
        "sizes": sizes,
        "ms": ms,
        "busy_ms": busy_ms,
        "gmacs": gmacs,
        "exponent": exponent(sizes, busy_ms if device.type == "cpu" else ms),
        "exponent_gmacs": exponent(sizes, gmacs),
    }


def depth(scene: Scene, recipe: LQNConfig, repeats: int) -> dict[str, Any]:
    """When the teacher arrives at each layer, and how long a student takes to answer for it."""
    layers = scene.grid[0]
    run = Run(scene, with_fit(with_variant(recipe, "lqn-src"), steps=1, layers=None))
    encode = partial(scene.teacher.encode, scene.inputs)
    return {
        "layers": list(range(1, layers + 1)),
        "teacher_ms": layer_times(encode, run.device, repeats),
        "student_ms": query_times(run.fit().query_layer, layers, run.device, repeats),
    }

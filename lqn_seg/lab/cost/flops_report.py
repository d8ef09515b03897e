"""What every method costs on an EoMT or a CLIP, as ``tools/analyze_flops.py`` prints it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from tabulate import tabulate

from lqn_seg.core.config import VARIANTS, LQNConfig, preset, with_variant
from lqn_seg.core.fit import Grid
from lqn_seg.lab.cost.cost import fit_cost
from lqn_seg.lab.cost.flops import (
    ClipShape,
    EomtShape,
    FlopCount,
    clip_gmacs,
    clip_on_meta,
    count_clip,
    count_eomt,
    eomt_gmacs,
    fit_gmacs,
    load_eomt_config,
    method_gmacs,
    pass_gmacs,
    readout_gmacs,
    step_macs,
)

STAGES = ("teacher", "restore", "fit", "readout", "head", "total", "paper_convention")
COUNTERS = ("fvcore", "torch")


def teacher_config(arguments: argparse.Namespace) -> Any:
    """The `EomtConfig` that the arguments describe."""
    config = load_eomt_config(arguments.teacher)
    changes = {
        "image_size": arguments.image_size,
        "num_queries": arguments.queries,
        "num_labels": arguments.labels,
    }
    for name, value in changes.items():
        if value is not None:
            setattr(config, name, value)
    return config


def recipe(arguments: argparse.Namespace) -> LQNConfig:
    """The preset with the steps and positions that were asked for."""
    changes = {"steps": arguments.steps, "positions_per_step": arguments.positions}
    given = {name: value for name, value in changes.items() if value is not None}
    base = preset(arguments.preset)
    return dataclasses.replace(base, fit=dataclasses.replace(base.fit, **given))


def eomt_lines(arguments: argparse.Namespace, base: LQNConfig) -> list[str]:
    """Every method on an EoMT."""
    config = teacher_config(arguments)
    shape = EomtShape.from_config(config)
    rows = []
    for name in reversed(VARIANTS):
        costs = method_gmacs(
            with_variant(base, name),
            shape,
            windows=arguments.windows,
            literal=arguments.literal,
        )
        rows.append([name, *(costs[f"gmacs_{stage}"] for stage in STAGES)])
    height, width = shape.image_size
    lines = [
        f"GMACs per image: {height} x {width} px, {shape.num_queries} queries, "
        f"{arguments.windows:g} windows; preset {arguments.preset}, {base.fit.steps} steps, "
        f"{base.fit.positions_per_step} positions per step.",
        tabulate(rows, headers=["method", *STAGES[:-1], "paper"], floatfmt=".3f"),
    ]
    if arguments.count:
        counted = {name: count_eomt(config, name) for name in COUNTERS}
        closed = sum(eomt_gmacs(shape).values())
        lines += teacher_lines("teacher and head, one window", closed, counted)
        lines += student_lines(base, (shape.layers, *shape.grid), shape.width)
    return lines


def clip_lines(arguments: argparse.Namespace, base: LQNConfig) -> list[str]:
    """The paper's sum, "20.5 + 14 x 10", and all that is run, on a CLIP."""
    model = clip_on_meta(arguments.clip, arguments.image_size or 0)
    shape = ClipShape.from_model(model)
    gmacs, grid = clip_gmacs(shape), (shape.layers, *shape.grid)
    encoders = sum(gmacs.values())
    rows = []
    for name in ("lqn", "lqn-src", "apm"):
        config = with_variant(base, name)
        one_pass = pass_gmacs(config, grid, shape.width)
        further = max(0, config.fit.steps - 1)
        fit = fit_gmacs(config, grid, shape.width, arguments.literal)
        readout = readout_gmacs(config, grid, shape.width, arguments.literal)
        paper = f"{encoders:.1f} + {further} x {one_pass:.1f} = {encoders + further * one_pass:.1f}"
        rows.append([name, gmacs["teacher"], fit, readout, gmacs["teacher"] + fit + readout, paper])
    lines = [
        f"GMACs per image: {arguments.clip}, image encoder {gmacs['teacher']:.2f} + one prompt "
        f"{gmacs['prompt']:.2f} = {encoders:.2f}; preset {arguments.preset}, {base.fit.steps} "
        f"steps, {base.fit.positions_per_step} positions per step.",
        tabulate(rows, ["method", "teacher", "fit", "readout", "total", "paper"], floatfmt=".3f"),
    ]
    if arguments.count:
        counts = {name: count_clip(model, name) for name in COUNTERS}
        for part, closed in gmacs.items():
            found = {name: count[part] for name, count in counts.items()}
            lines += teacher_lines(f"one {part.replace('teacher', 'image')}", closed, found)
        lines += student_lines(base, grid, shape.width)
    return lines


def teacher_lines(what: str, closed: float, counts: dict[str, FlopCount]) -> list[str]:
    lines = [f"{what}: closed form {closed:.3f} GMACs"]
    for counter, count in counts.items():
        lines.append(f"{what}: {count.gmacs:.3f} GMACs counted by {counter}")
        lines.append(f"  not counted: {', '.join(count.uncounted)}")
    return lines


def student_lines(base: LQNConfig, grid: Grid, width: int) -> list[str]:
    """A fit's forward and backward passes, by closed form and by counter."""
    rows = []
    for name in ("lqn", "lqn-src", "apm"):
        config = with_variant(base, name)
        step, cost = step_macs(config, grid, width), fit_cost(config, grid, width)
        closed = [config.fit.steps * macs / 1e9 for macs in (step.forward, step.backward)]
        counted = [cost.forward_gmacs, cost.backward_gmacs, cost.peak_bytes / 2**20]
        rows.append([name, *closed, *counted])
    headers = ["all steps", "forward", "backward", "forward counted", "backward counted"]
    return [tabulate(rows, [*headers, "peak MiB"], floatfmt=".3f")]


def flops_lines(arguments: argparse.Namespace) -> list[str]:
    """All that is printed for the command's arguments.

    Raises:
        InputError: there is no such preset, model or folder.
    """
    count = clip_lines if arguments.clip else eomt_lines
    return count(arguments, recipe(arguments))

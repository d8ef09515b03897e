"""What every method costs on an EoMT or a CLIP, as ``lqn-seg flops`` prints it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from lqn_seg.core.config import VARIANTS, LQNConfig, preset, with_variant
from lqn_seg.core.lqn import Grid
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import Cost, clip_on_meta, count_clip, count_eomt, fit_cost
from lqn_seg.lab.cost.flops import (
    EomtShape,
    clip_gmacs,
    clip_shapes,
    eomt_gmacs,
    fit_gmacs,
    method_gmacs,
    pass_gmacs,
    query_gmacs,
    step_macs,
)
from lqn_seg.lab.report.wording import table, wrapped

STUDENTS = ("lqn", "lqn-src", "apm")
STAGES = ("teacher", "align", "fit", "query", "head", "total", "paper_convention")


def flops_lines(arguments: argparse.Namespace) -> list[str]:
    """All that is printed for the command's arguments; an InputError for what there is not."""
    changes = {"steps": arguments.steps, "positions_per_step": arguments.positions}
    given = {name: value for name, value in changes.items() if value is not None}
    base = preset(arguments.preset)
    base = replace(base, fit=replace(base.fit, **given))
    return (_clip_lines if arguments.clip else _eomt_lines)(arguments, base)


def load_eomt_config(directory: str | None = None) -> Any:
    """A `transformers.EomtConfig` from a local directory; without one, EoMT-L at 640 px, which is
    transformers' default, with COCO panoptic's 133 classes. An InputError if there is none."""
    from transformers import AutoConfig, EomtConfig

    if directory is None:
        config = EomtConfig()
        config.num_labels = 133
        return config
    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"{directory} holds no config.json")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {directory}/config.json: {error}") from error
    if not isinstance(config, EomtConfig):
        raise InputError(
            f"{directory}/config.json describes a {config.model_type!r}, not an 'eomt'"
        )
    return config


def _eomt_lines(arguments: argparse.Namespace, base: LQNConfig) -> list[str]:
    config = load_eomt_config(arguments.teacher)
    config.image_size = arguments.image_size or config.image_size
    config.num_queries = arguments.queries or config.num_queries
    config.num_labels = arguments.labels or config.num_labels
    shape = EomtShape.from_config(config)
    rows: list[list[Any]] = []
    own = sum(eomt_gmacs(shape).values()) * arguments.windows
    for name in reversed(VARIANTS):
        recipe = with_variant(base, name)
        costs = method_gmacs(recipe, shape, windows=arguments.windows, literal=arguments.literal)
        numbers = [costs[f"gmacs_{stage}"] for stage in STAGES]
        rows.append([name, *numbers, costs["gmacs_total"] / own])
    height, width = shape.image_size
    lines = [
        *_heading(
            f"{height} x {width} px, {shape.num_queries} queries, windows: {arguments.windows:g}",
            *(arguments.preset, base),
        ),
        table(rows, ["method", *STAGES[:-1], "paper", "x teacher"], ".3f"),
    ]
    if arguments.count:
        closed = sum(eomt_gmacs(shape).values())
        lines += _teacher_lines("teacher and head, one window", closed, count_eomt(config))
        lines += _student_lines(base, (shape.layers, *shape.grid), shape.width)
    return lines


def _clip_lines(arguments: argparse.Namespace, base: LQNConfig) -> list[str]:
    """The paper's sum, "20.5 + 14 x 10", and all that is run, on a CLIP."""
    model = clip_on_meta(arguments.clip, arguments.image_size or 0)
    gmacs, shape = clip_gmacs(model), clip_shapes(model)["teacher"]
    grid, width, encoders = (shape.layers, *shape.grid), shape.width, sum(gmacs.values())
    rows: list[list[Any]] = []
    for name in STUDENTS:
        recipe = with_variant(base, name)
        one_pass, further = pass_gmacs(recipe, grid, width), max(0, recipe.fit.steps - 1)
        paper = f"{encoders:.1f} + {further} x {one_pass:.1f} = {encoders + further * one_pass:.1f}"
        what = recipe, grid, width, arguments.literal
        stages = [gmacs["teacher"], fit_gmacs(*what), query_gmacs(*what)]
        rows.append([name, *stages, sum(stages), paper, sum(stages) / gmacs["teacher"]])
    lines = [
        *_heading(
            f"{arguments.clip}, image encoder {gmacs['teacher']:.2f} + one prompt "
            f"{gmacs['prompt']:.2f} = {encoders:.2f}",
            *(arguments.preset, base),
        ),
        table(rows, ["method", "teacher", "fit", "query", "total", "paper", "x teacher"], ".3f"),
    ]
    if arguments.count:
        counts = count_clip(model)
        lines += _teacher_lines("one image", gmacs["teacher"], counts["teacher"])
        lines += _teacher_lines("one prompt", gmacs["prompt"], counts["prompt"])
        lines += _student_lines(base, grid, width)
    return lines


def _heading(what: str, preset_name: str, base: LQNConfig) -> list[str]:
    fit = base.fit
    recipe = f"preset {preset_name}, {fit.steps} steps, {fit.positions_per_step} positions per step"
    return [wrapped(f"GMACs per image: {what}; {recipe}."), ""]


def _teacher_lines(what: str, closed: float, count: Cost) -> list[str]:
    return [
        f"{what}: closed form {closed:.3f} GMACs",
        f"{what}: {count.gmacs:.3f} GMACs counted by torch",
        wrapped(f"not counted: {', '.join(count.uncounted)}"),
    ]


def _student_lines(base: LQNConfig, grid: Grid, width: int) -> list[str]:
    """A fit's forward and backward passes, by closed form and by counter."""
    rows = []
    for name in STUDENTS:
        recipe = with_variant(base, name)
        step, cost = step_macs(recipe, grid, width), fit_cost(recipe, grid, width)
        closed = [recipe.fit.steps * macs / 1e9 for macs in (step.forward, step.backward)]
        counted = [cost.forward_gmacs, cost.backward_gmacs, cost.peak_bytes / 2**20]
        rows.append([name, *closed, *counted])
    heads = ["all steps", "forward", "backward", "forward counted", "backward counted", "peak MiB"]
    return ["", table(rows, heads, ".3f")]

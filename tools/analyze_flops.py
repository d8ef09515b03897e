"""What every method costs on an EoMT or a CLIP, in GMACs (multiply-add = 1, fvcore's "FLOPs").

Examples:
    python tools/analyze_flops.py                                   # EoMT-L, 640 px, 200 queries
    python tools/analyze_flops.py --image-size 512 --queries 100 --labels 150 --windows 1.83
    python tools/analyze_flops.py --teacher path/to/eomt --preset default --count
    python tools/analyze_flops.py --clip ViT-B-16-quickgelu --count  # the paper's 20.5 + 14 x 10

Columns: teacher, restore, fit, readout and head count everything that is run, forward and backward;
"paper" counts as the paper does (teacher and head, and steps - 1 times one forward pass).
--count holds the closed forms against counters that watch the real modules run on the meta device,
without weights: fvcore (a multiply-add is 1) and torch's FlopCounterMode (it is 2 there: halved).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from tabulate import tabulate

from lqn_seg.command_line import Parser, exit_status
from lqn_seg.core.fit import PRESETS, VARIANTS, Grid, LQNConfig, preset, with_variant
from lqn_seg.evaluation.cost import fit_cost
from lqn_seg.evaluation.flops import (
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


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--teacher", metavar="DIR", help="with an EoMT's config.json (EoMT-L)")
    parser.add_argument("--clip", metavar="MODEL", help="open_clip's name of a CLIP, for an EoMT")
    parser.add_argument("--image-size", type=int, help="pixels, square")
    parser.add_argument("--queries", type=int, help="mask queries")
    parser.add_argument("--labels", type=int, help="classes, without 'no object'")
    parser.add_argument("--preset", default="paper", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--steps", type=int, help="Adam steps, instead of the preset's")
    parser.add_argument("--positions", type=int, help="positions per step, instead of the preset's")
    parser.add_argument("--windows", type=float, default=1.0, help="windows per image")
    parser.add_argument("--literal", action="store_true", help="student as Table 4 states it")
    parser.add_argument(
        "--count", action="store_true", help="also count the real model, with two counters"
    )
    return parser.parse_args(argv)


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


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    count = clip_lines if arguments.clip else eomt_lines

    def show() -> None:
        print("\n".join(count(arguments, recipe(arguments))))

    return exit_status(show, "nothing was printed")


if __name__ == "__main__":
    sys.exit(main())

"""What every method costs on an EoMT, in GMACs (multiply-add = 1, fvcore's "FLOPs").

Examples:
    python tools/analyze_flops.py                                   # EoMT-L, 640 px, 200 queries
    python tools/analyze_flops.py --image-size 512 --queries 100 --labels 150 --windows 1.83
    python tools/analyze_flops.py --teacher path/to/eomt --preset default --count

Columns: teacher, restore, fit, readout and head count everything that is run, forward and backward;
"paper" counts as the paper does (teacher and head, and steps - 1 times one forward pass).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from tabulate import tabulate

from lqn_seg.core.fit import PRESETS, VARIANTS, LQNConfig, preset, with_variant
from lqn_seg.errors import InputError
from lqn_seg.evaluation.flops import (
    EomtShape,
    count_eomt,
    eomt_gmacs,
    load_eomt_config,
    method_gmacs,
)

STAGES = ("teacher", "restore", "fit", "readout", "head", "total", "paper_convention")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", help="directory with an EoMT's config.json (default: EoMT-L)")
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


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        config, base = teacher_config(arguments), recipe(arguments)
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
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    height, width = shape.image_size
    print(
        f"GMACs per image: {height} x {width} px, {shape.num_queries} queries, "
        f"{arguments.windows:g} windows; preset {arguments.preset}, {base.fit.steps} steps, "
        f"{base.fit.positions_per_step} positions per step."
    )
    headers = ["method", *STAGES[:-1], "paper"]
    print(tabulate(rows, headers=headers, floatfmt=".3f"))
    if arguments.count:
        for counter in ("fvcore", "torch"):
            count = count_eomt(config, counter)
            print(f"teacher and head, one window, counted by {counter}: {count.gmacs:.3f} GMACs")
            print(f"  not counted: {', '.join(count.uncounted)}")
        print(f"closed form: {sum(eomt_gmacs(shape).values()):.3f} GMACs")
    return 0


if __name__ == "__main__":
    sys.exit(main())

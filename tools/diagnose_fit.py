#!/usr/bin/env python
"""Show why a recipe's student does or does not learn its image.

Prints, by layer, the student's error over the variance of the teacher's tokens (1: no better than
the mean token) and how much its answer depends on the position at all (0: not at all). Writes these
and the loss of every step as fit.json, and as a plot, fit.png.

Examples:
    python tools/diagnose_fit.py --config configs/demo_lqn.yaml --methods lqn@paper,lqn@distill
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from lqn_seg.errors import InputError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--methods", default="lqn@paper,lqn@distill", help="comma-separated")
    parser.add_argument("--images", type=int, default=4, help="the first so many are fitted")
    parser.add_argument("--output", type=Path, default=Path("output/diagnose_fit"), metavar="DIR")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override config keys"
    )
    arguments = parser.parse_args()
    from lqn_seg.engine.diagnose import diagnose, write_diagnosis

    try:
        found = diagnose(
            arguments.config_file,
            arguments.methods.split(","),
            arguments.images,
            arguments.overrides,
        )
        written = write_diagnosis(found, arguments.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    for name, diagnosis in found.items():
        curve = diagnosis.loss
        first, middle, last = curve[0], curve[len(curve) // 2], curve[-1]
        print(
            f"\n{name}: loss {first:.4g} at the first step, {middle:.4g} halfway, {last:.4g} last"
        )
        rows = zip(range(1, len(diagnosis.error) + 1), diagnosis.error, diagnosis.sensitivity)
        header = ["layer", "error / variance", "variance over positions / teacher's"]
        print(tabulate(rows, header, floatfmt=".4f"))
    print()
    for path in written:
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

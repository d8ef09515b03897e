#!/usr/bin/env python
"""Show why a recipe's student does or does not learn its image.

Prints, by layer, the student's error over the variance of the teacher's tokens (1: no better than
the mean token) and how much its answer depends on the position at all (0: not at all). Writes these
and the loss of every step as fit.json, and as a plot, fit.png.

Examples:
    python tools/diagnose_fit.py --config configs/demo_lqn.yaml --methods lqn@paper,lqn@distill
    python tools/diagnose_fit.py --images 1 --output out/ --config configs/demo_lqn.yaml \\
        MODEL.LQN.FIT.STEPS 500
"""

from pathlib import Path
from typing import Any

from tabulate import tabulate

from lqn_seg.cli import Namespace, Parser, add_config_flags, check_config, exit_status, names


def parse_arguments() -> Namespace:
    parser = Parser(description=__doc__)
    parser.add("--methods", "lqn@paper,lqn@distill", "comma-separated", metavar="NAMES")
    parser.add("--images", 4, "the first so many are fitted")
    parser.add("--output", Path("output/diagnose_fit"), "for files", metavar="DIR")
    add_config_flags(parser)
    return parser.parse_args()


def run(arguments: Namespace) -> None:
    check_config(arguments)
    from lqn_seg.engine.store import make_writable
    from lqn_seg.lab.inspect.diagnose import diagnose, write_diagnosis

    make_writable(arguments.output)
    done: dict[str, Any] = {}
    given = (arguments.images, arguments.overrides, arguments.device)
    try:
        for name, diagnosis in diagnose(arguments.config_file, names(arguments.methods), *given):
            done[name] = diagnosis
            show(name, diagnosis)
    except KeyboardInterrupt:
        if not done:
            raise
        write_diagnosis(done, arguments.output)
        kept = f"{', '.join(done)} done, written to {arguments.output}"
        raise KeyboardInterrupt(kept) from None
    for path in write_diagnosis(done, arguments.output):
        print(f"written: {path}")


def show(name: str, diagnosis: Any) -> None:
    curve = diagnosis.loss
    first, middle, last = curve[0], curve[len(curve) // 2], curve[-1]
    print(f"\n{name}: loss {first:.4g} at the first step, {middle:.4g} halfway, {last:.4g} last")
    rows = zip(range(1, len(diagnosis.error) + 1), diagnosis.error, diagnosis.sensitivity)
    header = ["layer", "error / variance", "variance over positions / teacher's"]
    print(tabulate(rows, header, floatfmt=".4f"), "\n", flush=True)


def main() -> int:
    return exit_status(lambda: run(parse_arguments()), "nothing was written")


if __name__ == "__main__":
    raise SystemExit(main())

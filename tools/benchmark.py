#!/usr/bin/env python
"""Time every stage of every method on one device, beside plain ways of doing the same.

The teacher has random weights, so nothing is downloaded. Written to the output folder:
benchmark.json, benchmark.txt and, with the sweeps, benchmark.png.

Examples:
    python tools/benchmark.py                               # CLIP ViT-B/16, the paper's student
    python tools/benchmark.py --teacher eomt-l --image-size 640 --device cuda
    python tools/benchmark.py --parts --variants lqn,default --no-references --no-sweep
    python tools/benchmark.py --baselines zero,mta,tps,tpt --variants default --no-references
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

from lqn_seg.cli import Parser, exit_status, names
from lqn_seg.errors import InputError

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "core" / "reference.py"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--teacher", default="clip-b16", help="by name; a wrong one lists them")
    parser.add_argument(
        "--image-size", type=int, default=0, help="pixels, square (default: its own)"
    )
    parser.add_argument("--classes", type=int, default=0, help="of the head (default: its own)")
    parser.add_argument("--preset", default="paper", help="recipe of lqn, lqn-src and apm")
    parser.add_argument("--variants", default="lqn,lqn-src,apm,default", help="comma-separated")
    parser.add_argument("--precisions", default="auto,float32", help="comma-separated")
    parser.add_argument("--baselines", default="", help="of zero, mta, tps, tpt: with a clip")
    parser.add_argument("--views", type=int, default=64, help="that the baselines look at")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--steps", type=int, default=0, help="of fits (default: the preset's)")
    parser.add_argument("--no-references", action="store_true", help="without the plain ways")
    parser.add_argument("--no-sweep", action="store_true", help="without cost against size")
    parser.add_argument("--parts", action="store_true", help="what the fast path's parts bring")
    parser.add_argument(
        "--read",
        type=Path,
        default=None,
        metavar="FILE",
        help="tables and plot of a benchmark.json",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/benchmark"), metavar="DIR", help="for files"
    )
    return parser.parse_args(argv)


def load_reference() -> ModuleType | None:
    """The plain port that the tests hold the students against; None without the tests."""
    if not REFERENCE.is_file():
        return None
    spec = importlib.util.spec_from_file_location("core_reference", REFERENCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(arguments: argparse.Namespace) -> None:
    if arguments.read:
        report(arguments.read)
        return
    from lqn_seg.engine.store import make_writable
    from lqn_seg.lab.benchmark.benchmark import Benchmark, BenchmarkConfig, write_numbers

    config = BenchmarkConfig(
        teacher=arguments.teacher,
        image_size=arguments.image_size,
        classes=arguments.classes,
        preset=arguments.preset,
        variants=tuple(names(arguments.variants)),
        precisions=tuple(names(arguments.precisions)),
        device=arguments.device,
        threads=arguments.threads,
        repeats=arguments.repeats,
        steps=arguments.steps,
        references=not arguments.no_references,
        baselines=tuple(names(arguments.baselines)),
        views=arguments.views,
        sweep=not arguments.no_sweep,
        parts=arguments.parts,
    )
    make_writable(arguments.output)
    benchmark = Benchmark(config, load_reference(), partial(print, flush=True))
    try:
        benchmark.run()
    except BaseException as end:
        if not benchmark.results:
            raise
        kept = write_numbers(benchmark.results, arguments.output)
        if isinstance(end, KeyboardInterrupt):
            where = f"what was measured until then is in {arguments.output}"
            raise KeyboardInterrupt(where) from None
        print(f"written, as far as it was measured: {kept}")
        raise
    numbers = write_numbers(benchmark.results, arguments.output)
    print(f"written: {numbers}")
    try:
        report(numbers)
    except ModuleNotFoundError as missing:
        print(
            f"no tables and no plot, for {missing.name} is not installed: where it is, "
            f"python tools/benchmark.py --read {numbers} makes them"
        )


def report(numbers: Path) -> None:
    """Tables, and with sweeps the plot, of a ``benchmark.json``."""
    from lqn_seg.lab.benchmark.report import report_text, write_report

    try:
        results = json.loads(numbers.read_text())
        text = report_text(results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{numbers} is no benchmark.json that is whole ({error!r})") from error
    print(f"\n{text}\n", flush=True)
    for path in write_report(results, numbers.parent):
        print(f"written: {path}")


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return exit_status(lambda: run(arguments), "nothing was measured yet")


if __name__ == "__main__":
    sys.exit(main())

"""Time every stage of every method on one device, and compare with APM's release.

The teacher has random weights, so nothing is downloaded. The output folder receives benchmark.json
and benchmark.txt.

--memory prints instead what a process holds at most, by method (memory.json); --growth how cost
grows with pixels, layers, views, classes and images (growth.json, and a plot where matplotlib is
installed).

--end-to-end measures evaluations instead: from an image file to its stored result, by stage, for
teacher, restore, field and lqn, each in a run of its own. A scene is demo (the shipped teacher) or
a teacher with the side of its images; images are drawn, and noisy. Where pyinstrument is installed,
a page for each scene shows lqn's run as a flame graph.

Examples:
    lqn-seg benchmark                               # CLIP ViT-B/16, the paper's student
    lqn-seg benchmark --teacher eomt-l --image-size 640 --device cuda
    lqn-seg benchmark --baselines zero,mta,tps,tpt --variants default --no-references
    lqn-seg benchmark --memory --teacher eomt-l --image-size 1280
    lqn-seg benchmark --growth
    lqn-seg benchmark --end-to-end demo,eomt-s:512,eomt-l:512,clip-b16 --threads 2
    lqn-seg benchmark --end-to-end eomt-l:1280 --images 1 --repeats 1
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lqn_seg.cli.parser import Namespace, Parser, exit_status, names
from lqn_seg.errors import InputError

_SHARED = ("classes", "device", "threads", "repeats")  # settings of both kinds of measurement


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg benchmark", description=__doc__)
    parser.add("--teacher", "clip-b16", "name of the teacher; a wrong name lists them")
    parser.add("--image-size", 0, "side of the square image in pixels (default: the teacher's)")
    parser.add("--classes", 0, "classes of the head (default: the teacher's)")
    parser.add("--preset", "paper", "recipe of lqn, lqn-src and apm")
    parser.add("--variants", "lqn,lqn-src,apm,default", "students to time, comma-separated")
    parser.add("--precisions", "auto,float32", "precisions to time, comma-separated")
    parser.add(
        "--baselines", "", "any of zero, mta, tps, tpt, comma-separated; needs a CLIP teacher"
    )
    parser.add("--views", 64, "views per image for the baselines")
    parser.add("--end-to-end", "", "scenes whose evaluation is timed by stage, comma-separated")
    parser.add("--images", 4, "images of a scene")
    parser.add("--device", "cpu", "cpu or cuda")
    parser.add("--threads", 1, "CPU threads")
    parser.add("--repeats", 3, "repetitions of each measurement")
    parser.add("--steps", 0, "steps of a fit (default: the preset's)")
    without = "leave out APM's release"
    parser.add_argument("--no-references", dest="references", action="store_false", help=without)
    read = "measure nothing, print the tables of this benchmark.json"
    parser.add_argument("--read", type=Path, metavar="FILE", help=read)
    parser.add("--memory", False, "measure the memory of an EoMT and of methods on it")
    parser.add("--growth", False, "measure how the cost of small EoMTs grows")
    parser.add("--full", False, "print all tables, not only the summary")
    parser.add("--output", Path("output/benchmark"), "output folder", metavar="DIR")
    return parser.parse_args(words)


def run(arguments: Namespace) -> None:
    if arguments.read:
        report(arguments.read, arguments.full)
        return
    from lqn_seg.engine.store import make_writable

    if arguments.repeats < 1 or not names(arguments.precisions):
        raise InputError("a benchmark needs a precision, and repeats of at least 1")
    if sum(map(bool, (arguments.memory, arguments.growth, arguments.end_to_end))) > 1:
        raise InputError("--memory, --growth and --end-to-end are measured one at a time")
    if arguments.memory or arguments.growth:
        make_writable(arguments.output)
        (_memory if arguments.memory else _growth)(arguments, partial(print, flush=True))
        return
    from lqn_seg.lab.benchmark.benchmark import write_numbers

    build = _benchmark(arguments, partial(print, flush=True))
    make_writable(arguments.output)
    benchmark = build()
    try:
        benchmark.run()
    except BaseException as end:
        if not benchmark.results:
            raise
        kept = write_numbers(benchmark.results, arguments.output)
        if isinstance(end, KeyboardInterrupt):
            where = f"measurements up to here are in {arguments.output}"
            raise KeyboardInterrupt(where) from None
        print(f"written (incomplete): {kept}")
        raise
    numbers = write_numbers(benchmark.results, arguments.output)
    print(f"written: {numbers}")
    try:
        report(numbers, arguments.full)
    except ModuleNotFoundError as missing:
        print(
            f"no tables, because {missing.name} is not installed; install it and run "
            f"lqn-seg benchmark --read {numbers}"
        )


def _memory(arguments: Namespace, say: Callable[[str], None]) -> None:
    from lqn_seg.lab.benchmark.memory import MemoryConfig, memory_text, peaks
    from lqn_seg.lab.report.provenance import write_json

    precision = names(arguments.precisions)[0]
    config = MemoryConfig(arguments.teacher, arguments.image_size, precision, arguments.threads)
    numbers = {"settings": vars(config), "peaks": peaks(config, say)}
    say(f"\n{memory_text(numbers)}\n")
    say(f"written: {write_json(arguments.output / 'memory.json', numbers)}")


def _growth(arguments: Namespace, say: Callable[[str], None]) -> None:
    from lqn_seg.adapt.threads import fixed_threads
    from lqn_seg.lab.benchmark.growth import growth, growth_text
    from lqn_seg.lab.report.provenance import write_json

    with fixed_threads(arguments.threads):
        points = growth(arguments.repeats, say=say)
    say(f"\n{growth_text(points)}\n")
    written = [write_json(arguments.output / "growth.json", {"points": points})]
    try:
        from lqn_seg.visualization.growth import draw_growth

        written += draw_growth(points, arguments.output / "growth")
    except ModuleNotFoundError as missing:
        say(f"no plot, because {missing.name} is not installed (the extra figures)")
    say(f"written: {', '.join(map(str, written))}")


def _benchmark(arguments: Namespace, say: Callable[[str], None]) -> Callable[[], Any]:
    """What builds the benchmark that is asked for, whose settings are checked."""
    from lqn_seg.lab.benchmark.benchmark import Benchmark, BenchmarkConfig

    precisions = tuple(names(arguments.precisions))
    if scenes := tuple(names(arguments.end_to_end)):
        from lqn_seg.lab.benchmark.end_to_end import EndToEnd, EndToEndConfig

        shared = {key: getattr(arguments, key) for key in _SHARED}
        scenery = EndToEndConfig(scenes, arguments.images, precision=precisions[0], **shared)
        return partial(EndToEnd, scenery, arguments.output, say)
    others = ("read", "full", "output", "memory", "growth", "end_to_end", "images")
    settings = {k: v for k, v in vars(arguments).items() if k not in others}
    settings |= {key: tuple(names(settings[key])) for key in ("variants", "baselines")}
    config = BenchmarkConfig(**{**settings, "precisions": precisions})
    return partial(Benchmark, config, say)


def report(numbers: Path, full: bool) -> None:
    """Summary and tables of a ``benchmark.json``."""
    from lqn_seg.lab.benchmark.report import report_text, summary_text

    try:
        results = json.loads(numbers.read_text())
        summary, text = summary_text(results), report_text(results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{numbers} is not a complete benchmark.json ({error!r})") from error
    print(f"\n{summary}\n", flush=True)
    if full:
        print(f"{text}\n", flush=True)
    tables = numbers.with_name("benchmark.txt")
    tables.write_text(f"{text}\n")
    print(f"all tables: {tables}{'' if full else ' (--full prints them)'}")


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: run(parse_arguments(words)), "nothing has been measured yet")

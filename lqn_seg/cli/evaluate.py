"""Evaluate test-time training on a data set: compare methods on clean and corrupted images.

Examples:
    lqn-seg eval demo
    lqn-seg eval demo --methods teacher,lqn MODEL.LQN.FIT.STEPS 200
    lqn-seg eval ade20k --methods teacher,lqn-src
    lqn-seg eval demo --num-gpus 4 --resume
    torchrun --standalone --nproc_per_node 4 -m lqn_seg eval demo

Prints a summary (--full: all tables) and writes inference/results.json, a line per image,
config.yaml, log.txt (all tables) and panels/*.png into OUTPUT_DIR.

The exit status is 0 if every image was scored or reported as failed. It is 2 for bad input, or if
a larger fraction than MODEL.LQN.EVAL.MAX_FAILED failed. A cost, table or picture that cannot be
made is reported and is not an error.
"""

from collections.abc import Sequence
from typing import Any

from lqn_seg.cli import parser as cli
from lqn_seg.cli.parser import Namespace, Parser, exit_status
from lqn_seg.engine.interruption import is_launched
from lqn_seg.errors import InputError

# After Ctrl-C in Detectron2's engine.
LEFT = "the detectron2 engine keeps no results; --engine native keeps finished images"


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg eval", description=__doc__)
    cli.add_config_flags(parser)
    cli.add_run_flags(parser)
    parser.add("--methods", "", "comma-separated, replaces MODEL.LQN.METHODS", metavar="NAMES")
    engine = "native runs any number of methods and can resume; detectron2 runs MODEL.LQN.METHOD "
    engine += "in Detectron2's own loop; auto takes detectron2 if it is installed and sufficient"
    parser.add("--engine", "auto", engine, choices=("auto", "native", "detectron2"))
    return parser.parse(words)


def choose_engine(arguments: Namespace, cfg: Any) -> str:
    if arguments.engine != "auto":
        return arguments.engine
    lqn = cfg.MODEL.LQN
    if arguments.resume or arguments.methods or len(lqn.METHODS) > 1 or lqn.EVAL.CORRUPTIONS:
        return "native"
    try:
        import lqn_seg.detectron2  # noqa: F401
    except ImportError:
        return "native"
    return "detectron2"


def evaluate_natively(arguments: Namespace) -> None:
    from lqn_seg.engine import launch
    from lqn_seg.lab.report.run import check_failed, evaluate

    with launch.joined():
        if launch.is_main():
            print("engine: native", flush=True)
        report = evaluate(
            arguments.config_file,
            overrides=cli.all_overrides(arguments, "MODEL.LQN.METHODS"),
            device=arguments.device,
            resume=arguments.resume,
            strict=arguments.strict,
            full=arguments.full,
        )
    if report is not None:
        check_failed([report.evaluation])


def evaluate_in_detectron2(arguments: Namespace) -> None:
    try:
        from lqn_seg.detectron2 import evaluate
    except ImportError as error:
        raise InputError(str(error)) from error
    from lqn_seg.engine import launch

    if arguments.resume or arguments.methods:
        raise InputError(
            "the detectron2 engine runs one method and cannot resume: use --engine native"
        )
    with launch.joined():
        if launch.is_main():
            print("engine: detectron2 (one method, no resume)", flush=True)
        evaluate(arguments.config_file, overrides=arguments.overrides, device=arguments.device)


def evaluate(arguments: Namespace) -> int:
    cfg = cli.check_config(arguments, methods="MODEL.LQN.METHODS")
    native = choose_engine(arguments, cfg) == "native"

    def run() -> int | None:
        if cli.processes(arguments) > 1 and not is_launched():
            return cli.start_processes(arguments)
        return (evaluate_natively if native else evaluate_in_detectron2)(arguments)

    return exit_status(run) if native else exit_status(run, LEFT)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    return exit_status(lambda: evaluate(arguments))

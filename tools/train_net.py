#!/usr/bin/env python
"""Evaluate test-time training on a data set, or train a teacher: an EoMT, or with
MODEL.LQN.TEACHER.NAME dinov2 a linear head on a frozen DINOv2.

Examples:
    python tools/train_net.py --eval-only --config configs/demo_lqn.yaml
    python tools/train_net.py --eval-only --config configs/ade20k_lqn.yaml --methods teacher,lqn-src
    python tools/train_net.py --eval-only --methods teacher,lqn --config configs/demo_lqn.yaml
    python tools/train_net.py --eval-only --num-gpus 4 --config configs/demo_lqn.yaml --resume
    torchrun --standalone --nproc_per_node 4 tools/train_net.py --eval-only --config configs/...
    python tools/train_net.py --config configs/demo_teacher.yaml --resume

An evaluation ends with status 0 if every image was scored or left out by name, and with 2 if more
than MODEL.LQN.EVAL.MAX_FAILED of them (a share) were left out, or on bad input. A cost, table or
picture that cannot be made of the scores is named, and no error.
"""

from typing import Any

from lqn_seg import cli
from lqn_seg.cli import Namespace, Parser, exit_status
from lqn_seg.engine.interruption import is_launched
from lqn_seg.errors import InputError

# What Ctrl-C leaves of Detectron2's engine.
LEFT = "nothing is kept of an evaluation on detectron2; --engine native keeps what is done"


def parse_arguments() -> Namespace:
    parser = Parser(description=__doc__)
    cli.add_config_flags(parser)
    cli.add_run_flags(parser)
    parser.add("--eval-only", False, "evaluate; else train a teacher")
    parser.add("--methods", "", "comma-separated, for MODEL.LQN.METHODS", metavar="NAMES")
    engine = "native runs any number of methods and resumes; detectron2 runs MODEL.LQN.METHOD "
    engine += "through Detectron2's own loop; auto takes detectron2 where it is installed and can "
    parser.add("--engine", "auto", f"{engine}do it", choices=("auto", "native", "detectron2"))
    return parser.parse_args()


def choose_engine(arguments: Namespace, cfg: Any) -> str:
    if arguments.engine != "auto":
        return arguments.engine
    lqn = cfg.MODEL.LQN
    if arguments.resume or arguments.methods or len(lqn.METHODS) > 1 or lqn.EVAL.CORRUPTIONS:
        return "native"
    try:
        import detectron2.config  # noqa: F401  (any folder called detectron2 has a spec)
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


def train(arguments: Namespace) -> None:
    cli.check_config(arguments)
    if cli.processes(arguments) > 1 or is_launched():
        raise InputError("a teacher is trained in one process: --num-gpus is for --eval-only")
    from lqn_seg.config.nodes import load_cfg
    from lqn_seg.engine.training.train import TeacherTrainer
    from lqn_seg.engine.training.train_linear import LinearTrainer

    cfg = load_cfg(arguments.config_file, arguments.overrides, arguments.device)
    is_linear = cfg.MODEL.LQN.TEACHER.NAME == "dinov2"
    trainer = (LinearTrainer if is_linear else TeacherTrainer)(cfg)
    print(f"teacher: {trainer.train(arguments.resume)}")


def evaluate(arguments: Namespace) -> int:
    cfg = cli.check_config(arguments, methods="MODEL.LQN.METHODS")
    native = choose_engine(arguments, cfg) == "native"

    def run() -> int | None:
        if cli.processes(arguments) > 1 and not is_launched():
            return cli.start_processes(arguments)
        return (evaluate_natively if native else evaluate_in_detectron2)(arguments)

    return exit_status(run) if native else exit_status(run, LEFT)


def main() -> int:
    arguments = parse_arguments()
    return exit_status(lambda: (evaluate if arguments.eval_only else train)(arguments))


if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env python
"""Evaluate test-time training on a data set, or train an EoMT teacher.

Examples:
    python tools/train_net.py --eval-only --config configs/demo_lqn.yaml
    python tools/train_net.py --eval-only --config configs/ade20k_lqn.yaml --methods teacher,lqn-src
    python tools/train_net.py --eval-only --methods teacher,lqn --config configs/demo_lqn.yaml
    python tools/train_net.py --eval-only --num-gpus 4 --config configs/demo_lqn.yaml --resume
    torchrun --standalone --nproc_per_node 4 tools/train_net.py --eval-only --config configs/...
    python tools/train_net.py --config configs/demo_teacher.yaml --resume
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from lqn_seg.errors import InputError, PeerError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--eval-only", action="store_true", help="evaluate; else train a teacher")
    parser.add_argument("--resume", action="store_true", help="go on from what is in OUTPUT_DIR")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first image that cannot be read or scored, and when the disk is full; "
        "else both are named and counted, and the run goes on (native; detectron2 always stops)",
    )
    parser.add_argument("--methods", help="comma-separated, in place of MODEL.LQN.METHODS")
    parser.add_argument("--device", default="", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "native", "detectron2"),
        help="native runs any number of methods and resumes; detectron2 runs MODEL.LQN.METHOD "
        "through Detectron2's own loop; auto takes detectron2 where it is installed and can do it",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes per machine, also where there is no GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override config keys"
    )
    return parser.parse_args()


def detectron2_is_installed() -> bool:
    try:
        import detectron2.config  # noqa: F401  (any folder called detectron2 has a spec)
    except ImportError:
        return False
    return True


def choose_engine(arguments: argparse.Namespace) -> str:
    if arguments.engine != "auto":
        return arguments.engine
    if arguments.resume or arguments.methods or not detectron2_is_installed():
        return "native"
    from lqn_seg.engine.config import load_cfg

    cfg = load_cfg(arguments.config_file, arguments.overrides, arguments.device)
    one_method = len(cfg.MODEL.LQN.METHODS) < 2 and not cfg.MODEL.LQN.EVAL.CORRUPTIONS
    return "detectron2" if one_method else "native"


def evaluate_natively(arguments: argparse.Namespace) -> None:
    from lqn_seg.engine import launch
    from lqn_seg.engine.run import evaluate

    with launch.joined():
        if launch.is_main():
            print("engine: native", flush=True)
        evaluate(
            arguments.config_file,
            overrides=arguments.overrides,
            device=arguments.device,
            chosen=arguments.methods.split(",") if arguments.methods else (),
            resume=arguments.resume,
            strict=arguments.strict,
        )


def evaluate_in_detectron2(arguments: argparse.Namespace) -> None:
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


def start_processes(arguments: argparse.Namespace, engine: str) -> int:
    """Run this command in ``--num-gpus`` processes, through the engine's own launcher."""
    from lqn_seg.engine import launch

    machines = (arguments.num_machines, arguments.machine_rank, arguments.dist_url)
    if engine == "native":
        return launch.start(sys.argv, arguments.num_gpus, *machines)
    from detectron2.engine import launch as detectron2_launch
    from torch.multiprocessing import ProcessExitedException

    try:
        detectron2_launch(
            detectron2_worker,
            arguments.num_gpus,
            *machines,
            args=(arguments,),
            timeout=launch.PATIENCE,
        )
    except ProcessExitedException as error:
        return error.exit_code
    return 0


def detectron2_worker(arguments: argparse.Namespace) -> None:
    sys.exit(run(lambda: evaluate_in_detectron2(arguments)))


def train(arguments: argparse.Namespace) -> None:
    from lqn_seg.engine.config import load_cfg
    from lqn_seg.engine.train import TeacherTrainer

    if arguments.num_gpus * arguments.num_machines > 1 or is_launched():
        raise InputError("a teacher is trained in one process: --num-gpus is for --eval-only")
    cfg = load_cfg(arguments.config_file, arguments.overrides, arguments.device)
    folder = TeacherTrainer(cfg).train(arguments.resume)
    print(f"teacher: {folder}")


def is_launched() -> bool:
    """Whether this is one of several processes that `torchrun` started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def evaluate(arguments: argparse.Namespace) -> int:
    engine = choose_engine(arguments)
    if arguments.num_gpus * arguments.num_machines > 1 and not is_launched():
        return start_processes(arguments, engine)
    (evaluate_natively if engine == "native" else evaluate_in_detectron2)(arguments)
    return 0


def run(command: Callable[[], int | None]) -> int:
    """A command's exit status; bad input is one sentence, from one of the processes."""
    try:
        return command() or 0
    except PeerError:
        return 2
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: go on with --resume", file=sys.stderr)
        return 130


def main() -> int:
    arguments = parse_arguments()
    return run(lambda: (evaluate if arguments.eval_only else train)(arguments))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Evaluate test-time training on a data set, or train an EoMT teacher.

Examples:
    python tools/train_net.py --eval-only --config configs/demo_lqn.yaml
    python tools/train_net.py --eval-only --config configs/ade20k_lqn.yaml --methods teacher,lqn-src
    python tools/train_net.py --eval-only --methods teacher,lqn --config configs/demo_lqn.yaml
    python tools/train_net.py --config configs/demo_teacher.yaml --resume
"""

from __future__ import annotations

import argparse
import sys

from lqn_seg.errors import InputError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--eval-only", action="store_true", help="evaluate; else train a teacher")
    parser.add_argument("--resume", action="store_true", help="go on from what is in OUTPUT_DIR")
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
    from lqn_seg.engine.run import evaluate

    evaluate(
        arguments.config_file,
        overrides=arguments.overrides,
        device=arguments.device,
        chosen=arguments.methods.split(",") if arguments.methods else (),
        resume=arguments.resume,
    )


def evaluate_in_detectron2(arguments: argparse.Namespace) -> None:
    try:
        from lqn_seg.detectron2 import evaluate
    except ImportError as error:
        raise InputError(str(error)) from error
    if arguments.resume or arguments.methods:
        raise InputError(
            "the detectron2 engine runs one method and cannot resume: use --engine native"
        )
    evaluate(arguments.config_file, overrides=arguments.overrides, device=arguments.device)


def train(arguments: argparse.Namespace) -> None:
    from lqn_seg.engine.config import load_cfg
    from lqn_seg.engine.train import TeacherTrainer

    cfg = load_cfg(arguments.config_file, arguments.overrides, arguments.device)
    folder = TeacherTrainer(cfg).train(arguments.resume)
    print(f"teacher: {folder}")


def main() -> int:
    arguments = parse_arguments()
    try:
        if not arguments.eval_only:
            train(arguments)
        elif choose_engine(arguments) == "native":
            print("engine: native", flush=True)
            evaluate_natively(arguments)
        else:
            print("engine: detectron2 (one method, no resume)", flush=True)
            evaluate_in_detectron2(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: go on with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Train a small CLIP (open_clip's class and tokenizer) on a data set of labelled images.

Examples:
    python tools/train_clip.py --config configs/classification/demo_teacher.yaml
    python tools/train_clip.py --config configs/classification/demo_teacher.yaml --resume
"""

from lqn_seg.cli import Namespace, Parser, add_config_flags, check_config, exit_status


def parse_arguments() -> Namespace:
    parser = Parser(description=__doc__)
    add_config_flags(parser)
    parser.add("--resume", False, "go on from the checkpoint in OUTPUT_DIR")
    return parser.parse_args()


def train(arguments: Namespace) -> None:
    check_config(arguments, classification=True)
    from lqn_seg.config.nodes import load_classification_cfg
    from lqn_seg.engine.training.train_clip import ClipTrainer

    cfg = load_classification_cfg(arguments.config_file, arguments.overrides, arguments.device)
    print(f"teacher: {ClipTrainer(cfg).train(arguments.resume)}")


def main() -> int:
    return exit_status(lambda: train(parse_arguments()))


if __name__ == "__main__":
    raise SystemExit(main())

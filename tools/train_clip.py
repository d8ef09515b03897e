#!/usr/bin/env python
"""Train a small CLIP (open_clip's class and tokenizer) on a data set of labelled images.

Examples:
    python tools/train_clip.py --config configs/classification/demo_teacher.yaml
    python tools/train_clip.py --config configs/classification/demo_teacher.yaml SOLVER.MAX_ITER 20
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
    parser.add_argument("--device", default="", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override config keys"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from lqn_seg.engine.classification_config import load_classification_cfg
    from lqn_seg.engine.train_clip import ClipTrainer

    try:
        cfg = load_classification_cfg(arguments.config_file, arguments.overrides, arguments.device)
        print(f"teacher: {ClipTrainer(cfg).train()}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

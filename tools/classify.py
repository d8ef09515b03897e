#!/usr/bin/env python
"""Classify with a CLIP teacher: LQN and every baseline side by side, clean and corrupted.

Examples:
    python tools/classify.py --config configs/classification/demo.yaml
    python tools/classify.py --config configs/classification/demo.yaml --methods zero-shot,lqn,tpt
    python tools/classify.py --config configs/classification/imagenet_vit_b16.yaml \\
        MODEL.LQN.EVAL.MAX_IMAGES 1000 CLASSIFICATION.SHARD "(0, 4)"
    python tools/classify.py --config configs/classification/demo.yaml \\
        --calibrate demo_objects_train --max 2048

Prints the tables and writes inference/results.json, every image's line, config.yaml and log.txt
into OUTPUT_DIR. Methods: zero-shot, ensemble, apm, lqn-src, lqn, restore, zero, mta, tps, gs-bias,
tpt, tda; "lqn@paper" is another preset, "lqn:mean" another read-out (cls, mean, mean_cls, text,
reentry), "lqn@paper:mean" both.
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
    parser.add_argument("--methods", help="comma-separated, in place of CLASSIFICATION.METHODS")
    parser.add_argument("--device", default="", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--calibrate",
        metavar="DATASET",
        help="do not classify: find what the teacher's tokens look like on these clean images, and "
        "write that beside its local weights",
    )
    parser.add_argument("--max", type=int, default=0, help="images to calibrate on; 0 is all")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override config keys"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from lqn_seg.engine.classification_config import load_classification_cfg
    from lqn_seg.engine.classify import calibrate_clip
    from lqn_seg.engine.classify_report import classify

    overrides = arguments.overrides
    if arguments.methods:
        chosen = repr(tuple(arguments.methods.split(",")))
        overrides = [*overrides, "CLASSIFICATION.METHODS", chosen]
    try:
        cfg = load_classification_cfg(arguments.config_file, overrides, arguments.device)
        if arguments.calibrate:
            print(f"calibration: {calibrate_clip(cfg, arguments.calibrate, arguments.max)}")
        else:
            classify(cfg)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

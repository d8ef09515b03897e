#!/usr/bin/env python
"""Find what a teacher's tokens look like on clean images: what the preset `default` restores to.

Any folder of images without labels will do, a hundred or more of the kind that the teacher will
see. The file is written beside the teacher's local weights, where the other tools find it, or to
--output (then name it in MODEL.LQN.CALIBRATION).

Examples:
    python tools/calibrate.py --config configs/demo_lqn.yaml --images datasets/demo/train --max 2048
    python tools/calibrate.py --config configs/ade20k_lqn.yaml --images photos/ --output my.st
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lqn_seg.errors import InputError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML configuration")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder of clean images")
    source.add_argument("--dataset", help="or the images of a registered data set")
    parser.add_argument("--max", type=int, default=0, help="use the first so many; 0 is all")
    parser.add_argument("--quantile", type=float, help="of images beyond either end of a range")
    parser.add_argument("--output", type=Path, help="file to write")
    parser.add_argument("--device", default="", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override config keys"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from lqn_seg.engine.calibrate import calibrate_teacher

    try:
        path = calibrate_teacher(
            arguments.config_file,
            arguments.images or arguments.dataset,
            overrides=arguments.overrides,
            device=arguments.device,
            most=arguments.max,
            quantile=arguments.quantile,
            output=arguments.output,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(f"calibration: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Calibrate a teacher on clean images. The preset `default` aligns token statistics to them.

Use a folder with a hundred or more unlabelled images of the kind that the teacher will see. The
result, calibration.safetensors, is saved beside the teacher's local weights, where the other
commands find it, or as --output (then set MODEL.LQN.CALIBRATION to it).

Examples:
    lqn-seg calibrate demo --images datasets/demo/train --max 2048
    lqn-seg calibrate ade20k --images photos/ --output my.st
"""

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.cli.parser import Namespace, Parser, add_config_flags, check_config, exit_status


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg calibrate", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of clean images")
    source.add_argument("--dataset", metavar="NAME", help="or images of a registered data set")
    parser.add("--max", 0, "number of images to use, spread over all; 0 is all")
    quantile = "fraction left out at both ends of each range (default: 0.02)"
    parser.add_argument("--quantile", type=float, help=quantile)
    parser.add("--strict", False, "stop at the first unreadable image")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default: beside the weights)"
    )
    add_config_flags(parser)
    return parser.parse(words)


def calibrate(arguments: Namespace) -> None:
    check_config(arguments)
    from lqn_seg.engine.calibrate import calibrate_teacher
    from lqn_seg.lab.cost.calibration import calibration_line

    made = calibrate_teacher(
        arguments.config_file,
        arguments.images or arguments.dataset,
        overrides=arguments.overrides,
        device=arguments.device,
        most=arguments.max,
        quantile=arguments.quantile,
        output=arguments.output,
        strict=arguments.strict,
    )
    print(f"calibration: {made.path}")
    print(calibration_line(made))


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: calibrate(parse_arguments(words)), "nothing was written")

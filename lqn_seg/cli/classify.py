"""Classify with a CLIP teacher: compare LQN and every baseline, on clean and corrupted images.

Examples:
    lqn-seg classify classification/demo
    lqn-seg classify classification/demo --methods zero-shot,lqn,tpt
    lqn-seg classify classification/imagenet_vit_b16 --num-gpus 4 --resume \\
        MODEL.LQN.EVAL.MAX_IMAGES 1000
    lqn-seg classify classification/demo --calibrate demo_objects_train --max 2048

Prints a summary (--full: all tables) and writes inference/results.json, a line per image,
config.yaml and log.txt (all tables) into OUTPUT_DIR.

Methods: zero-shot, ensemble, apm, lqn-src, lqn, teacher (lqn's views without adaptation), restore
(alignment without a student), zero, mta, tps, gs-bias, tpt, tda. "lqn@paper" takes another preset,
"lqn:mean" another pooling (cls, mean, mean_cls, text, reentry), "lqn@paper:mean" both.

The exit status is 0 if every image was scored or reported as failed. It is 2 for bad input, or if
a larger fraction than MODEL.LQN.EVAL.MAX_FAILED failed.
"""

from collections.abc import Sequence

from lqn_seg.cli import parser as cli
from lqn_seg.cli.parser import Namespace, Parser, exit_status
from lqn_seg.engine.interruption import is_launched

METHODS = "CLASSIFICATION.METHODS"


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg classify", description=__doc__)
    cli.add_config_flags(parser)
    cli.add_run_flags(parser)
    parser.add("--methods", "", f"comma-separated, replaces {METHODS}", metavar="NAMES")
    calibrate = "do not classify, but calibrate the teacher on this data set of clean images and "
    calibrate += "save calibration.safetensors beside its local weights"
    parser.add("--calibrate", "", calibrate, metavar="DATASET")
    parser.add("--max", 0, "number of images to calibrate on; 0 is all")
    return parser.parse(words)


def calibrate(arguments: Namespace) -> None:
    cli.check_config(arguments, classification=True)
    from lqn_seg.config.nodes import load_classification_cfg
    from lqn_seg.engine.classify import calibrate_clip

    cfg = load_classification_cfg(arguments.config_file, arguments.overrides, arguments.device)
    path = calibrate_clip(cfg, arguments.calibrate, arguments.max, arguments.strict)
    print(f"calibration: {path}")


def evaluate(arguments: Namespace) -> int:
    cli.check_config(arguments, methods=METHODS, classification=True)
    if cli.processes(arguments) > 1 and not is_launched():
        return cli.start_processes(arguments)
    from lqn_seg.engine import launch
    from lqn_seg.lab.report.run import check_failed, classify

    with launch.joined():
        report = classify(
            arguments.config_file,
            overrides=cli.all_overrides(arguments, METHODS),
            device=arguments.device,
            resume=arguments.resume,
            strict=arguments.strict,
            full=arguments.full,
        )
    if report is not None:
        check_failed(report.runs)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    if arguments.calibrate:
        return exit_status(lambda: calibrate(arguments), "nothing was written")
    left = "continue with --resume; with tda, start again"
    return exit_status(lambda: evaluate(arguments), left)

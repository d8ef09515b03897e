"""Classify with a CLIP teacher: LQN and every baseline side by side, clean and corrupted.

Examples:
    lqn-seg classify classification/demo
    lqn-seg classify classification/demo --methods zero-shot,lqn,tpt
    lqn-seg classify classification/imagenet_vit_b16 --num-gpus 4 --resume \\
        MODEL.LQN.EVAL.MAX_IMAGES 1000
    lqn-seg classify classification/demo --calibrate demo_objects_train --max 2048

Prints the tables and writes inference/results.json, every image's line, config.yaml and log.txt
into OUTPUT_DIR. Methods: zero-shot, ensemble, apm, lqn-src, lqn, teacher (lqn's views, not adapted
to), restore (no student), zero, mta, tps, gs-bias, tpt, tda; "lqn@paper" is another preset,
"lqn:mean" another query (cls, mean, mean_cls, text, reentry), "lqn@paper:mean" both. The exit
status is 0 if every image was scored or left out by name, and 2 if more than
MODEL.LQN.EVAL.MAX_FAILED of them (a share) were left out, or on bad input.
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
    parser.add("--methods", "", f"comma-separated, for {METHODS}", metavar="NAMES")
    calibrate = "do not classify: calibrate the teacher on these clean images, and save "
    calibrate += "calibration.safetensors beside its local weights"
    parser.add("--calibrate", "", calibrate, metavar="DATASET")
    parser.add("--max", 0, "images to calibrate on; 0 is all")
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
    left = "go on with --resume, or where tda runs, start again"
    return exit_status(lambda: evaluate(arguments), left)

#!/usr/bin/env python
"""Run a study: teachers x seeds x corruptions x severities x methods, from one YAML file.

Examples:
    python tools/study.py configs/study/demo.yaml --resume
    python tools/study.py configs/study/demo.yaml MAX_IMAGES 8 OUTPUT_DIR output/study/try
    python tools/study.py configs/study/ablation_*.yaml
    python tools/study.py configs/study/camvid.yaml MODEL.LQN.FIT.STEPS 100
    torchrun --standalone --nproc_per_node 4 tools/study.py configs/study/demo.yaml

Writes results.json, table.md and plot.png into each study's OUTPUT_DIR. An override is a key of the
study (OUTPUT_DIR, MAX_IMAGES, TEACHERS.small.WEIGHTS, ...) or of every evaluation's configuration.
"""

from lqn_seg.cli import Namespace, Parser, exit_status


def parse_arguments() -> Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("studies", nargs="+", metavar="FILE", help="study files (.yaml)")
    parser.add("--resume", False, "go on from what is in OUTPUT_DIR")
    parser.add_overrides(is_key=lambda word: not word.endswith((".yaml", ".yml")))
    return parser.parse_intermixed_args()


def run(arguments: Namespace) -> None:
    from lqn_seg.config.nodes import load_cfg
    from lqn_seg.lab.study.study_file import load_study

    for path in arguments.studies:  # what is mistyped is found before torch is imported
        load_cfg(load_study(path, arguments.overrides).config, device="cpu")
    from lqn_seg.engine import launch
    from lqn_seg.lab.study.study_report import run_study

    with launch.joined():
        for path in arguments.studies:
            run_study(path, arguments.overrides, arguments.resume)


def main() -> int:
    return exit_status(lambda: run(parse_arguments()))


if __name__ == "__main__":
    raise SystemExit(main())

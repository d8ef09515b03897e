"""Run a study: teachers x seeds x corruptions x severities x methods, from one YAML file.

Examples:
    lqn-seg study study/demo --resume
    lqn-seg study study/demo MAX_IMAGES 8 OUTPUT_DIR output/study/try
    lqn-seg study configs/study/ablation_*.yaml
    lqn-seg study study/camvid MODEL.LQN.FIT.STEPS 100
    torchrun --standalone --nproc_per_node 4 -m lqn_seg study study/demo

Prints a summary (--full: all tables) and writes results.json, table.md (all tables) and plot.png
into each study's OUTPUT_DIR. An override is a key of the study (OUTPUT_DIR, MAX_IMAGES,
TEACHERS.small.WEIGHTS, ...) or of the configuration of every evaluation.
"""

from collections.abc import Sequence

from lqn_seg.cli.parser import Namespace, Parser, exit_status


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg study", description=__doc__)
    parser.add_argument(
        "studies", nargs="+", metavar="FILE", help="study files (.yaml), or names of shipped ones"
    )
    parser.add("--resume", False, "continue from the results in OUTPUT_DIR")
    parser.add("--full", False, "print all tables, not only the summary")
    parser.add_overrides(is_key=_is_key)
    return parser.parse_intermixed_args(words)


def _is_key(word: str) -> bool:
    return "/" not in word and not word.endswith((".yaml", ".yml"))


def run(arguments: Namespace) -> None:
    from lqn_seg.config.nodes import load_cfg
    from lqn_seg.lab.study.study_file import load_study

    for path in arguments.studies:  # what is mistyped is found before torch is imported
        load_cfg(load_study(path, arguments.overrides).config, device="cpu")
    from lqn_seg.engine import launch
    from lqn_seg.lab.study.study_report import run_study

    with launch.joined():
        for path in arguments.studies:
            run_study(path, arguments.overrides, arguments.resume, arguments.full)


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: run(parse_arguments(words)))

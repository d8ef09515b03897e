"""Run a study: teachers x seeds x corruptions x severities x methods, from one YAML file.

Examples:
    lqn-seg study study/demo --resume
    lqn-seg study study/demo MAX_IMAGES 8 OUTPUT_DIR output/study/try
    lqn-seg study configs/study/ablation_*.yaml
    lqn-seg study study/camvid MODEL.LQN.FIT.STEPS 100
    torchrun --standalone --nproc_per_node 4 -m lqn_seg study study/demo
    lqn-seg study study/demo --shard 3/16    # one of 16 independent jobs, without a report
    lqn-seg study study/demo --merge output/shard*    # the report of jobs with folders of their own

Prints a summary (--full: all tables) and writes results.json, table.md (all tables) and plot.png
into each study's OUTPUT_DIR. An override is a key of the study (OUTPUT_DIR, MAX_IMAGES,
TEACHERS.small.WEIGHTS, ...) or of the configuration of every evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.cli.parser import Namespace, Parser, exit_status
from lqn_seg.errors import InputError


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg study", description=__doc__)
    parser.add_argument(
        "studies", nargs="+", metavar="FILE", help="study files (.yaml), or names of shipped ones"
    )
    parser.add("--resume", False, "continue from the results in OUTPUT_DIR")
    parser.add("--full", False, "print all tables, not only the summary")
    parser.add("--shard", "", "evaluate this part of the images alone, such as 3/16; continues")
    parser.add_argument(
        "--merge",
        nargs="+",
        default=[],
        metavar="DIR",
        help="report what shards with these OUTPUT_DIRs have found, and evaluate nothing",
    )
    parser.add_overrides(is_key=_is_key)
    return parser.parse_intermixed_args(words)


def _is_key(word: str) -> bool:
    """Keys are in capitals; what is there is a file or a folder."""
    is_path = "/" in word or word.endswith((".yaml", ".yml")) or Path(word).exists()
    return word.split(".")[0].isupper() and not is_path


def run(arguments: Namespace) -> None:
    from lqn_seg.config.nodes import load_cfg
    from lqn_seg.engine.shard import Shard
    from lqn_seg.lab.study.study_file import load_study

    # What is mistyped is found before torch is imported.
    shard = Shard.parse(arguments.shard) if arguments.shard else None
    if shard and arguments.merge:
        raise InputError("--shard evaluates and --merge reports: give one of them")
    if arguments.merge and len(arguments.studies) > 1:
        raise InputError("--merge takes one study, because its folders are of one")
    for path in arguments.studies:
        load_cfg(load_study(path, arguments.overrides).config, device="cpu")
    from lqn_seg.engine import launch
    from lqn_seg.lab.study.shards import merge, run_shard
    from lqn_seg.lab.study.study_report import run_study

    with launch.joined():
        with launch.together():
            if launch.size() > 1 and (shard or arguments.merge):
                raise InputError(
                    "--shard and --merge are for jobs of one process: start them without torchrun, "
                    "which shares the images among its processes itself"
                )
        for path in arguments.studies:
            if shard:
                run_shard(path, arguments.overrides, shard)
                continue
            if arguments.merge:
                merge(path, arguments.overrides, arguments.merge)
            resume = arguments.resume or bool(arguments.merge)
            run_study(path, arguments.overrides, resume, arguments.full)


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: run(parse_arguments(words)))

"""Make the leaderboard page from stored results of studies.

Examples:
    lqn-seg leaderboard docs/results/leaderboard.md docs/results/roof/*.json

Each file is the results.json of a study; the page has a table per teacher and severity of each.
"""

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.cli.parser import Namespace, Parser, exit_status


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg leaderboard", description=__doc__)
    parser.add_argument("page", type=Path, metavar="OUT.md", help="the page to write")
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="FILE", help="results.json of studies"
    )
    return parser.parse(words)


def write(arguments: Namespace) -> None:
    from lqn_seg.engine.store import write_atomically
    from lqn_seg.lab.study.leaderboard import leaderboard

    write_atomically(arguments.page, leaderboard(arguments.results))
    print(f"written: {arguments.page}")


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: write(parse_arguments(words)), "nothing was written")

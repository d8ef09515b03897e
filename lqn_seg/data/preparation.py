"""What the scripts that prepare a data set have in common: their command line."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from lqn_seg.command_line import Parser, exit_status
from lqn_seg.data.catalog import dataset_roots


def prepare_splits(
    description: str, folder: str, splits: Collection[str], write: Callable[[Path, str], int | Path]
) -> int:
    """Run a preparation script: `--root`, `--split`, and a line for each split that was written.

    Args:
        description: the script's docstring.
        folder: what the root has to hold.
        write: (root, split) -> how many files it wrote, or the one that names them.

    Returns:
        The exit status, as `exit_status` has it.
    """
    parser = Parser(description=description)
    root = dataset_roots()[0]
    parser.add_argument(
        "--root", type=Path, default=root, metavar="DIR", help=f"holds {folder}/ (default: {root})"
    )
    parser.add_argument("--split", choices=tuple(splits), action="append", help="default: all")
    arguments = parser.parse_args()

    def prepare() -> None:
        for split in arguments.split or splits:
            written = write(arguments.root, split)
            print(f"{split}: {written if isinstance(written, Path) else f'{written} files'}")

    return exit_status(prepare, "start again, for the last split is not whole")

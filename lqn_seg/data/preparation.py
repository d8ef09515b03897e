"""What the scripts that prepare a data set have in common: their command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from lqn_seg.data.catalog import dataset_roots
from lqn_seg.errors import InputError


def prepare_splits(
    description: str, folder: str, splits: Collection[str], write: Callable[[Path, str], int | Path]
) -> int:
    """Run a preparation script: `--root`, `--split`, and a line for each split that was written.

    Args:
        description: the script's docstring.
        folder: what the root has to hold.
        write: (root, split) -> how many files it wrote, or the one that names them.

    Returns:
        The exit status: 2 after one sentence on standard error where an input is wrong.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=dataset_roots()[0], help=f"holds {folder}/")
    parser.add_argument("--split", choices=tuple(splits), action="append", help="default: all")
    arguments = parser.parse_args()
    try:
        for split in arguments.split or splits:
            written = write(arguments.root, split)
            print(f"{split}: {written if isinstance(written, Path) else f'{written} files'}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

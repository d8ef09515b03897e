#!/usr/bin/env python
"""Write Cityscapes' `labelTrainIds` files from its `labelIds` files, for tools that want them.

This project reads `labelIds` itself. The table of train ids is that of cityscapesscripts.

Examples:
    python datasets/prepare_cityscapes.py
    python datasets/prepare_cityscapes.py --root /data --split val
"""

import sys
from pathlib import Path

from lqn_seg.cli.parser import prepare_splits
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.derived import write_label_maps


def write_train_ids(root: Path, split: str) -> int:
    """Write one file per image of a split beside its `labelIds` file; returns their number."""
    dataset = get_dataset(f"cityscapes_fine_sem_seg_{split}", root)
    return write_label_maps(
        dataset, lambda record: record["sem_seg_file_name"].replace("_labelIds.", "_labelTrainIds.")
    )


def main() -> int:
    return prepare_splits(__doc__ or "", "cityscapes", ("train", "val"), write_train_ids)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Write Cityscapes' `labelTrainIds` files from its `labelIds` files, for tools that want them.

This project reads `labelIds` itself. The table of train ids is that of cityscapesscripts; no
polygons are needed.

Examples:
    python datasets/prepare_cityscapes.py
    python datasets/prepare_cityscapes.py --root /data --split val
"""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from lqn_seg.cli import prepare_splits
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.images import write_label_map
from lqn_seg.data.segmentation_sets import CITYSCAPES_SPLITS


def write_train_ids(root: Path, split: str) -> int:
    """Write one file per image of a split beside its `labelIds` file; returns their number.

    Raises:
        InputError: the split is not there, or a label map is missing or damaged.
    """
    dataset = get_dataset(f"cityscapes_fine_sem_seg_{split}", root)
    records = dataset.records()
    for record in tqdm(records, desc=split, unit="image"):
        source = Path(record["sem_seg_file_name"])
        target = source.with_name(source.name.replace("labelIds", "labelTrainIds"))
        write_label_map(target, dataset.metadata.read_semantic(record))
    return len(records)


def main() -> int:
    return prepare_splits(__doc__ or "", "cityscapes", CITYSCAPES_SPLITS, write_train_ids)


if __name__ == "__main__":
    sys.exit(main())

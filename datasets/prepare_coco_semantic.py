#!/usr/bin/env python
"""Write COCO's semantic label maps, made from its panoptic ones, for tools that want them.

`coco/panoptic_semseg_<split>2017/*.png`, as Mask2Former's: contiguous ids 0 .. 132, crowds as their
category, 255 = void. This project makes the same maps on the fly.

Examples:
    python datasets/prepare_coco_semantic.py --split val
    python datasets/prepare_coco_semantic.py --root /data
"""

import sys
from pathlib import Path

from lqn_seg.cli.parser import prepare_splits
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.derived import write_label_maps


def write_semantic(root: Path, split: str) -> int:
    """Write one label map per panoptic map of a split; returns their number."""
    dataset = get_dataset(f"coco_2017_{split}_panoptic", root)
    folder = root / "coco" / f"panoptic_semseg_{split}2017"
    folder.mkdir(exist_ok=True)
    return write_label_maps(dataset, lambda record: folder / Path(record["pan_seg_file_name"]).name)


def main() -> int:
    return prepare_splits(__doc__ or "", "coco", ("train", "val"), write_semantic)


if __name__ == "__main__":
    sys.exit(main())

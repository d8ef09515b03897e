#!/usr/bin/env python
"""Write WildDash 2's label maps, made from its panoptic ones: what `wilddash_sem_seg_val` reads.

`wilddash/labels/<image>.png` hold WildDash's label ids, 0 where nothing is labelled, as its
authors' pano2sem.py makes them (github.com/ozendelait/wilddash_scripts).

Examples:
    python datasets/prepare_wilddash.py
    python datasets/prepare_wilddash.py --root /data
"""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lqn_seg.cli.parser import prepare_splits
from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.data.images import write_label_map


def write_labels(root: Path, split: str) -> int:
    """Write one label map per image of panoptic.json; returns their number."""
    folder = root / "wilddash"
    panoptic = folder / "panoptic", folder / "panoptic.json"
    dataset = load_coco_panoptic(f"wilddash_{split}", folder / "images", *panoptic)
    label_ids = np.zeros(256, np.int32)  # by contiguous id, and by the ignore label
    for contiguous, category in enumerate(dataset.metadata.categories):
        label_ids[contiguous] = category.id
    (folder / "labels").mkdir(exist_ok=True)
    records = dataset.records()
    for record in tqdm(records, desc=dataset.metadata.name, unit="image"):
        target = folder / "labels" / f"{Path(record['file_name']).stem}.png"
        write_label_map(target, label_ids[dataset.metadata.read_semantic(record)])
    return len(records)


def main() -> int:
    return prepare_splits(__doc__ or "", "wilddash", ("val",), write_labels)


if __name__ == "__main__":
    sys.exit(main())

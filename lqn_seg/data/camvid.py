"""CamVid at 480 x 360 with 11 classes (SegNet's selection), street scenes from a moving car.

CamVid is video: neighbouring frames are near duplicates, so it is split by drive and not by frame.
The usual validation frames come from the drive 0016E5, as most training frames do; the drive
0001TP, at dusk, is held back as the unseen one to report on.
"""

from __future__ import annotations

from pathlib import Path

from lqn_seg.data.label_folders import load_label_folders
from lqn_seg.data.metadata import Dataset

CAMVID_CLASSES: tuple[str, ...] = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
CAMVID_IGNORE = 11

# split -> the folder below images/ and labels/, and the drives (file-name prefixes) taken from it
CAMVID_SPLITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("train", ("0006R0", "0016E5")),
    "val": ("val", ()),
    "report": ("train", ("0001TP",)),
}

HOW_TO_GET = (
    "put the CamVid frames of SegNet's tutorial there as images/{train,val} and labels/{train,val}"
)


def load_camvid_sem_seg(name: str, split: str, root: Path) -> Dataset:
    """Open one split of CamVid for semantic segmentation.

    Args:
        name: the data set's name.
        split: a key of `CAMVID_SPLITS`.
        root: the folder that holds `images/{train,val}/*.jpg` and `labels/{train,val}/*.png`.

    Raises:
        InputError: as `load_label_folders`.
    """
    folder, drives = CAMVID_SPLITS[split]
    return load_label_folders(
        name,
        root / "images" / folder,
        root / "labels" / folder,
        CAMVID_CLASSES,
        CAMVID_IGNORE,
        drives,
        how_to_get=HOW_TO_GET,
    )

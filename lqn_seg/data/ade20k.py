"""ADE20K, the 150 classes of SceneParse150: semantic and panoptic segmentation."""

from __future__ import annotations

from pathlib import Path

from lqn_seg.data.coco_panoptic import load_coco_panoptic
from lqn_seg.data.label_folders import load_label_folders
from lqn_seg.data.metadata import Dataset

# First name of each class, in the order of objectInfo150.txt; raw label = index + 1, 0 = other.
ADE20K_CLASSES: tuple[str, ...] = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "window", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain",
    "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field",
    "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "tub", "rail", "cushion",
    "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink",
    "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case",
    "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind",
    "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "street lamp", "booth", "tv",
    "plane", "dirt track", "clothes", "pole", "land", "bannister", "escalator", "ottoman", "bottle",
    "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "pool", "stool", "barrel", "basket", "falls", "tent", "bag", "minibike", "cradle",
    "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle",
    "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase",
    "traffic light", "tray", "trash can", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

# Indices of the 50 classes without instances; the other 100 are things, and the instance category
# k = 1 .. 100 of annotations_instance/ is the k-th of them.
ADE20K_STUFF: frozenset[int] = frozenset(
    (
        *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54),
        *(59, 60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117),
        *(122, 128, 131, 140, 141, 145),
    )
)
RAW_LABELS: tuple[int, ...] = (255, *range(150))  # raw label 0 is "other"
SPLITS = {"train": "training", "val": "validation"}

HOW_TO_GET = (
    "download ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu and unpack it there"
)
HOW_TO_GET_PANOPTIC = "run python datasets/prepare_ade20k_panoptic.py"


def load_ade20k_sem_seg(name: str, split: str, root: Path) -> Dataset:
    """Open a split of ADE20K for semantic segmentation.

    Args:
        name: the data set's name.
        split: a key of `SPLITS`.
        root: the folder ADEChallengeData2016. `annotations_detectron2/<split>` (contiguous ids,
            255 = ignore) is used where it is, else the raw `annotations/<split>`.

    Raises:
        InputError: as `load_label_folders`.
    """
    label_dir, label_table = _labels(split, root)
    return load_label_folders(
        name,
        root / "images" / SPLITS[split],
        label_dir,
        ADE20K_CLASSES,
        label_table=label_table,
        how_to_get=HOW_TO_GET,
    )


def load_ade20k_panoptic(name: str, split: str, root: Path) -> Dataset:
    """Open a split of ADE20K for panoptic segmentation, in Mask2Former's layout.

    Semantic ground truth is the label maps, where they are: they differ from the panoptic ones at
    pixels that only the instance annotations cover.

    Args:
        name: the data set's name.
        split: a key of `SPLITS`.
        root: the folder ADEChallengeData2016, with what `prepare_ade20k_panoptic.py` writes.

    Raises:
        InputError: as `load_coco_panoptic`.
    """
    label_dir, label_table = _labels(split, root)
    has_labels = label_dir.is_dir()
    return load_coco_panoptic(
        name,
        root / "images" / SPLITS[split],
        root / f"ade20k_panoptic_{split}",
        root / f"ade20k_panoptic_{split}.json",
        evaluator_type="ade20k_panoptic_seg",
        label_dir=label_dir if has_labels else None,
        label_table=label_table if has_labels else None,
    )


def _labels(split: str, root: Path) -> tuple[Path, tuple[int, ...] | None]:
    """Folder of label maps, and what their labels mean."""
    converted = root / "annotations_detectron2" / SPLITS[split]
    if converted.is_dir():
        return converted, None
    return root / "annotations" / SPLITS[split], RAW_LABELS

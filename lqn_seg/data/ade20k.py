"""ADE20K, the 150 classes of SceneParse150, semantic segmentation."""

from __future__ import annotations

from pathlib import Path

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

HOW_TO_GET = (
    "download ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu and unpack it there"
)


def load_ade20k_sem_seg(name: str, root: Path) -> Dataset:
    """Open the validation set of ADE20K for semantic segmentation.

    Args:
        name: the data set's name.
        root: the folder ADEChallengeData2016. `annotations_detectron2/validation` (contiguous ids,
            255 = ignore) is used where it is, else the raw `annotations/validation`.

    Raises:
        InputError: as `load_label_folders`.
    """
    converted = root / "annotations_detectron2" / "validation"
    raw = root / "annotations" / "validation"
    label_root = converted if converted.is_dir() else raw
    return load_label_folders(
        name,
        root / "images" / "validation",
        label_root,
        ADE20K_CLASSES,
        reduce_zero_label=label_root == raw,
        how_to_get=HOW_TO_GET,
    )

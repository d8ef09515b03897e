"""ADE20K, the 150 classes of SceneParse150, semantic segmentation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lqn_seg.data.metadata import Category, Dataset, Metadata, Record
from lqn_seg.errors import InputError

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
        InputError: a folder is missing or empty, or (on `records()`) an image has no label map.
    """
    image_root = root / "images" / "validation"
    converted = root / "annotations_detectron2" / "validation"
    raw = root / "annotations" / "validation"
    label_root = converted if converted.is_dir() else raw
    for folder in (image_root, label_root):
        if not folder.is_dir():
            raise InputError(f"folder {folder} of {name} does not exist: {HOW_TO_GET}")
    metadata = Metadata(
        name=name,
        categories=tuple(Category(i, c, False) for i, c in enumerate(ADE20K_CLASSES)),
        evaluator_type="sem_seg",
        reduce_zero_label=label_root == raw,
        image_root=str(image_root),
        sem_seg_root=str(label_root),
    )
    return Dataset(metadata, partial(_records, name, image_root, label_root))


def _records(name: str, image_root: Path, label_root: Path) -> list[Record]:
    images = sorted(image_root.glob("*.jpg"))
    if not images:
        raise InputError(f"folder {image_root} of {name} holds no .jpg file: {HOW_TO_GET}")
    records: list[Record] = []
    for image in images:
        label = label_root / f"{image.stem}.png"
        if not label.is_file():
            raise InputError(f"image {image.name} of {name} has no label map {label}")
        width, height = _size(image)
        records.append(
            {
                "file_name": str(image),
                "image_id": image.stem,
                "height": height,
                "width": width,
                "sem_seg_file_name": str(label),
            }
        )
    return records


def _size(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone: a listing of 2000 images decodes none."""
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError):
        raise InputError(f"file {path} is not an image that Pillow can read") from None

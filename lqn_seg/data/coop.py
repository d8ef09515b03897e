"""The nine fine-grained sets in CoOp's layout, with CoOp's test splits and prompts.

Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022): a split file lists
``[relative path, label, class name]`` for train, val and test; FGVC-Aircraft keeps its own lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqn_seg.data.image_files import enumeration
from lqn_seg.data.labelled_images import labelled_metadata, same_names
from lqn_seg.data.metadata import Dataset, Record
from lqn_seg.data.schema import SplitFile, read_json
from lqn_seg.errors import InputError

SPLITS = ("train", "val", "test")
HOW_TO_GET = "CoOp's DATASETS.md says where the images and the split file come from"


@dataclass(frozen=True)
class CoopSet:
    """Where a set's images and lists lie, and its prompt."""

    images: str
    split_file: str
    template: str


SETS = {
    "flowers102": CoopSet(
        "oxford_flowers/jpg",
        "oxford_flowers/split_zhou_OxfordFlowers.json",
        "a photo of a {}, a type of flower.",
    ),
    "dtd": CoopSet("dtd/images", "dtd/split_zhou_DescribableTextures.json", "{} texture."),
    "pets": CoopSet(
        "oxford_pets/images",
        "oxford_pets/split_zhou_OxfordPets.json",
        "a photo of a {}, a type of pet.",
    ),
    "ucf101": CoopSet(
        "ucf101/UCF-101-midframes", "ucf101/split_zhou_UCF101.json", "a photo of a person doing {}."
    ),
    "caltech101": CoopSet(
        "caltech-101/101_ObjectCategories",
        "caltech-101/split_zhou_Caltech101.json",
        "a photo of a {}.",
    ),
    "eurosat": CoopSet(
        "eurosat/2750", "eurosat/split_zhou_EuroSAT.json", "a centered satellite photo of {}."
    ),
    "food101": CoopSet(
        "food-101/images", "food-101/split_zhou_Food101.json", "a photo of {}, a type of food."
    ),
    "sun397": CoopSet("sun397/SUN397", "sun397/split_zhou_SUN397.json", "a photo of a {}."),
    "aircraft": CoopSet("fgvc_aircraft/images", "", "a photo of a {}, a type of aircraft."),
}
# CoOp's readable names for EuroSAT's folders.
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}
_AIRCRAFT_SUFFIX = ".jpg"


def load_coop(name: str, root: Path, key: str, split: str = "test") -> Dataset:
    """Open a split of one of `SETS`; `root` holds their folders.

    Raises:
        InputError: the images or the list are missing, or the list is malformed.
    """
    described = SETS[key]
    images = root / described.images
    if not images.is_dir():
        raise InputError(f"folder {images} of {name} does not exist: {HOW_TO_GET}")
    if key == "aircraft":
        rows = _aircraft_rows(images.parent, split)
        classes = _lines(images.parent / "variants.txt")
    else:
        content = _split_file(root / described.split_file)
        rows = content[split]
        classes = _class_names(root / described.split_file, content)
    records: dict[str, Record] = {
        path: {"file_name": str(images / path), "image_id": path, "label": label}
        for path, label in reversed(rows)  # the first that is listed counts
    }
    metadata = labelled_metadata(name, classes, images)
    return Dataset(
        metadata,
        lambda: [dict(record) for record in reversed(records.values())],
        _listed_twice(name, [path for path, _ in rows]),
        tuple(same_names(classes)),
    )


def _listed_twice(name: str, paths: Sequence[str]) -> tuple[str, ...]:
    twice = [path for path, times in Counter(paths).items() if times > 1]
    return (f"the split of {name} lists {enumeration(twice)} twice",) if twice else ()


def _split_file(path: Path) -> dict[str, Any]:
    """{split: [(path, label)], "names": {label: name}}."""
    if not path.is_file():
        raise InputError(f"the split file {path} does not exist: {HOW_TO_GET}")
    content = read_json(path, SplitFile, "split file")
    names: dict[int, str] = {}
    for split in SPLITS:
        for i, (_, label, text) in enumerate(getattr(content, split)):
            if names.setdefault(label, text) != text:
                raise InputError(
                    f"split file {path}: {split}[{i}] calls label {label} {text!r}, an entry "
                    f"before it calls it {names[label]!r}"
                )
    rows = {split: [row[:2] for row in getattr(content, split)] for split in SPLITS}
    return {**rows, "names": names}


def _class_names(path: Path, content: dict[str, Any]) -> list[str]:
    names = content["names"]
    if sorted(names) != list(range(len(names))):
        raise InputError(f"the split file {path} skips a label: it has {sorted(names)[:5]} ...")
    raw = [EUROSAT_NAMES.get(names[label], names[label]) for label in range(len(names))]
    return [text.replace("_", " ") for text in raw]


def _aircraft_rows(folder: Path, split: str) -> list[tuple[str, int]]:
    variants = _lines(folder / "variants.txt")
    labels = {text: label for label, text in enumerate(variants)}
    if len(labels) < len(variants):
        raise InputError(f"{folder / 'variants.txt'} names a variant twice")
    path, rows = folder / f"images_variant_{split}.txt", []
    for line in _lines(path):
        number, _, variant = line.partition(" ")
        if variant not in labels:
            raise InputError(f"{path} names the variant {variant!r}, which variants.txt lacks")
        rows.append((f"{number}{_AIRCRAFT_SUFFIX}", labels[variant]))
    return rows


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"the list {path} does not exist: {HOW_TO_GET}")
    lines: Iterable[str] = path.read_text().splitlines()
    return [line.strip() for line in lines if line.strip()]


__all__ = ["SETS", "SPLITS", "CoopSet", "load_coop"]

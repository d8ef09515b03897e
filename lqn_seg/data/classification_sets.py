"""The built-in data sets with one label an image: the demo's, ImageNet and its variants, CIFAR-10,
and the nine fine-grained sets in CoOp's layout."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from lqn_seg.data.images import enumeration
from lqn_seg.data.labelled_images import (
    class_folders,
    labelled_metadata,
    load_image_folder,
    open_array,
    same_names,
)
from lqn_seg.data.metadata import Dataset, Listing, Source, by_split
from lqn_seg.data.schema import SplitFile, read_json
from lqn_seg.data.segmentation_sets import DEMO_SPLITS
from lqn_seg.errors import InputError

# Hendrycks and Dietterich's 15 and their four extra ones; five severities each.
C_CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur"),
    *("motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)


def _demo_objects(split: str, name: str, root: Path) -> Dataset:
    return load_image_folder(name, root / "demo_objects" / split)


# ---- ImageNet and its variants, with open_clip's 1000 class names --------------------------------

# name -> folder of the class folders, and timm's name of the classes it is scored over
IMAGENETS = {
    "imagenet_val": ("imagenet/images/val", "imagenet"),
    "imagenet_v2": ("imagenetv2/imagenetv2-matched-frequency-format-val", "imagenet"),
    "imagenet_sketch": ("imagenet-sketch/images", "imagenet"),
    "imagenet_a": ("imagenet-adversarial/imagenet-a", "imagenet_a"),
    "imagenet_r": ("imagenet-rendition/imagenet-r", "imagenet_r"),
}
_GET_IMAGENET = "get it from its authors; datasets/README.md says where its folders go"


def _imagenet(name: str, root: Path) -> Dataset:
    folder, classes = IMAGENETS[name]
    folders = class_folders(classes)
    if name == "imagenet_v2":  # whose folders are the labels 0 .. 999
        folders = {str(label): text for label, text in enumerate(folders.values())}
    return load_image_folder(name, root / folder, folders, how_to_get=_GET_IMAGENET)


def _imagenet_c(corruption: str, severity: int, name: str, root: Path) -> Dataset:
    """``imagenet-c/<corruption>/<severity>/<wnid>``: corrupted by its authors, not by us."""
    folder = root / "imagenet-c" / corruption / str(severity)
    return load_image_folder(name, folder, class_folders("imagenet"), how_to_get=_GET_IMAGENET)


# ---- CIFAR-10-C as its authors' arrays, and CIFAR-10 as folders of image files -------------------

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
# Shares of each class's sorted files: to train on, to tune on and to report on.
CIFAR10_SPLITS = {"train": (0.0, 0.8), "tune": (0.8, 0.9), "val": (0.9, 1.0)}
_IMAGES = 10000  # of a severity; the five lie one behind the other
_GET_CIFAR10_C = "CIFAR-10-C is on zenodo.org as record 2535967"


def _cifar10_c(corruption: str, severity: int, name: str, root: Path) -> Dataset:
    """A severity of ``CIFAR-10-C/<corruption>.npy`` with ``labels.npy``."""
    folder = root / "CIFAR-10-C"
    images, labels = folder / f"{corruption}.npy", folder / "labels.npy"
    if not labels.is_file():
        raise InputError(f"data set {name} needs {labels}, which does not exist: {_GET_CIFAR10_C}")

    def listing() -> Listing:
        shape, numbers = open_array(str(images)).shape, open_array(str(labels))
        if shape != (5 * _IMAGES, 32, 32, 3) or numbers.shape != (5 * _IMAGES,):
            raise InputError(f"{images} has the shape {shape}, and {labels} {numbers.shape}")
        first = (severity - 1) * _IMAGES
        records = [
            {"file_name": str(images), "row": first + k, "image_id": k, "label": int(label)}
            for k, label in enumerate(numbers[first : first + _IMAGES])
        ]
        return Listing(records)

    return Dataset(labelled_metadata(name, CIFAR10_CLASSES, folder), listing)


def _cifar10_folders(split: str, name: str, root: Path) -> Dataset:
    """A share of ``cifar10/<class>/*``; which images it holds depends on their names alone."""
    folders = {label: label for label in CIFAR10_CLASSES}
    return load_image_folder(name, root / "cifar10", folders, CIFAR10_SPLITS[split])


# ---- CoOp's layout, test splits and prompts ------------------------------------------------------
# Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022): a split file lists
# [relative path, label, class name] for train, val and test; FGVC-Aircraft has its own lists.


class CoopSet(NamedTuple):
    """Where a set's images and split file lie, and its prompt."""

    images: str
    split_file: str
    template: str


COOP = {
    key: CoopSet(*row)
    for key, row in json.loads((files("lqn_seg.data") / "coop.json").read_text()).items()
}
_EUROSAT = {  # CoOp's readable names
    **{"AnnualCrop": "Annual Crop Land", "HerbaceousVegetation": "Herbaceous Vegetation Land"},
    **{"Highway": "Highway or Road", "Industrial": "Industrial Buildings"},
    **{"Pasture": "Pasture Land", "PermanentCrop": "Permanent Crop Land"},
    **{"Residential": "Residential Buildings", "SeaLake": "Sea or Lake"},
}
_GET_COOP = "CoOp's DATASETS.md says where the images and the split file come from"


def _coop(key: str, name: str, root: Path) -> Dataset:
    images = root / COOP[key].images
    if key == "aircraft":
        classes, rows = _aircraft(images.parent)
    else:
        classes, rows = _split_file(root / COOP[key].split_file)
    times = Counter(path for path, _ in rows)
    twice = [path for path, count in times.items() if count > 1]
    problems = [f"the split of {name} lists {enumeration(twice)} twice"] if twice else []
    labels = dict(reversed(rows))  # the first that is listed counts

    def listing() -> Listing:
        records = [
            {"file_name": str(images / path), "image_id": path, "label": labels[path]}
            for path in times
        ]
        return Listing(records, problems, same_names(classes))

    return Dataset(labelled_metadata(name, classes, images), listing)


def _split_file(path: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Class names, and (path, label) of the test images."""
    if not path.is_file():
        raise InputError(f"the split file {path} does not exist: {_GET_COOP}")
    content = read_json(path, SplitFile, "split file")
    rows = (*content.train, *content.val, *content.test)
    names = {label: text for _, label, text in rows}
    if sorted(names) != list(range(len(names))):
        raise InputError(f"the split file {path} skips a label: it has {sorted(names)[:5]} ...")
    classes = [_EUROSAT.get(names[k], names[k]).replace("_", " ") for k in range(len(names))]
    return classes, [(path, label) for path, label, _ in content.test]


def _aircraft(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """As `_split_file`."""
    classes, path = _lines(folder / "variants.txt"), folder / "images_variant_test.txt"
    labels = {text: label for label, text in enumerate(classes)}
    if len(labels) < len(classes):
        raise InputError(f"{folder / 'variants.txt'} names a variant twice")
    rows = []
    for line in _lines(path):
        number, _, variant = line.partition(" ")
        if variant not in labels:
            raise InputError(f"{path} names the variant {variant!r}, which variants.txt lacks")
        rows.append((f"{number}.jpg", labels[variant]))
    return classes, rows


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"the list {path} does not exist: {_GET_COOP}")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


CLASSIFICATION: dict[str, Source] = {
    **by_split(
        "demo_objects_<split>",
        DEMO_SPLITS,
        "demo_objects/<split>",
        "run python datasets/prepare_demo.py --objects --split <split> --count NUMBER",
        _demo_objects,
    ),
    **{name: Source(folder, _GET_IMAGENET, _imagenet) for name, (folder, _) in IMAGENETS.items()},
    **by_split(
        "cifar10_folders_<split>",
        CIFAR10_SPLITS,
        "cifar10",
        "unpack CIFAR-10 as one folder of image files per class",
        _cifar10_folders,
    ),
    **{
        f"{key}_test": Source(paths.images, _GET_COOP, partial(_coop, key))
        for key, paths in COOP.items()
    },
    **{
        f"{name}_{corruption}_{severity}": Source(
            file.format(corruption), how_to_get, partial(load, corruption, severity)
        )
        for name, file, how_to_get, load in (
            ("imagenet_c", "imagenet-c/{}", _GET_IMAGENET, _imagenet_c),
            ("cifar10_c", "CIFAR-10-C/{}.npy", _GET_CIFAR10_C, _cifar10_c),
        )
        for corruption in C_CORRUPTIONS
        for severity in range(1, 6)
    },
}

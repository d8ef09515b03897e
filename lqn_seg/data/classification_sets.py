"""The built-in data sets with one label an image: the demo's, ImageNet and its variants, CIFAR-10,
and the nine fine-grained sets in CoOp's layout."""

from collections import Counter
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
from lqn_seg.data.metadata import Dataset, Listing
from lqn_seg.data.schema import SplitFile, read_json
from lqn_seg.data.sources import SETS, sources
from lqn_seg.errors import InputError

_IMAGENETS = SETS["classification"]["imagenet_<split>"]["splits"]


def _imagenet(split: str, name: str, root: Path) -> Dataset:
    # ImageNet-A and -R are scored over their 200 classes.
    folders = class_folders(name if split in ("a", "r") else "imagenet")
    if split == "v2":  # its folders are the labels 0 .. 999
        folders = {str(label): text for label, text in enumerate(folders.values())}
    return load_image_folder(name, root / _IMAGENETS[split], folders)


def _imagenet_c(split: str, name: str, root: Path) -> Dataset:
    """``imagenet-c/<corruption>/<severity>/<wnid>``: corrupted by its authors, not by us."""
    folder = root.joinpath("imagenet-c", *split.rsplit("_", 1))
    return load_image_folder(name, folder, class_folders("imagenet"))


CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
# Portions of each class's sorted files: to train on, to tune on and to report on.
CIFAR10_SPLITS = {"train": (0.0, 0.8), "tune": (0.8, 0.9), "val": (0.9, 1.0)}
_IMAGES = 10000  # of a severity; the five lie one behind the other


def _cifar10_c(split: str, name: str, root: Path) -> Dataset:
    """A severity of ``CIFAR-10-C/<corruption>.npy`` with ``labels.npy``."""
    folder = root / "CIFAR-10-C"
    corruption, severity = split.rsplit("_", 1)
    images, labels = folder / f"{corruption}.npy", folder / "labels.npy"
    if not labels.is_file():
        raise InputError(f"data set {name} needs {labels}, which does not exist")

    def listing() -> Listing:
        shape, numbers = open_array(str(images)).shape, open_array(str(labels))
        if shape != (5 * _IMAGES, 32, 32, 3) or numbers.shape != (5 * _IMAGES,):
            raise InputError(f"{images} has the shape {shape}, but {labels} has {numbers.shape}")
        first = (int(severity) - 1) * _IMAGES
        records = [
            {"file_name": str(images), "row": first + k, "image_id": k, "label": int(label)}
            for k, label in enumerate(numbers[first : first + _IMAGES])
        ]
        return Listing(records)

    return Dataset(labelled_metadata(name, CIFAR10_CLASSES, folder), listing)


def _cifar10_folders(split: str, name: str, root: Path) -> Dataset:
    """A portion of ``cifar10/<class>/*``; which images it holds depends on their names alone."""
    folders = {label: label for label in CIFAR10_CLASSES}
    return load_image_folder(name, root / "cifar10", folders, CIFAR10_SPLITS[split])


# CoOp's layout (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022): a split
# file lists [relative path, label, class name] for train, val and test; FGVC-Aircraft has its own.


class CoopSet(NamedTuple):
    """Where a set's split file lies, and its prompt."""

    split_file: str
    template: str


COOP = {key: CoopSet(*row) for key, row in SETS["coop"].items()}
_IMAGES_OF = SETS["classification"]["<split>_test"]["splits"]


def _coop(key: str, name: str, root: Path) -> Dataset:
    images = root / _IMAGES_OF[key]
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
        raise InputError(f"the split file {path} does not exist")
    content = read_json(path, SplitFile, "split file")
    rows = (*content.train, *content.val, *content.test)
    names = {label: text for _, label, text in rows}
    if sorted(names) != list(range(len(names))):
        raise InputError(f"the split file {path} skips a label: it has {sorted(names)[:5]} ...")
    classes = [SETS["eurosat"].get(names[k], names[k]).replace("_", " ") for k in range(len(names))]
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
        raise InputError(f"the list {path} does not exist")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


CLASSIFICATION = sources(
    "classification",
    {
        "demo_objects_<split>": lambda split, name, root: load_image_folder(
            name, root / "demo_objects" / split
        ),
        "imagenet_<split>": _imagenet,
        "imagenet_c_<split>": _imagenet_c,
        "cifar10_folders_<split>": _cifar10_folders,
        "cifar10_c_<split>": _cifar10_c,
        "<split>_test": _coop,
    },
)

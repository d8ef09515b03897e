"""CIFAR-10-C as its authors' arrays, and CIFAR-10 as folders of image files."""

from __future__ import annotations

from pathlib import Path

from lqn_seg.data.labelled_images import labelled_metadata, load_image_folder, open_array
from lqn_seg.data.metadata import Dataset, Record
from lqn_seg.errors import InputError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
CIFAR10_C = "CIFAR-10-C"
IMAGES = 10000  # of a severity; the five lie one behind the other
HOW_TO_GET = "CIFAR-10-C is on zenodo.org as record 2535967"
# Shares of each class's sorted files: to train on, to tune on and to report on.
FOLDER_SPLITS = {"train": (0.0, 0.8), "tune": (0.8, 0.9), "val": (0.9, 1.0)}


def load_cifar10_c(name: str, root: Path, corruption: str, severity: int) -> Dataset:
    """Open a severity of ``CIFAR-10-C/<corruption>.npy`` with ``labels.npy``.

    Raises:
        InputError: a file is missing; on `records()` also where it is damaged or of another shape.
    """
    folder = root / CIFAR10_C
    images, labels = folder / f"{corruption}.npy", folder / "labels.npy"
    for file in (images, labels):
        if not file.is_file():
            raise InputError(f"data set {name} needs {file}, which does not exist: {HOW_TO_GET}")

    def records() -> list[Record]:
        shape, numbers = open_array(str(images)).shape, open_array(str(labels))
        if shape != (5 * IMAGES, 32, 32, 3) or numbers.shape != (5 * IMAGES,):
            raise InputError(f"{images} has the shape {shape}, and {labels} {numbers.shape}")
        first = (severity - 1) * IMAGES
        return [
            {"file_name": str(images), "row": row, "image_id": row - first, "label": int(label)}
            for row, label in enumerate(numbers[first : first + IMAGES].tolist(), first)
        ]

    return Dataset(labelled_metadata(name, CLASSES, folder), records)


def load_cifar10_folders(name: str, root: Path, split: str) -> Dataset:
    """Open a share of ``cifar10/<class>/*``; which images it holds depends on their names alone."""
    folders = {label: label for label in CLASSES}
    return load_image_folder(name, root / "cifar10", folders, FOLDER_SPLITS[split])

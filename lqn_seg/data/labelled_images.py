"""Images with one label each: folders of a class's images, and arrays of images in one file.

A record is ``file_name``, ``image_id`` and ``label`` (index into the classes); an image that lies
in an array with others has its ``row`` too. `read_labelled_image` reads either kind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.data.images import read_image
from lqn_seg.data.metadata import Category, Dataset, Metadata, Record
from lqn_seg.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
EVALUATOR_TYPE = "classification"


def read_labelled_image(record: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB image of a record.

    Raises:
        InputError: the file is missing or damaged.
    """
    if "row" not in record:
        return read_image(record["file_name"])
    return np.array(open_array(record["file_name"])[record["row"]])


@lru_cache(maxsize=4)
def open_array(path: str) -> NDArray[Any]:
    """A .npy file, mapped into memory: one image of 50000 costs one image.

    Raises:
        InputError: the file is missing or is no such array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"array file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"array file {path} is damaged or no .npy array ({error})") from None


def labelled_metadata(name: str, classes: Sequence[str], root: Path) -> Metadata:
    """The facts of a data set with one label an image.

    Raises:
        InputError: there are no classes.
    """
    if not classes:
        raise InputError(f"data set {name} has no classes")
    categories = tuple(Category(i, label, False) for i, label in enumerate(classes))
    return Metadata(name, categories, EVALUATOR_TYPE, image_root=os.fspath(root))


def load_image_folder(
    name: str,
    root: str | os.PathLike[str],
    folders: Mapping[str, str] | None = None,
    share: tuple[float, float] = (0.0, 1.0),
    how_to_get: str = "",
) -> Dataset:
    """Open ``root/<class folder>/*`` as a data set.

    Args:
        name: the data set's name.
        folders: class folder -> class name, in the order of the labels. By default every folder is
            a class, in the order of the names, and is called like its folder with spaces for "_".
        share: of each class's sorted images, from and to; (0, 1) takes all.
        how_to_get: where the files come from; ends the sentence where they are missing.

    Raises:
        InputError: the folder is missing or holds no class folder; on `records()` also where it
            holds no image at all.
    """
    root = Path(root)
    hint = f": {how_to_get}" if how_to_get else ""
    if not root.is_dir():
        raise InputError(f"folder {root} of {name} does not exist{hint}")
    if folders is None:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        if not found:
            raise InputError(f"folder {root} of {name} holds no class folders{hint}")
        folders = {folder: folder.replace("_", " ") for folder in found}
    chosen = dict(folders)

    def records() -> list[Record]:
        listed = [
            {"file_name": str(path), "image_id": f"{folder}/{path.name}", "label": label}
            for label, folder in enumerate(chosen)
            for path in _images(root / folder, share)
        ]
        if not listed:
            raise InputError(f"folder {root} of {name} holds no images{hint}")
        return listed

    return Dataset(labelled_metadata(name, list(chosen.values()), root), records)


def _images(folder: Path, share: tuple[float, float]) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    first, last = (round(end * len(paths)) for end in share)
    return paths[first:last]

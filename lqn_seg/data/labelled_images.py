"""Images with one label each: folders of a class's images, and arrays of images in one file.

A record is ``file_name``, ``image_id`` and ``label`` (index into the classes); an image that lies
in an array with others has its ``row`` too. `read_labelled_image` reads either kind.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.data.images import enumeration, find_images, is_junk, read_record, split_hidden
from lqn_seg.data.metadata import Dataset, Listing, Metadata, Record, class_table
from lqn_seg.errors import InputError

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_WNID = re.compile(r"n\d{8}")
EVALUATOR_TYPE = "classification"


def read_labelled_image(record: Mapping[str, Any], data: bytes | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB image of a record, from its file's content where that has been read;
    InputError where it cannot be read."""
    if "row" not in record:
        return read_record(record, data)
    return np.array(open_array(record["file_name"])[record["row"]])


@lru_cache(maxsize=4)
def open_array(path: str) -> NDArray[Any]:
    """A .npy file, mapped into memory: one image of 50000 costs one image."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"array file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"array file {path} is damaged or not a .npy array ({error})") from None


@lru_cache(maxsize=4)
def class_folders(classes: str) -> dict[str, str]:
    """WordNet id -> class name of open_clip, in the order of the labels: of "imagenet", or of the
    200 that "imagenet_a" or "imagenet_r" hold and are scored over."""
    from open_clip import IMAGENET_CLASSNAMES  # seconds, which no other data set shall wait for

    def wnids(classes: str) -> list[str]:
        """timm ships these lists."""
        return (files("timm.data") / "_info" / f"{classes}_synsets.txt").read_text().split()

    names = dict(zip(wnids("imagenet"), IMAGENET_CLASSNAMES, strict=True))
    return {wnid: names[wnid] for wnid in wnids(classes)}


def labelled_metadata(name: str, classes: Sequence[str], root: Path) -> Metadata:
    return Metadata(name, class_table(name, classes), EVALUATOR_TYPE, image_root=os.fspath(root))


def same_names(classes: Sequence[str]) -> list[str]:
    """A sentence where several classes have one name; a text tower knows names alone."""
    words = [_words(label) for label in classes]
    shared = list(dict.fromkeys(label for label, w in zip(classes, words) if words.count(w) > 1))
    if not shared:
        return []
    return [
        f"one name for several classes ({enumeration(shared)}): zero-shot cannot tell them apart, "
        "and the first of them counts"
    ]


def _words(label: str) -> str:
    """What a tokenizer makes of a class name: neither letter case nor spaces count."""
    return " ".join(label.casefold().split())


def load_image_folder(
    name: str,
    root: str | os.PathLike[str],
    folders: Mapping[str, str] | None = None,
    portion: tuple[float, float] = (0.0, 1.0),
) -> Dataset:
    """Open ``root/<class folder>/**`` as a data set; see `catalog.register_image_folder`.

    `folders` map class folders to class names, in the order of the labels (None: every folder), and
    `portion` is from where to where in each class's sorted images. InputError where there is no
    folder of a class, two of one name, or one that stands for none; on `records()`, no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"folder {root} of {name} does not exist")
    notes: list[str] = []
    if folders is None:
        folders, notes = _name_folders(name, root)
    table = dict(folders)
    metadata = labelled_metadata(name, list(table.values()), root)
    notes += same_names(metadata.class_names)
    return Dataset(metadata, lambda: _listing(name, root, table, portion), notes=tuple(notes))


def _folders_of(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not is_junk(path))


def _name_folders(name: str, root: Path) -> tuple[dict[str, str], list[str]]:
    """Class folder -> class name, and notes on what the names are."""
    folders = _folders_of(root)
    if not folders:
        raise InputError(f"folder {root} of {name} holds no class folders")
    if {folder.casefold() for folder in folders} <= _SPLITS:
        raise InputError(
            f"folder {root} of {name} holds splits ({', '.join(folders)}) and no classes; name one "
            "of them"
        )
    wnids = [folder for folder in folders if _WNID.fullmatch(folder)]
    imagenet = class_folders("imagenet") if wnids else {}
    if unknown := [wnid for wnid in wnids if wnid not in imagenet]:
        raise InputError(
            f"folder {root} of {name} holds WordNet ids that are not ImageNet classes "
            f"({enumeration(unknown)}); name them in register_image_folder's classes"
        )
    names = {folder: imagenet.get(folder) or folder.replace("_", " ") for folder in folders}
    first: dict[str, str] = {}
    for folder in folders:
        other = first.setdefault(_words(names[folder]), folder)
        if other != folder and not {folder, other} <= imagenet.keys():
            raise InputError(
                f"folders {other!r} and {folder!r} of {root} are both the class "
                f"{names[folder]!r} of {name}"
            )
    notes = []
    if wnids:
        notes.append(f"{len(wnids)} class folders are WordNet ids and take ImageNet's class names")
    if all(folder.isdigit() for folder in folders):
        notes.append(f"the class folders of {root} are numbers, and so are the class names")
    return names, notes


def _listing(
    name: str, root: Path, folders: Mapping[str, str], portion: tuple[float, float]
) -> Listing:
    where = f"folder {root} of {name}"
    there = _folders_of(root)
    records: list[Record] = []
    hidden: list[Path] = []
    empty, nested = [], []
    for label, folder in enumerate(folders):
        files_of_class = find_images(root / folder, below=True)
        first, last = (round(end * len(files_of_class.images)) for end in portion)
        hidden += files_of_class.hidden
        if not files_of_class.images and folder in there:
            empty.append(folder)
        if any(path.parent != root / folder for path in files_of_class.images):
            nested.append(folder)
        records += [
            {"file_name": str(path), "image_id": path.relative_to(root).as_posix(), "label": label}
            for path in files_of_class.images[first:last]
        ]
    if not records:
        raise InputError(f"{where} holds no images")
    lost = [p.name for p in sorted(root.iterdir()) if p.is_symlink() and not p.exists()]
    loose = [path.name for path in find_images(root).images if path.is_file()]
    problems = {"holds broken links": lost, "holds images outside the class folders": loose}
    notes = {
        "class folders without an image": empty,
        "class folders that are not there": [f for f in folders if not (root / f).is_dir()],
        "class folders whose images lie in folders of their own, and count": nested,
        "folders that are no class and are left out": [f for f in there if f not in folders],
    }
    return Listing(
        records,
        (
            *split_hidden(hidden).problems(where),
            *(f"{where} {what}: {enumeration(names)}" for what, names in problems.items() if names),
        ),
        tuple(f"{where}: {what}: {enumeration(names)}" for what, names in notes.items() if names),
    )

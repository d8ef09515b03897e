"""Data sets by name. `get_dataset(name)` is how everything else gets at data."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lqn_seg.data.ade20k import HOW_TO_GET as HOW_TO_GET_ADE20K
from lqn_seg.data.ade20k import load_ade20k_sem_seg
from lqn_seg.data.camvid import CAMVID_SPLITS, load_camvid_sem_seg
from lqn_seg.data.camvid import HOW_TO_GET as HOW_TO_GET_CAMVID
from lqn_seg.data.cifar import FOLDER_SPLITS, load_cifar10_c, load_cifar10_folders
from lqn_seg.data.cifar import HOW_TO_GET as HOW_TO_GET_CIFAR
from lqn_seg.data.coco_panoptic import load_coco_panoptic
from lqn_seg.data.coop import HOW_TO_GET as HOW_TO_GET_COOP
from lqn_seg.data.coop import SETS, load_coop
from lqn_seg.data.imagenet import (
    C_CORRUPTIONS,
    IMAGENET_C,
    VARIANTS,
    load_imagenet,
    load_imagenet_c,
)
from lqn_seg.data.imagenet import HOW_TO_GET as HOW_TO_GET_IMAGENET
from lqn_seg.data.label_folders import check_classes, load_label_folders
from lqn_seg.data.labelled_images import load_image_folder
from lqn_seg.data.metadata import Category, Dataset, Metadata, Record
from lqn_seg.errors import InputError

__all__ = [
    "Category",
    "Dataset",
    "Metadata",
    "Record",
    "dataset_names",
    "dataset_roots",
    "get_dataset",
    "register_coco_panoptic",
    "register_image_folder",
    "register_label_folders",
]

# Trained on, shipped and looked at every day, tuned on, and reported on once a recipe is settled.
DEMO_SPLITS = ("train", "val", "tune", "report")
_REPOSITORY = Path(__file__).resolve().parents[2]
# name -> the reader of its layout, and what that reader wants beside the name
_registered: dict[str, tuple[Callable[..., Dataset], tuple[object, ...]]] = {}


def dataset_roots(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders in which data sets are looked for, in order.

    `root` alone where it is given; else $DETECTRON2_DATASETS, the repository's `datasets` and
    `./datasets`.
    """
    if root is not None:
        return [Path(root)]
    environment = os.environ.get("DETECTRON2_DATASETS")
    first = [Path(environment)] if environment else []
    return list(dict.fromkeys([*first, _REPOSITORY / "datasets", Path("datasets").resolve()]))


def get_dataset(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Look up a data set by name.

    Args:
        name: one of `dataset_names()`.
        root: the folder of data sets; see `dataset_roots` for where it is looked for otherwise.

    Raises:
        InputError: the name is unknown, or the data set's files are missing or malformed.
    """
    if name in _registered:
        load, arguments = _registered[name]
        return load(name, *arguments)
    if name in _BUILTIN or name in _LABELLED:
        return {**_BUILTIN, **_LABELLED}[name](name, root)
    names = dataset_names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or _families(names)
    raise InputError(f"unknown data set {name!r}: did you mean {' or '.join(near)}?")


def _families(names: Sequence[str]) -> list[str]:
    """The names, with one pattern for the nineteen corruptions at five severities of a set."""
    corrupted = re.compile(rf"_c_({'|'.join(C_CORRUPTIONS)})_[1-5]$")
    return sorted({corrupted.sub("_c_<corruption>_<1..5>", name) for name in names})


def dataset_names(labelled: bool | None = None) -> list[str]:
    """The names `get_dataset` knows: the built-in ones and those registered.

    Args:
        labelled: True for those with one label an image (classification), False for those with
            labels of pixels (segmentation), None for both.
    """
    both = {*_BUILTIN, *_LABELLED, *_registered}
    known = {name for name, (load, _) in _registered.items() if load is load_image_folder}
    if labelled is None:
        return sorted(both)
    return sorted(name for name in both if (name in _LABELLED or name in known) == labelled)


def register_coco_panoptic(
    name: str,
    image_dir: str | os.PathLike[str],
    panoptic_dir: str | os.PathLike[str],
    panoptic_json: str | os.PathLike[str],
) -> None:
    """Make a data set of one's own, in COCO panoptic layout, known under a name.

    Nothing is read until `get_dataset(name)`. Registering the same name with the same files again
    is allowed.

    Raises:
        InputError: the name is taken by another data set.
    """
    files = (os.fspath(image_dir), os.fspath(panoptic_dir), os.fspath(panoptic_json))
    _register(name, load_coco_panoptic, files)


def register_label_folders(
    name: str,
    image_dir: str | os.PathLike[str],
    label_dir: str | os.PathLike[str],
    classes: Sequence[str],
    ignore_label: int = 255,
    prefixes: Sequence[str] = (),
) -> None:
    """Make image and label folders of one's own, for semantic segmentation, known under a name.

    The labels of `image_dir/x.jpg` (or .jpeg, .png) are `label_dir/x.png`: one channel of the
    image's size that holds indices into `classes`. Nothing is read until `get_dataset(name)`.
    Registering the same name with the same arguments again is allowed.

    Args:
        name: what `DATASETS.TRAIN` or `DATASETS.TEST` calls it.
        classes: class names; a name's place is its label.
        ignore_label: the label of pixels that count neither in training nor in a score.
        prefixes: take only images whose file name starts with one of these, so that several data
            sets can share a folder; () takes all.

    Raises:
        InputError: the name is taken by another data set, `classes` is empty or names one twice, or
            `ignore_label` is one of the classes'.
    """
    check_classes(name, classes, ignore_label)
    folders = (os.fspath(image_dir), os.fspath(label_dir))
    _register(name, load_label_folders, (*folders, tuple(classes), ignore_label, tuple(prefixes)))


def register_image_folder(name: str, root: str | os.PathLike[str]) -> None:
    """Make ``root/<class>/*.jpg`` (or .png ...) of one's own, for classification, known by name.

    A class is called like its folder, with spaces for underscores. Nothing is read until
    `get_dataset(name)`. Registering the same name with the same folder again is allowed.

    Raises:
        InputError: the name is taken by another data set.
    """
    _register(name, load_image_folder, (os.fspath(root),))


def _register(name: str, load: Callable[..., Dataset], arguments: tuple[object, ...]) -> None:
    if name in (*_BUILTIN, *_LABELLED) or _registered.get(name, (load, arguments)) != (
        load,
        arguments,
    ):
        raise InputError(f"the data set name {name!r} is already taken")
    _registered[name] = load, arguments


def _demo(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    file = Path("demo", "annotations", f"panoptic_{split}.json")
    how_to_get = f"run python datasets/prepare_demo.py --split {split} --count NUMBER"
    folder = _find(name, file, how_to_get, root) / "demo"
    return load_coco_panoptic(
        name,
        folder / split,
        folder / f"panoptic_{split}",
        folder / "annotations" / f"panoptic_{split}.json",
    )


def _ade20k(name: str, root: str | os.PathLike[str] | None) -> Dataset:
    folder = Path("ADEChallengeData2016")
    found = _find(name, folder / "images" / "validation", HOW_TO_GET_ADE20K, root)
    return load_ade20k_sem_seg(name, found / folder)


def _camvid(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    # The folder of real photographs goes first: they are never part of the repository.
    real = os.environ.get("LQN_SEG_REAL_DATA")
    first = [Path(real)] if real and root is None else []
    found = _find(name, Path("camvid", "images"), HOW_TO_GET_CAMVID, root, first)
    return load_camvid_sem_seg(name, split, found / "camvid")


def _demo_objects(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    folder = Path("demo_objects", split)
    how_to_get = f"run python datasets/prepare_demo.py --objects --split {split} --count NUMBER"
    return load_image_folder(name, _find(name, folder, how_to_get, root) / folder)


def _imagenet(name: str, root: str | os.PathLike[str] | None) -> Dataset:
    folder = Path(VARIANTS[name][0])
    return load_imagenet(name, _find(name, folder, HOW_TO_GET_IMAGENET, root))


def _imagenet_c(
    corruption: str, severity: int, name: str, root: str | os.PathLike[str] | None
) -> Dataset:
    found = _find(name, Path(IMAGENET_C, corruption), HOW_TO_GET_IMAGENET, root)
    return load_imagenet_c(name, found, corruption, severity)


def _cifar10_c(
    corruption: str, severity: int, name: str, root: str | os.PathLike[str] | None
) -> Dataset:
    found = _find(name, Path("CIFAR-10-C", f"{corruption}.npy"), HOW_TO_GET_CIFAR, root)
    return load_cifar10_c(name, found, corruption, severity)


def _cifar10_folders(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    how_to_get = "unpack CIFAR-10 as one folder of image files per class"
    return load_cifar10_folders(name, _find(name, Path("cifar10"), how_to_get, root), split)


def _coop(key: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    return load_coop(name, _find(name, Path(SETS[key].images), HOW_TO_GET_COOP, root), key)


def _find(
    name: str,
    file: Path,
    how_to_get: str,
    root: str | os.PathLike[str] | None,
    first: Sequence[Path] = (),
) -> Path:
    """The first folder of `first` and `dataset_roots` that holds `file`."""
    roots = [*first, *dataset_roots(root)]
    for folder in roots:
        if (folder / file).exists():
            return folder
    looked = ", ".join(map(str, roots))
    unset = "" if root or "DETECTRON2_DATASETS" in os.environ else " ($DETECTRON2_DATASETS unset)"
    raise InputError(f"data set {name} needs {file}, looked for in {looked}{unset}: {how_to_get}")


_BUILTIN: dict[str, Callable[[str, str | os.PathLike[str] | None], Dataset]] = {
    **{f"demo_panoptic_{split}": partial(_demo, split) for split in DEMO_SPLITS},
    "ade20k_sem_seg_val": _ade20k,
    **{f"camvid_sem_seg_{split}": partial(_camvid, split) for split in CAMVID_SPLITS},
}
# One label an image.
_LABELLED: dict[str, Callable[[str, str | os.PathLike[str] | None], Dataset]] = {
    **{f"demo_objects_{split}": partial(_demo_objects, split) for split in DEMO_SPLITS},
    **{name: _imagenet for name in VARIANTS},
    **{f"cifar10_folders_{split}": partial(_cifar10_folders, split) for split in FOLDER_SPLITS},
    **{f"{key}_test": partial(_coop, key) for key in SETS},
    **{
        f"{source}_{corruption}_{severity}": partial(load, corruption, severity)
        for source, load in (("imagenet_c", _imagenet_c), ("cifar10_c", _cifar10_c))
        for corruption in C_CORRUPTIONS
        for severity in range(1, 6)
    },
}

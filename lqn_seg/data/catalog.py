"""Data sets by name. `get_dataset(name)` is how everything else gets at data."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lqn_seg.data import ade20k, camvid, cityscapes
from lqn_seg.data.cifar import FOLDER_SPLITS, load_cifar10_c, load_cifar10_folders
from lqn_seg.data.cifar import HOW_TO_GET as HOW_TO_GET_CIFAR
from lqn_seg.data.coco_instances import load_coco_instances
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
    "register_entries",
    "register_image_folder",
    "register_label_folders",
]

# Trained on, shipped and looked at every day, tuned on, and reported on once a recipe is settled.
DEMO_SPLITS = ("train", "val", "tune", "report")
COCO_SPLITS = ("train", "val")
_REPOSITORY = Path(__file__).resolve().parents[2]
# name -> the reader of its layout, and what that reader wants beside the name
_registered: dict[str, tuple[Callable[..., Dataset], tuple[object, ...]]] = {}
# Called after every registration; the Detectron2 plugin keeps its catalog in step.
listeners: list[Callable[[], None]] = []


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

    The labels of `image_dir/x.jpg` (or any of `IMAGE_SUFFIXES`) are `label_dir/x.png`: one channel
    of the upright image's size that holds indices into `classes`. Nothing is read until
    `get_dataset(name)`. Registering the same name with the same arguments again is allowed.

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


# What an entry of MODEL.LQN.DATASETS may say, and what of it must be there.
_ENTRIES: dict[str, tuple[Callable[..., None], tuple[str, ...], tuple[str, ...]]] = {
    "PANOPTIC_JSON": (register_coco_panoptic, ("IMAGE_DIR", "PANOPTIC_DIR", "PANOPTIC_JSON"), ()),
    "LABEL_DIR": (
        register_label_folders,
        ("IMAGE_DIR", "LABEL_DIR", "CLASSES"),
        ("IGNORE_LABEL", "PREFIXES"),
    ),
}


def register_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    """Make the data sets that a configuration describes known, each under its name.

    Args:
        entries: each has `NAME` and the arguments of `register_coco_panoptic` or of
            `register_label_folders` in capitals.

    Raises:
        InputError: an entry describes neither, or a key is unknown or missing, or as those two.
    """
    for i, entry in enumerate(entries):
        where = f"MODEL.LQN.DATASETS[{i}]"
        kind = next((k for k in _ENTRIES if isinstance(entry, Mapping) and k in entry), None)
        if kind is None:
            raise InputError(
                f"{where} describes no data set: it needs {' or '.join(_ENTRIES)}, for COCO "
                "panoptic layout or for a folder of label PNGs"
            )
        register, needed, optional = _ENTRIES[kind]
        for key in ("NAME", *needed):
            if key not in entry:
                raise InputError(f"{where} has no key {key}")
        for key in entry:
            if key not in ("NAME", *needed, *optional):
                known = ", ".join(("NAME", *needed, *optional))
                raise InputError(f"{where}: there is no key {key}; the keys are {known}")
            if key in ("NAME", "IMAGE_DIR", "PANOPTIC_DIR", *_ENTRIES) and not isinstance(
                entry[key], str
            ):
                raise InputError(f"{where}.{key} must be text, not {entry[key]!r}")
        register(**{key.lower(): value for key, value in entry.items()})


def register_image_folder(
    name: str, root: str | os.PathLike[str], classes: Mapping[str, str] | None = None
) -> None:
    """Make ``root/<class>/**`` of one's own, for classification, known by name.

    Nothing is read until `get_dataset(name)`. Registering the same name with the same arguments
    again is allowed.

    Args:
        name: what `DATASETS.TEST` calls it.
        root: holds a folder for each class.
        classes: folder -> class name, in the order of the labels. By default a class is called like
            its folder, with spaces for underscores, and a WordNet id like ImageNet's class.

    Raises:
        InputError: the name is taken by another data set.
    """
    table = None if classes is None else dict(classes)
    _register(name, load_image_folder, (os.fspath(root), table))


def _register(name: str, load: Callable[..., Dataset], arguments: tuple[object, ...]) -> None:
    if name in (*_BUILTIN, *_LABELLED) or _registered.get(name, (load, arguments)) != (
        load,
        arguments,
    ):
        raise InputError(f"the data set name {name!r} is already taken")
    _registered[name] = load, arguments
    for listener in listeners:
        listener()


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


HOW_TO_GET_COCO = "download COCO 2017 from https://cocodataset.org and unpack it there"


def _coco_panoptic(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    file = Path("coco", "annotations", f"panoptic_{split}2017.json")
    folder = _find(name, file, HOW_TO_GET_COCO, root) / "coco"
    instances = folder / "annotations" / f"instances_{split}2017.json"
    return load_coco_panoptic(
        name,
        folder / f"{split}2017",
        folder / f"panoptic_{split}2017",
        folder / "annotations" / f"panoptic_{split}2017.json",
        json_file=instances if instances.is_file() else None,
    )


def _coco_instances(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    file = Path("coco", "annotations", f"instances_{split}2017.json")
    found = _find(name, file, HOW_TO_GET_COCO, root)
    return load_coco_instances(name, found / "coco" / f"{split}2017", found / file)


def _ade20k(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    folder = Path("ADEChallengeData2016")
    images = folder / "images" / ade20k.SPLITS[split]
    found = _find(name, images, ade20k.HOW_TO_GET, root)
    return ade20k.load_ade20k_sem_seg(name, split, found / folder)


def _ade20k_panoptic(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    folder = Path("ADEChallengeData2016")
    file = folder / f"ade20k_panoptic_{split}.json"
    found = _find(name, file, ade20k.HOW_TO_GET_PANOPTIC, root)
    return ade20k.load_ade20k_panoptic(name, split, found / folder)


def _cityscapes(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    images = Path("cityscapes", "leftImg8bit", split)
    found = _find(name, images, cityscapes.HOW_TO_GET, root)
    return cityscapes.load_cityscapes_sem_seg(name, split, found / "cityscapes")


def _camvid(split: str, name: str, root: str | os.PathLike[str] | None) -> Dataset:
    # The folder of real photographs goes first: they are never part of the repository.
    real = os.environ.get("LQN_SEG_REAL_DATA")
    first = [Path(real)] if real and root is None else []
    found = _find(name, Path("camvid", "images"), camvid.HOW_TO_GET, root, first)
    return camvid.load_camvid_sem_seg(name, split, found / "camvid")


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
    **{f"coco_2017_{split}_panoptic": partial(_coco_panoptic, split) for split in COCO_SPLITS},
    **{f"coco_2017_{split}": partial(_coco_instances, split) for split in COCO_SPLITS},
    **{f"ade20k_sem_seg_{split}": partial(_ade20k, split) for split in ade20k.SPLITS},
    **{f"ade20k_panoptic_{split}": partial(_ade20k_panoptic, split) for split in ade20k.SPLITS},
    **{
        f"cityscapes_fine_sem_seg_{split}": partial(_cityscapes, split)
        for split in cityscapes.SPLITS
    },
    **{f"camvid_sem_seg_{split}": partial(_camvid, split) for split in camvid.CAMVID_SPLITS},
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

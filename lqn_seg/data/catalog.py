"""Data sets by name. `get_dataset(name)` is how everything else gets at data."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lqn_seg.data.classification_sets import CLASSIFICATION
from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.data.label_folders import check_classes, load_label_folders
from lqn_seg.data.labelled_images import load_image_folder
from lqn_seg.data.metadata import Category, Dataset, Metadata, Record
from lqn_seg.data.segmentation_sets import SEGMENTATION
from lqn_seg.data.shipped import shipped_root
from lqn_seg.data.sources import C_CORRUPTIONS, Source
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

PathLike = str | os.PathLike[str]
_BUILTIN = {**SEGMENTATION, **CLASSIFICATION}
_UNSET = "; DETECTRON2_DATASETS, which is unset, can name another folder"
# name -> the reader of its layout, and what that reader wants beside the name
_registered: dict[str, tuple[Callable[..., Dataset], tuple[object, ...]]] = {}
# Called after every registration; the Detectron2 plugin keeps its catalog in step.
listeners: list[Callable[[], None]] = []


def dataset_roots(root: PathLike | None = None) -> list[Path]:
    """Folders in which data sets are looked for, in order: `root` alone where it is given; else
    $DETECTRON2_DATASETS, the `datasets` that the project ships and `./datasets`."""
    if root is not None:
        return [Path(root)]
    environment = os.environ.get("DETECTRON2_DATASETS")
    first = [Path(environment)] if environment else []
    return list(dict.fromkeys([*first, shipped_root() / "datasets", Path("datasets").resolve()]))


def get_dataset(name: str, root: PathLike | None = None) -> Dataset:
    """Look up a data set by name, in the folder of data sets `root` or else in `dataset_roots()`;
    InputError where the name is unknown, or the data set's files are missing or malformed."""
    if name in _registered:
        load, arguments = _registered[name]
        return load(name, *arguments)
    if name in _BUILTIN:
        source = _BUILTIN[name]
        return source.load(name, _find(name, source, root))
    names = dataset_names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or _families(names)
    raise InputError(f"unknown data set {name!r}: did you mean {' or '.join(near)}?")


def _families(names: Sequence[str]) -> list[str]:
    """Names with one pattern for the splits of a set, and for the nineteen corruptions at five
    severities."""
    corrupted = re.compile(rf"_c_({'|'.join(C_CORRUPTIONS)})_[1-5]$")
    splits: dict[str, list[str]] = {}
    for name in sorted({corrupted.sub("_c_<corruption>_<1..5>", known) for known in names}):
        base, _, split = re.sub(r"_(train|tune|val|report|test)$", r"|\1", name).partition("|")
        splits.setdefault(base, []).append(split)
    return [
        base + (f"_{{{','.join(some)}}}" if len(some) > 1 else f"_{some[0]}" if some[0] else "")
        for base, some in splits.items()
    ]


def _find(name: str, source: Source, root: PathLike | None) -> Path:
    """The first folder that holds the source's file."""
    roots = dataset_roots(root)
    first = os.environ.get(source.variable)
    if first and root is None:
        roots.insert(0, Path(first))
    for folder in roots:
        if (folder / source.file).exists():
            return folder
    looked = ", ".join(map(str, roots))
    hint = "" if root or "DETECTRON2_DATASETS" in os.environ else _UNSET
    raise InputError(
        f"data set {name} needs {source.file}, which is not in {looked}: {source.how_to_get}{hint}"
    )


def dataset_names(labelled: bool | None = None) -> list[str]:
    """The names `get_dataset` knows: with one label an image (`labelled`, classification), with
    labels of pixels (False, segmentation), or all (None)."""
    folders = {name for name, (load, _) in _registered.items() if load is load_image_folder}
    return sorted(
        name
        for name in {*_BUILTIN, *_registered}
        if labelled in (None, name in CLASSIFICATION or name in folders)
    )


def register_coco_panoptic(
    name: str, image_dir: PathLike, panoptic_dir: PathLike, panoptic_json: PathLike
) -> None:
    """Make a data set of one's own, in COCO panoptic layout, known under a name.

    Nothing is read until `get_dataset(name)`. A name that another data set has is an InputError;
    the same name with the same arguments again is none. So it is with the two functions below.
    """
    files = (os.fspath(image_dir), os.fspath(panoptic_dir), os.fspath(panoptic_json))
    _register(name, load_coco_panoptic, files)


def register_label_folders(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike,
    classes: Sequence[str],
    ignore_label: int = 255,
    prefixes: Sequence[str] = (),
) -> None:
    """Make image and label folders of one's own, for semantic segmentation, known under a name.

    The labels of `image_dir/x.jpg` (or any of `IMAGE_SUFFIXES`) are `label_dir/x.png`: one channel
    of the upright image's size that holds indices into `classes`; pixels of `ignore_label` do not
    count. `prefixes` take only images whose file name starts with one of these; () takes all.

    Raises:
        InputError: the name is taken, `classes` is empty or names one twice, or `ignore_label` is
            one of the classes'.
    """
    check_classes(name, classes, ignore_label)
    folders = (os.fspath(image_dir), os.fspath(label_dir))
    _register(name, load_label_folders, (*folders, tuple(classes), ignore_label, tuple(prefixes)))


def register_image_folder(
    name: str, root: PathLike, classes: Mapping[str, str] | None = None
) -> None:
    """Make ``root/<class folder>/**`` of one's own, for classification, known by name.

    `classes` map folders to class names, in the order of the labels. By default a class is called
    like its folder, with spaces for underscores, and a WordNet id like ImageNet's class.
    """
    table = None if classes is None else dict(classes)
    _register(name, load_image_folder, (os.fspath(root), table))


def _register(name: str, load: Callable[..., Dataset], arguments: tuple[object, ...]) -> None:
    entry = load, arguments
    if name in _BUILTIN or _registered.get(name, entry) != entry:
        raise InputError(f"the data set name {name!r} is already taken")
    _registered[name] = entry
    for listener in listeners:
        listener()


def register_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    """Register the data sets that a configuration describes: each entry has the arguments of
    `register_coco_panoptic` or of `register_label_folders` in capitals, or is an InputError."""
    kinds: dict[str, Callable[..., None]] = {
        "PANOPTIC_JSON": register_coco_panoptic,
        "LABEL_DIR": register_label_folders,
    }
    for i, entry in enumerate(entries):
        where = f"MODEL.LQN.DATASETS[{i}]"
        kind = next((k for k in kinds if isinstance(entry, Mapping) and k in entry), None)
        if kind is None:
            layouts = "for COCO panoptic layout or for a folder of label PNGs"
            raise InputError(
                f"{where} does not describe a data set: it needs {' or '.join(kinds)}, {layouts}"
            )
        parameters = {k.upper(): v for k, v in inspect.signature(kinds[kind]).parameters.items()}
        for key, parameter in parameters.items():
            if key not in entry and parameter.default is parameter.empty:
                raise InputError(f"{where} has no key {key}")
        for key, value in entry.items():
            if key not in parameters:
                known = ", ".join(parameters)
                raise InputError(f"{where}: there is no key {key}; the keys are {known}")
            is_text = key == "NAME" or key.endswith(("_DIR", "_JSON"))
            if is_text and not isinstance(value, str):
                raise InputError(f"{where}.{key} must be text, not {value!r}")
        kinds[kind](**{key.lower(): value for key, value in entry.items()})

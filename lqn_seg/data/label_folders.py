"""Reader of the plainest semantic layout: a folder of images and a folder of label PNGs."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lqn_seg.data.images import (
    IMAGE_SUFFIXES,
    describe_turn,
    enumeration,
    find_images,
    is_junk,
    read_orientation,
    split_hidden,
    upright_size,
)
from lqn_seg.data.metadata import Category, Dataset, Listing, Metadata, Record, class_table
from lqn_seg.errors import InputError

_SUFFIX = ".png"  # of label maps


def load_label_folders(
    name: str,
    image_dir: str | os.PathLike[str],
    label_dir: str | os.PathLike[str],
    classes: Sequence[str],
    ignore_label: int = 255,
    prefixes: Sequence[str] = (),
    label_table: tuple[int, ...] | None = None,
) -> Dataset:
    """Open image and label folders as a data set; see `catalog.register_label_folders`, and
    `Metadata` for `label_table`. Files that do not fit together are the data set's `problems`;
    InputError where a folder is missing, or on `records()` where no image is found."""
    image_root, label_root = Path(image_dir), Path(label_dir)
    for folder in (image_root, label_root):
        if not folder.is_dir():
            raise InputError(f"folder {folder} of {name} does not exist")
    metadata = Metadata(
        name=name,
        categories=check_classes(name, classes, ignore_label),
        evaluator_type="sem_seg",
        ignore_label=ignore_label,
        label_table=label_table,
        image_root=os.fspath(image_dir),
        sem_seg_root=os.fspath(label_dir),
    )
    start = tuple(prefixes) or ("",)
    return Dataset(metadata, lambda: _listing(name, image_root, label_root, start))


def check_classes(name: str, classes: Sequence[str], ignore_label: int) -> tuple[Category, ...]:
    """`class_table`; an InputError also where a name occurs twice, or `ignore_label` is negative or
    a class's."""
    table = class_table(name, classes)
    twice = sorted({label for label in classes if list(classes).count(label) > 1})
    if twice:
        raise InputError(f"data set {name}: the class name {twice[0]!r} occurs twice")
    if ignore_label < len(classes):
        raise InputError(
            f"data set {name}: ignore_label {ignore_label} must lie outside the labels 0 .. "
            f"{len(classes) - 1} of its classes"
        )
    return table


def _listing(name: str, image_root: Path, label_root: Path, start: tuple[str, ...]) -> Listing:
    where = f"folder {image_root} of {name}"
    files = find_images(image_root)
    images = [path for path in files.images if path.name.startswith(start)]
    hidden = [path for path in files.hidden if path.name.lstrip("._").startswith(start)]
    if not images:
        named = f" whose name starts with {' or '.join(start)}" if any(start) else ""
        raise InputError(f"{where} holds no .jpg, .png or other image file{named}")
    by_stem: dict[str, list[Path]] = {}
    for path in images:
        by_stem.setdefault(path.stem, []).append(path)
    pairs, problems = [], []
    for stem, same in by_stem.items():
        if len(same) == 1:
            pairs.append((stem, same[0], label_root / f"{stem}{_SUFFIX}"))
        else:
            both = f"{stem} ({enumeration([path.name for path in same])})"
            problems.append(f"{where} holds two images named {both}, and one label map for both")
    labels = [
        path
        for path in sorted(label_root.iterdir())
        if path.suffix == _SUFFIX and path.name.startswith(start) and path.stem not in by_stem
    ]
    folders = [p for p in sorted(image_root.iterdir()) if p.is_dir() and not is_junk(p)]
    filled = [p.name for p in folders if p.suffix not in IMAGE_SUFFIXES and find_images(p).images]
    notes = [f"folder {image_root}: the images in its folders {enumeration(filled)} are not read"]
    problems += split_hidden(hidden).problems(where)
    return list_pairs(name, pairs, labels, problems, notes if filled else ())


def list_pairs(
    name: str,
    pairs: Iterable[tuple[str, Path, Path]],
    unpaired: Iterable[Path],
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Listing:
    """The records of those (image id, image, label map) of data set `name` that fit together, and
    one problem more where there are label maps without an image (`unpaired`)."""
    records, misfits = [], []
    for image_id, image, label in pairs:
        try:
            records.append(_record(name, image_id, image, label))
        except InputError as error:
            misfits.append(str(error))
    labels = enumeration([str(path) for path in split_hidden(unpaired).images])
    alone = [f"no image of {name} for the label map {labels}"] if labels else []
    return Listing(records, (*misfits, *problems, *alone), tuple(notes))


def _record(name: str, image_id: str, image: Path, label: Path) -> Record:
    """Detectron2's dictionary, or an InputError where an image and its label map do not fit."""
    height, width = upright_size(image)
    if not label.is_file():
        raise InputError(f"image {image.name} of {name} has no label map {label}")
    size = upright_size(label)
    if size != (height, width):
        stored = read_orientation(image) > 4 and size == (width, height)
        hint = ": its labels are those of the pixels as stored and must be turned too"
        raise InputError(
            f"label map {label} is {size[0]} x {size[1]} (height x width), but its image "
            f"{image.name} is {height} x {width}{describe_turn(image)}{hint if stored else ''}"
        )
    return {
        "file_name": str(image),
        "image_id": image_id,
        "height": height,
        "width": width,
        "sem_seg_file_name": str(label),
    }

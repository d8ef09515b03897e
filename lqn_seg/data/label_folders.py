"""Reader of the plainest semantic layout: a folder of images and a folder of label PNGs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lqn_seg.data.metadata import Category, Dataset, Metadata, Record
from lqn_seg.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def load_label_folders(
    name: str,
    image_dir: str | os.PathLike[str],
    label_dir: str | os.PathLike[str],
    classes: Sequence[str],
    ignore_label: int = 255,
    prefixes: Sequence[str] = (),
    *,
    label_table: tuple[int, ...] | None = None,
    how_to_get: str = "",
) -> Dataset:
    """Open image and label folders as a data set for semantic segmentation.

    The image `image_dir/x.jpg` (or .jpeg, .png) has its labels in `label_dir/x.png`: one channel,
    (H, W) like the image, a class's place in `classes` or `ignore_label` at every pixel.

    Args:
        name: the data set's name.
        classes: class names; a name's place is its label.
        ignore_label: the label of pixels that do not count.
        prefixes: only images whose file name starts with one of these; () takes all.
        label_table: see `Metadata`; None where the files hold places in `classes`.
        how_to_get: where the files come from; ends the sentence where they are missing.

    Raises:
        InputError: a folder is missing or `classes` or `ignore_label` make no sense; on `records()`
            also where no image is found, an image has no label map, two images share a name, or an
            image and its label map differ in size. The sentence names the file.
    """
    hint = f": {how_to_get}" if how_to_get else ""
    for folder in (Path(image_dir), Path(label_dir)):
        if not folder.is_dir():
            raise InputError(f"folder {folder} of {name} does not exist{hint}")
    check_classes(name, classes, ignore_label)
    metadata = Metadata(
        name=name,
        categories=tuple(Category(i, label, False) for i, label in enumerate(classes)),
        evaluator_type="sem_seg",
        ignore_label=ignore_label,
        label_table=label_table,
        image_root=os.fspath(image_dir),
        sem_seg_root=os.fspath(label_dir),
    )
    return Dataset(
        metadata, partial(_records, name, Path(image_dir), Path(label_dir), tuple(prefixes), hint)
    )


def check_classes(name: str, classes: Sequence[str], ignore_label: int) -> None:
    """Hold a table of classes against itself.

    Raises:
        InputError: it is empty, a name occurs twice, or `ignore_label` is negative or a class's.
    """
    if isinstance(classes, str) or not classes:
        raise InputError(f"data set {name}: classes must be a list of at least one class name")
    twice = sorted({label for label in classes if list(classes).count(label) > 1})
    if twice:
        raise InputError(f"data set {name}: the class name {twice[0]!r} occurs twice")
    if ignore_label < len(classes):
        raise InputError(
            f"data set {name}: ignore_label {ignore_label} must lie outside the labels 0 .. "
            f"{len(classes) - 1} of its classes"
        )


def _records(
    name: str, image_root: Path, label_root: Path, prefixes: tuple[str, ...], hint: str
) -> list[Record]:
    images = sorted(
        path
        for path in image_root.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name.startswith(prefixes or "")
    )
    if not images:
        named = f" whose name starts with {' or '.join(prefixes)}" if prefixes else ""
        raise InputError(
            f"folder {image_root} of {name} holds no {', '.join(IMAGE_SUFFIXES)} file{named}{hint}"
        )
    records: dict[str, Record] = {}
    for image in images:
        if image.stem in records:
            raise InputError(f"folder {image_root} of {name} holds two images named {image.stem}")
        label = label_root / f"{image.stem}.png"
        records[image.stem] = label_record(name, image.stem, image, label)
    return list(records.values())


def label_record(name: str, image_id: str, image: Path, label: Path) -> Record:
    """Detectron2's dictionary of an image of data set `name` and its label map.

    Raises:
        InputError: the label map is missing or of another size than its image, or one of the two
            is no image.
    """
    if not label.is_file():
        raise InputError(f"image {image.name} of {name} has no label map {label}")
    width, height = _size(image)
    if _size(label) != (width, height):
        raise InputError(
            f"label map {label} is {' x '.join(map(str, _size(label)))} (width x height), but "
            f"its image {image.name} is {width} x {height}"
        )
    return {
        "file_name": str(image),
        "image_id": image_id,
        "height": height,
        "width": width,
        "sem_seg_file_name": str(label),
    }


def _size(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone: a listing of 2000 images decodes none."""
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError):
        raise InputError(f"file {path} is not an image that Pillow can read") from None

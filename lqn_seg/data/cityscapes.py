"""Cityscapes, fine annotations: semantic segmentation with the 19 classes that are evaluated."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cityscapesscripts.helpers.labels import labels as LABELS

from lqn_seg.data.image_files import ImageFiles, is_hidden, is_junk
from lqn_seg.data.label_folders import list_pairs, without_image
from lqn_seg.data.metadata import Category, Dataset, Listing, Metadata
from lqn_seg.errors import InputError

IGNORE = 255
SPLITS = ("train", "val")
# By label id 0 .. 33: the train id, a contiguous id or `IGNORE`. ("license plate" has id -1 and is
# in no label map.)
TRAIN_IDS: tuple[int, ...] = tuple(label.trainId for label in LABELS if label.id >= 0)

HOW_TO_GET = (
    "download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
    "https://www.cityscapes-dataset.com and unpack them there"
)


def load_cityscapes_sem_seg(name: str, split: str, root: Path) -> Dataset:
    """Open a split of Cityscapes for semantic segmentation.

    Labels are read from the `labelIds` files that come with Cityscapes; `labelTrainIds` files hold
    the same and are not needed. An image's id is its file name up to `_leftImg8bit.png`.

    Args:
        name: the data set's name.
        split: one of `SPLITS`.
        root: the folder with `leftImg8bit/<split>/<city>/` and `gtFine/<split>/<city>/`.

    Raises:
        InputError: on `records()`: no image is found.
    """
    evaluated = {label.trainId: label for label in LABELS if not label.ignoreInEval}
    categories = (evaluated[i] for i in range(len(evaluated)))
    image_dir, label_dir = root / "leftImg8bit" / split, root / "gtFine" / split
    metadata = Metadata(
        name=name,
        # No instances are read here, so there are no things.
        categories=tuple(Category(k.trainId, k.name, False, k.color) for k in categories),
        evaluator_type="cityscapes_sem_seg",
        ignore_label=IGNORE,
        label_table=TRAIN_IDS,
        image_root=str(image_dir),
        sem_seg_root=str(label_dir),
    )
    return Dataset(metadata, partial(_listing, name, image_dir, label_dir))


def _listing(name: str, image_dir: Path, label_dir: Path) -> Listing:
    suffix, label_suffix = "_leftImg8bit.png", "_gtFine_labelIds.png"
    found = [p for p in sorted(image_dir.glob(f"*/*{suffix}")) if not is_junk(p.parent)]
    images = [path for path in found if not is_hidden(path)]
    if not images:
        raise InputError(
            f"folder {image_dir} of {name} holds no <city>/*{suffix} file: {HOW_TO_GET}"
        )
    pairs = []
    for image in images:
        frame = image.name.removesuffix(suffix)
        pairs.append((frame, image, label_dir / image.parent.name / f"{frame}{label_suffix}"))
    hidden = ImageFiles((), tuple(path for path in found if is_hidden(path)))
    known = {label for _, _, label in pairs}
    alone = [p for p in sorted(label_dir.glob(f"*/*{label_suffix}")) if p not in known]
    problems = [*hidden.problems(f"folder {image_dir} of {name}"), *without_image(name, alone)]
    return list_pairs(name, pairs, problems)

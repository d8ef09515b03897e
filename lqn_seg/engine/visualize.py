"""Panels of a user's own images: no ground truth, no scores, just what each method sees."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lqn_seg.data.catalog import Category, Metadata, get_dataset
from lqn_seg.data.images import read_image
from lqn_seg.engine.build import build_segmenter
from lqn_seg.engine.config import load_cfg
from lqn_seg.engine.report import title
from lqn_seg.errors import InputError
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.visualization.panels import (
    DIFFERENCE_LEGEND,
    Segmentation,
    comparison_row,
    legend_entries,
    panel,
    save_png,
)


def draw_images(
    config_file: str,
    files: Sequence[Path],
    output: Path,
    chosen: Sequence[str],
    overrides: Sequence[str] = (),
    device: str = "",
) -> int:
    """Write one panel per image; an unreadable image is named and the others go on.

    Args:
        chosen: at least two methods; the last is compared with the first.

    Returns:
        The number of panels written.

    Raises:
        InputError: the configuration, the teacher or the methods are wrong.
    """
    if len(chosen) < 2:
        raise InputError("--methods must name at least two methods, the last is compared")
    # One image at a time: students beside it would be copies, and a user would wait for them.
    one = ["MODEL.LQN.BATCH", "1"]
    overrides = [*one, *overrides, "MODEL.LQN.METHODS", repr(tuple(chosen))]
    cfg = load_cfg(config_file, overrides, device)
    metadata = _metadata(cfg.DATASETS.TEST)
    thing_ids = metadata.thing_ids if metadata else frozenset()
    segmenter = build_segmenter(cfg, thing_ids, metadata.num_classes if metadata else None)
    categories = metadata.categories if metadata else _teacher_categories(segmenter)
    written = 0
    names: set[str] = set()
    for file in files:
        name = f"{file.stem}_panel.png"
        if name in names:  # a.jpg and a.png, or the same name in two folders
            name = f"{file.stem}_{len(names)}_panel.png"
        names.add(name)
        try:
            image = read_image(file)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        path = save_png(_panel(segmenter, image, categories), output / name)
        written += 1
        print(f"picture: {path}")
    return written


def _metadata(names: Sequence[str]) -> Metadata | None:
    """Metadata of the configuration's data set; its table is known even where its files are not."""
    try:
        return get_dataset(names[0]).metadata if names else None
    except InputError as error:
        print(f"no data set, so class names are the teacher's: {error}", file=sys.stderr)
        return None


def _teacher_categories(segmenter: Segmenter) -> tuple[Category, ...]:
    names = segmenter.teacher.model.config.id2label
    return tuple(Category(index, names[index], False) for index in sorted(names))


def _panel(segmenter: Segmenter, image: np.ndarray, categories: Sequence[Category]) -> np.ndarray:
    (predictions,) = segmenter([torch.from_numpy(image.copy()).permute(2, 0, 1)])
    maps = {title(name): segmentation(p.output) for name, p in predictions.items()}
    names = list(maps)
    row = comparison_row(image, None, maps, categories, reference=names[0], compared=names[-1])
    return panel([row], [*legend_entries(list(maps.values()), categories), *DIFFERENCE_LEGEND])


def segmentation(output: dict[str, Any]) -> Segmentation:
    """A panoptic map to draw; semantic output becomes one segment per class."""
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        return Segmentation(ids.cpu().numpy(), segments)
    labels = output["sem_seg"].argmax(0).cpu().numpy()
    present = np.unique(labels).tolist()
    segments = [{"id": c + 1, "category_id": c, "isthing": False} for c in present]
    return Segmentation((labels + 1).astype(np.int32), segments)

#!/usr/bin/env python
"""Make ADE20K's panoptic annotations from its semantic and its instance annotations.

Reads `ADEChallengeData2016/{images,annotations,annotations_instance}/<split>` and writes
`ade20k_panoptic_<split>/*.png` and `ade20k_panoptic_<split>.json` beside them: the layout, the ids
and the rule of Mask2Former's script. Stuff comes from the semantic map, things from the instance
map, which is pasted over it; thing pixels without an instance are void.

One difference is on purpose: areas and boxes are those of the pixels that are left after pasting,
and stuff of which nothing is left is not listed, so that ground truth as prediction scores 100.

Examples:
    python datasets/prepare_ade20k_panoptic.py --split val
    python datasets/prepare_ade20k_panoptic.py --root /data
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lqn_seg.cli.parser import prepare_splits
from lqn_seg.data.images import find_images, read_image, read_label_map, write_id_map
from lqn_seg.data.masks import describe_segment
from lqn_seg.data.segmentation_sets import (
    ADE20K_CLASSES,
    ADE20K_FOLDER,
    ADE20K_RAW_LABELS,
    ADE20K_SPLITS,
    ADE20K_STUFF,
)
from lqn_seg.errors import InputError
from lqn_seg.visualization.palette import distinct_color

HOW_TO_GET = (
    "from http://sceneparsing.csail.mit.edu, unpack ADEChallengeData2016.zip there and "
    "annotations_instance.tar inside it"
)
THINGS = [i for i in range(len(ADE20K_CLASSES)) if i not in ADE20K_STUFF]


def merge(
    labels: NDArray[np.integer], instances: NDArray[np.integer], where: str
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """One image's (H, W) segment ids from 1 on, 0 = void, and the segments with pixels.

    Args:
        labels: (H, W) raw semantic labels, class + 1, 0 = other.
        instances: (H, W, 3): instance category 1 .. 100, instance number from 1 on, unused.
        where: the instance file; InputError where its categories are not as above.
    """
    ids = np.zeros(labels.shape, np.int32)
    categories: list[int] = []
    for label in np.unique(labels):
        if label != 0 and ADE20K_RAW_LABELS[label] in ADE20K_STUFF:
            categories.append(ADE20K_RAW_LABELS[label])
            ids[labels == label] = len(categories)
    for number in sorted(set(np.unique(instances[..., 1]).tolist()) - {0}):
        mask = instances[..., 1] == number
        kinds = np.unique(instances[..., 0][mask]).tolist()
        if len(kinds) != 1 or not 1 <= kinds[0] <= len(THINGS):
            wrong = f"has the categories {kinds}, expected one of 1 .. {len(THINGS)}"
            raise InputError(f"instance map {where}: instance {number} {wrong}")
        categories.append(THINGS[kinds[0] - 1])
        ids[mask] = len(categories)
    segments = [describe_segment(ids, k, category) for k, category in enumerate(categories, 1)]
    return ids, [segment for segment in segments if segment["area"]]


def read_maps(picture: Path, labels: Path, instances: Path) -> tuple[Any, Any]:
    """Raw labels (H, W) and instances (H, W, 3) of a picture, of its size."""
    raw, pixels = read_label_map(labels), read_image(instances)
    height, width = read_image(picture).shape[:2]
    for kind, shape in (("annotations", raw.shape), ("instances", pixels.shape[:2])):
        if shape != (height, width):
            theirs = f"its {kind} are {shape[0]} x {shape[1]}"
            raise InputError(f"{picture} is {height} x {width} (height x width), {theirs}")
    most = len(ADE20K_RAW_LABELS) - 1
    if raw.max() > most:
        raise InputError(f"label map {labels} holds label {raw.max()}, outside 0 .. {most}")
    return raw, pixels


def write_panoptic(root: Path, split: str) -> Path:
    """Write PNGs and JSON of a split; returns the JSON."""
    base, part = root / ADE20K_FOLDER, ADE20K_SPLITS[split]
    folders = [base / kind / part for kind in ("images", "annotations", "annotations_instance")]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"folder {folder} does not exist: {HOW_TO_GET}")
    pictures = [p for p in find_images(folders[0]).images if p.suffix == ".jpg"]
    if not pictures:
        raise InputError(f"folder {folders[0]} holds no .jpg file: {HOW_TO_GET}")
    output = base / f"ade20k_panoptic_{split}"
    output.mkdir(exist_ok=True)
    images, annotations = [], []
    for picture in tqdm(pictures, desc=split, unit="image"):
        image_id, name = picture.stem, f"{picture.stem}.png"
        labels, instances = read_maps(picture, folders[1] / name, folders[2] / name)
        ids, segments = merge(labels, instances, str(folders[2] / name))
        write_id_map(output / name, ids)
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        images.append({"id": image_id, "file_name": picture.name, **size})
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
    categories = [
        {"id": i, "name": name, "isthing": int(i not in ADE20K_STUFF), "color": distinct_color(i)}
        for i, name in enumerate(ADE20K_CLASSES)
    ]
    path = base / f"ade20k_panoptic_{split}.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def main() -> int:
    return prepare_splits(__doc__ or "", ADE20K_FOLDER, ADE20K_SPLITS, write_panoptic)


if __name__ == "__main__":
    sys.exit(main())

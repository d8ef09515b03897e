"""A panoptic data set of a few pixels, written to disk in COCO's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data.catalog import Dataset
from lqn_seg.data.coco import load_coco_panoptic

# Things and stuff mixed, ids not contiguous.
CATEGORIES = [
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 7, "name": "cat", "isthing": 1},
    {"id": 40, "name": "road", "isthing": 0},
    {"id": 41, "name": "dog", "isthing": 1},
    {"id": 90, "name": "unseen", "isthing": 1},
]

MakeDataset = Callable[[list[tuple[Any, list[tuple[int, int, int]]]]], Dataset]


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Images given as (id map, [(segment id, contiguous category, iscrowd), ...])."""

    def make(images: list[tuple[Any, list[tuple[int, int, int]]]]) -> Dataset:
        (tmp_path / "panoptic").mkdir()
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for i, (grid, segments) in enumerate(images):
            ids = np.asarray(grid)
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
            Image.fromarray(rgb).save(tmp_path / "panoptic" / f"{i}.png")
            image = {"id": i, "file_name": f"{i}.png"}
            height, width = ids.shape
            content["images"].append({**image, "height": height, "width": width})
            infos = [
                {
                    "id": segment,
                    "category_id": CATEGORIES[category]["id"],
                    "iscrowd": crowd,
                    "area": int((ids == segment).sum()),
                }
                for segment, category, crowd in segments
            ]
            content["annotations"].append(
                {"image_id": i, "file_name": f"{i}.png", "segments_info": infos}
            )
        (tmp_path / "panoptic.json").write_text(json.dumps(content))
        return load_coco_panoptic(
            "tiny", tmp_path / "images", tmp_path / "panoptic", tmp_path / "panoptic.json"
        )

    return make

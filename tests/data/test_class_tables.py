"""Names and kinds of classes, against the tables that data sets themselves ship."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cityscapesscripts.helpers.labels import labels

from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.class_tables import categories_of

ROOT = Path(__file__).parents[2]


def unnamed(count: int) -> list[str]:
    return [f"LABEL_{k}" for k in range(count)]


def test_the_demo_has_its_data_sets_things():
    expected = get_dataset("demo_panoptic_val", ROOT / "datasets").metadata
    found = categories_of(expected.class_names)
    assert [c.isthing for c in found] == [c.isthing for c in expected.categories]


def test_cityscapes_without_names_has_its_authors():
    evaluated = [label for label in labels if not label.ignoreInEval]
    found = categories_of(unnamed(19))
    assert [(c.name, c.isthing, c.color) for c in found] == [
        (x.name, x.hasInstances, x.color) for x in evaluated
    ]
    assert categories_of(["road", "sky"])[0].color is None


def test_coco_without_names_has_its_authors():
    folder = Path(os.environ.get("LQN_SEG_REAL_DATA", "/nowhere"))
    file = folder / "panopticapi_sample" / "panoptic_coco_categories.json"
    if not file.is_file():
        pytest.skip("LQN_SEG_REAL_DATA holds no panopticapi_sample")
    table = sorted(json.loads(file.read_text()), key=lambda entry: entry["id"])
    found = categories_of(unnamed(133))
    assert [(c.name, c.isthing) for c in found] == [(e["name"], e["isthing"] == 1) for e in table]


def test_of_unknown_classes_nothing_is_assumed():
    assert not any(c.isthing for c in categories_of(["road", "person", "lake"]))
    assert [c.name for c in categories_of(unnamed(7))] == unnamed(7)
    named = categories_of(["Road", "person", "lake"], things=["person"])
    assert [c.isthing for c in named] == [False, True, False]
    assert not any(c.isthing for c in categories_of(["disc", "sky"] * 7, things=[]))

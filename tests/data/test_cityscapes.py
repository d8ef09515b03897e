"""Cityscapes: the reader, its table against cityscapesscripts, and the train-id script."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.cityscapes_sets import CITYSCAPES_IGNORE as IGNORE
from lqn_seg.data.cityscapes_sets import CITYSCAPES_TRAIN_IDS as TRAIN_IDS
from lqn_seg.data.images import read_label_map
from lqn_seg.errors import InputError

NAME = "cityscapes_fine_sem_seg_val"
POLYGONS = {
    "imgWidth": 12,
    "imgHeight": 8,
    "objects": [
        {"label": "road", "polygon": [[0, 4], [11, 4], [11, 7], [0, 7]]},
        {"label": "ego vehicle", "polygon": [[0, 6], [11, 6], [11, 7], [0, 7]]},
        {"label": "cargroup", "polygon": [[2, 1], [6, 1], [6, 5], [2, 5]]},
        {"label": "license plate", "polygon": [[3, 2], [4, 2], [4, 3], [3, 3]]},
        {"label": "bicycle", "polygon": [[8, 0], [10, 0], [10, 5], [8, 5]]},
    ],
}


def write_frame(root: Path, city: str, frame: str) -> Path:
    """An image and its label ids, drawn by cityscapesscripts from polygons; returns the labels."""
    images, truth = (root / "cityscapes" / k / "val" / city for k in ("leftImg8bit", "gtFine"))
    for folder in (images, truth):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(images / f"{city}_{frame}_leftImg8bit.png")
    polygons = truth / f"{city}_{frame}_gtFine_polygons.json"
    polygons.write_text(json.dumps(POLYGONS))
    labels = truth / f"{city}_{frame}_gtFine_labelIds.png"
    json2labelImg(str(polygons), str(labels), "ids")
    return labels


def test_table() -> None:
    assert len(TRAIN_IDS) == 34
    # From the documentation of the data set, not from the table that is read.
    evaluated = [7, 8, 11, 12, 13, *range(17, 18), *range(19, 29), 31, 32, 33]
    assert [i for i, train_id in enumerate(TRAIN_IDS) if train_id != IGNORE] == evaluated
    assert [TRAIN_IDS[i] for i in evaluated] == list(range(19))


def test_frames_of_all_cities(tmp_path: Path) -> None:
    write_frame(tmp_path, "munster", "000001_000019")
    write_frame(tmp_path, "aachen", "000000_000019")
    dataset = get_dataset(NAME, root=tmp_path)
    metadata = dataset.metadata
    first, second = dataset.records()
    assert [first["image_id"], second["image_id"]] == [
        "aachen_000000_000019",
        "munster_000001_000019",
    ]
    assert (first["height"], first["width"]) == (8, 12)
    assert metadata.evaluator_type == "cityscapes_sem_seg" and not metadata.thing_ids
    names = [id2label[i].name for i, train_id in enumerate(TRAIN_IDS) if train_id != IGNORE]
    assert list(metadata.class_names) == names and metadata.num_classes == 19
    result = metadata.read_semantic(first)
    assert set(np.unique(result)) == {names.index(n) for n in ("road", "car", "bicycle")} | {IGNORE}
    assert result[5, 0] == 0 and (result[6:] == IGNORE).all()


def test_train_ids_are_what_cityscapesscripts_draws(tmp_path: Path, script) -> None:
    labels = write_frame(tmp_path, "aachen", "000000_000019")
    prepare = script("datasets", "prepare_cityscapes")
    assert prepare.write_train_ids(tmp_path, "val") == 1
    written = labels.with_name(labels.name.replace("labelIds", "labelTrainIds"))
    drawn = tmp_path / "drawn.png"
    json2labelImg(str(labels).replace("labelIds.png", "polygons.json"), str(drawn), "trainIds")
    np.testing.assert_array_equal(read_label_map(written), read_label_map(drawn))


def test_what_is_missing_is_named(tmp_path: Path, script, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["prepare_cityscapes.py", "--root", str(tmp_path)])
    assert script("datasets", "prepare_cityscapes").main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cityscapes/leftImg8bit/train" in error
    labels = write_frame(tmp_path, "aachen", "000000_000019")
    Image.fromarray(np.full((8, 12), 34, np.uint8)).save(labels)
    dataset = get_dataset(NAME, root=tmp_path)
    with pytest.raises(InputError, match=r"labelIds\.png holds label 34, outside"):
        dataset.metadata.read_semantic(dataset.records()[0])
    labels.unlink()
    with pytest.raises(InputError, match=r"leftImg8bit.png .*no label map .*labelIds\.png"):
        dataset.records()
    for image in (tmp_path / "cityscapes" / "leftImg8bit").rglob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match=r"holds no <folder>/"):
        dataset.records()


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
def test_real_frame() -> None:
    dataset = get_dataset(NAME, root=os.environ["LQN_SEG_REAL_DATA"])
    (record,) = dataset.records()
    labels = dataset.metadata.read_semantic(record)
    other = read_label_map(record["sem_seg_file_name"].replace("labelIds", "labelTrainIds"))
    # Both were scaled down on their own, so they differ at some edges.
    assert 0 < (labels != other).mean() < 0.005

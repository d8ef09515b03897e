"""Annotations and label maps made from panoptic maps, against the maps themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.data.derived import complete_records
from lqn_seg.data.images import read_label_map, write_id_map
from lqn_seg.data.label_folders import load_label_folders
from lqn_seg.data.metadata import Dataset, Listing
from lqn_seg.errors import InputError

IDS = np.array([[0, 1, 1, 2], [3, 1, 1, 2], [3, 3, 300, 300]])


def dataset(tmp_path):
    write_id_map(tmp_path / "a.png", IDS)
    segments = [
        {"id": 1, "category_id": 7},
        {"id": 2, "category_id": 7, "iscrowd": 1},
        {"id": 3, "category_id": 5},
        {"id": 300, "category_id": 9},
    ]
    content = {
        "images": [{"id": 4, "file_name": "a.png", "height": 3, "width": 4}],
        "annotations": [{"image_id": 4, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 5, "name": "sky", "isthing": 0},
            {"id": 7, "name": "disc", "isthing": 1},
            {"id": 9, "name": "rod", "isthing": 1},
        ],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return load_coco_panoptic("toy", tmp_path, tmp_path, tmp_path / "panoptic.json")


def test_annotations_and_label_maps_are_the_panoptic_maps(tmp_path):
    (record,) = complete_records(dataset(tmp_path), tmp_path / "labels")
    things = record["annotations"]
    assert [(a["category_id"], a["iscrowd"], a["bbox"]) for a in things] == [
        (1, 0, [1, 0, 2, 2]),
        (1, 1, [3, 0, 1, 2]),
        (2, 0, [2, 2, 2, 1]),
    ]
    for annotation, segment_id in zip(things, (1, 2, 300)):
        assert (mask_api.decode(annotation["segmentation"]) == (segment_id == IDS)).all()
    # void is ignored
    expected = [[255, 1, 1, 1], [0, 1, 1, 1], [0, 0, 2, 2]]
    assert read_label_map(record["sem_seg_file_name"]).tolist() == expected
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["4.png"]
    assert complete_records(dataset(tmp_path), tmp_path / "labels") == [record]


def test_a_set_without_things_has_no_annotations(tmp_path):
    dataset(tmp_path)
    stuff = json.loads((tmp_path / "panoptic.json").read_text())
    for category in stuff["categories"]:
        category["isthing"] = 0
    (tmp_path / "panoptic.json").write_text(json.dumps(stuff))
    toy = load_coco_panoptic("toy", tmp_path, tmp_path, tmp_path / "panoptic.json")
    (record,) = complete_records(toy, tmp_path / "labels")
    assert "annotations" not in record  # an empty list would be an image without objects
    assert record["sem_seg_file_name"].endswith("4.png")


def test_label_folders_have_no_annotations(tmp_path):
    for folder, pixels in (("images", IDS * 0), ("labels", IDS % 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / "a.png")
    toy = load_label_folders("toy", tmp_path / "images", tmp_path / "labels", ["off", "on"])
    (record,) = complete_records(toy, tmp_path / "completed")
    assert set(record) == {"file_name", "image_id", "height", "width", "sem_seg_file_name"}
    assert (read_label_map(record["sem_seg_file_name"]) == IDS % 2).all()


def test_label_maps_stay_in_their_folder_whatever_an_id_is(tmp_path):
    toy = dataset(tmp_path)
    ids = ["../up", "a/b", "a%2Fb", "a.b"]
    records = [{**toy.records()[0], "image_id": name} for name in ids]
    complete_records(Dataset(toy.metadata, lambda: Listing(records)), tmp_path / "labels")
    assert len(list((tmp_path / "labels").iterdir())) == 4


def test_labels_that_detectron2_cannot_read_are_named(tmp_path):
    toy = dataset(tmp_path)
    many = replace(toy.metadata, categories=toy.metadata.categories * 100)
    with pytest.raises(InputError, match=r"data set toy has 300 classes and the ignore .* 8-bit"):
        complete_records(Dataset(many, toy.load), tmp_path / "labels")

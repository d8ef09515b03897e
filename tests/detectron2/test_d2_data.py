"""Our data sets under Detectron2's names: the same files, tables and records as its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2.data", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from pycocotools import mask as mask_api

import lqn_seg.detectron2 as lqn
from lqn_seg.data.ade20k import ADE20K_CLASSES
from lqn_seg.data.catalog import dataset_names, get_dataset
from lqn_seg.data.derived import complete_records
from lqn_seg.data.masks import decode
from lqn_seg.detectron2.data import set_metadata

THINGS = [c for c in COCO_CATEGORIES if c["isthing"]]


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """One image with the real tables of categories."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "coco"
    for part in ("annotations", "val2017"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(folder / "val2017" / "000000000007.jpg")
    image = {"id": 7, "file_name": "000000000007.jpg", "height": 20, "width": 30}
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    thing = {"id": 1, "image_id": 7, "category_id": 90, "iscrowd": 0, "bbox": [2, 2, 10, 10]}
    (folder / "annotations" / "instances_val2017.json").write_text(
        json.dumps(
            {
                "images": [image],
                "annotations": [{**thing, "segmentation": square, "area": 100}],
                "categories": [{"id": c["id"], "name": c["name"]} for c in THINGS],
            }
        )
    )
    panoptic = {"image_id": 7, "file_name": "000000000007.png", "segments_info": []}
    (folder / "annotations" / "panoptic_val2017.json").write_text(
        json.dumps({"images": [image], "annotations": [panoptic], "categories": COCO_CATEGORIES})
    )
    return folder


def test_tables_are_detectron2s(coco):
    panoptic = get_dataset("coco_2017_val_panoptic").metadata
    theirs = MetadataCatalog.get("coco_2017_val_panoptic")
    assert list(panoptic.stuff_classes) == theirs.stuff_classes
    assert panoptic.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id
    assert panoptic.evaluator_type == theirs.evaluator_type
    assert panoptic.json_file == str(coco / "annotations" / "instances_val2017.json")
    instances = get_dataset("coco_2017_val").metadata
    theirs = MetadataCatalog.get("coco_2017_val")
    assert list(instances.thing_classes) == theirs.thing_classes
    assert instances.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id
    assert instances.evaluator_type == theirs.evaluator_type
    # ADE20K: the first of each class's names.
    theirs = MetadataCatalog.get("ade20k_sem_seg_val")
    assert [name.split(",")[0].strip() for name in theirs.stuff_classes] == list(ADE20K_CLASSES)


def test_our_records_of_instances_are_those_of_their_reader(coco):
    (ours,) = complete_records(get_dataset("coco_2017_val"), coco / "labels")
    (theirs,) = load_coco_json(
        str(coco / "annotations" / "instances_val2017.json"), str(coco / "val2017")
    )
    for key in ("file_name", "image_id", "height", "width"):
        assert ours[key] == theirs[key]
    (mine,), (other,) = ours["annotations"], theirs["annotations"]
    assert mine["category_id"] == 79  # contiguous; theirs is mapped only under a name
    assert mine["bbox"] == other["bbox"] and mine["iscrowd"] == other["iscrowd"]
    rle = mask_api.merge(mask_api.frPyObjects(other["segmentation"], 20, 30))
    np.testing.assert_array_equal(decode(mine["segmentation"]), mask_api.decode(rle))
    assert "sem_seg_file_name" not in ours


def test_every_name_is_in_their_catalog_once_registered(data_root):
    lqn.register()
    assert set(dataset_names(labelled=False)) <= set(DatasetCatalog.list())
    assert not set(dataset_names(labelled=True)) & set(DatasetCatalog.list())  # no segmentation
    metadata = get_dataset("demo_panoptic_val").metadata
    set_metadata(metadata)
    assert MetadataCatalog.get("demo_panoptic_val").panoptic_json == metadata.panoptic_json


def test_cityscapes_is_not_read_by_their_reader(tmp_path, monkeypatch):
    """Theirs imports a package that is not public; the trainer's loader must not go through it."""
    from detectron2.config import get_cfg

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images, truth = (
        tmp_path / "cityscapes" / k / "val" / "bonn" for k in ("leftImg8bit", "gtFine")
    )
    for folder, name, mode in (
        (images, "bonn_000000_000019_leftImg8bit.png", "RGB"),
        (truth, "bonn_000000_000019_gtFine_labelIds.png", "L"),
    ):
        folder.mkdir(parents=True)
        Image.new(mode, (8, 4), 7 if mode == "L" else 0).save(folder / name)
    lqn.register()
    cfg = get_cfg()
    lqn.add_lqn_config(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    name = "cityscapes_fine_sem_seg_val"
    ((given,),) = list(lqn.LQNTrainer.build_test_loader(cfg, name))[:1]
    assert given["image_id"] == "bonn_000000_000019"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    evaluator = lqn.LQNEvaluator(cfg, name)
    scores = torch.zeros(19, 4, 8)
    scores[0] = 1
    evaluator.process([given], [{"sem_seg": scores}])
    result = evaluator.evaluate()["lqn/sem_seg"]
    assert result["IoU"] == result["mIoU"] == 100

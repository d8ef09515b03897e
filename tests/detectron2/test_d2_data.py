"""Our data sets under Detectron2's names: the same files, tables and records as its own."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2.data", reason="Detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from pycocotools import mask as mask_api

import lqn_seg.detectron2 as lqn
from lqn_seg.data.catalog import (
    Category,
    Metadata,
    dataset_names,
    get_dataset,
    register_label_folders,
)
from lqn_seg.data.derived import complete_records, detectron2_facts
from lqn_seg.data.masks import decode
from lqn_seg.data.segmentation_sets import ADE20K_CLASSES
from lqn_seg.detectron2.data import LazyMetadata, class_table
from lqn_seg.errors import InputError

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
    theirs, keys = MetadataCatalog.get("coco_2017_val_panoptic"), detectron2_facts(panoptic)
    for key in ("stuff_classes", "thing_dataset_id_to_contiguous_id", "evaluator_type"):
        assert keys[key] == theirs.get(key)
    assert panoptic.json_file == str(coco / "annotations" / "instances_val2017.json")
    instances = get_dataset("coco_2017_val").metadata
    theirs, keys = MetadataCatalog.get("coco_2017_val"), detectron2_facts(instances)
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id", "evaluator_type"):
        assert keys[key] == theirs.get(key)
    # ADE20K: the first of each class's names.
    theirs = MetadataCatalog.get("ade20k_sem_seg_val")
    assert [name.split(",")[0].strip() for name in theirs.stuff_classes] == list(ADE20K_CLASSES)


def test_thing_classes_are_all_names_where_things_do_not_come_first():
    table = [Category(7, "sky", False), Category(9, "disc", True), Category(4, "rod", True)]
    for order, expected in (([0, 1, 2], ["sky", "disc", "rod"]), ([1, 2, 0], ["disc", "rod"])):
        metadata = Metadata("x", tuple(table[i] for i in order), "coco_panoptic_seg")
        facts = detectron2_facts(metadata)
        assert facts["thing_classes"] == expected
        assert facts["stuff_classes"] == [table[i].name for i in order]
        assert set(facts["thing_dataset_id_to_contiguous_id"]) == {9, 4}


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


def test_cityscapes_is_not_read_by_their_reader(tmp_path, monkeypatch):
    """Theirs imports a package that is not public; the trainer's loader must not go through it."""
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


@pytest.fixture
def folders(tmp_path):
    """Four images of 40 x 60 with label maps of three classes."""
    generator = np.random.default_rng(0)
    for folder, shape, most in (("images", (40, 60, 3), 256), ("labels", (40, 60), 3)):
        (tmp_path / folder).mkdir()
        for k in range(4):
            pixels = generator.integers(0, most, shape, np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{k}.png")
    return tmp_path / "images", tmp_path / "labels"


def loaders_cfg(name):
    cfg = get_cfg()
    lqn.add_lqn_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SIZE_TRAIN = 0, 2, (40,)
    return cfg


@pytest.mark.parametrize("register_first", [True, False])
def test_label_folders_go_through_the_stock_loaders(folders, register_first):
    """Whether they are registered before or after `lqn.register()`."""
    name = f"my_folders_{register_first}"
    if register_first:  # a data set that comes later follows by itself
        lqn.register()
    register_label_folders(name, *folders, ["sky", "road", "tree"])
    lqn.register()
    cfg = loaders_cfg(name)
    batch = next(iter(build_detection_train_loader(cfg)))
    assert [set(inputs["sem_seg"].unique().tolist()) for inputs in batch] == [{0, 1, 2}] * 2
    assert all("instances" not in inputs for inputs in batch)
    assert len(list(build_detection_test_loader(cfg, name))) == 4
    assert MetadataCatalog.get(name).stuff_classes == ["sky", "road", "tree"]


def test_metadata_come_with_the_data_root_whenever_it_is_known(folders, tmp_path):
    later = tmp_path / "later"
    register_label_folders("comes_later", later / "images", later / "labels", ["a", "b", "c"])
    lqn.register()
    entry = MetadataCatalog.get("comes_later")
    assert entry.get("stuff_classes") is None
    with pytest.raises(AttributeError, match=r"later/images of comes_later does not exist"):
        _ = entry.stuff_classes
    folders[0].parent.joinpath("later").mkdir()
    for folder in folders:
        folder.rename(later / folder.name)
    assert entry.stuff_classes == ["a", "b", "c"]  # of the same entry
    assert MetadataCatalog.get("comes_later").as_dict()["evaluator_type"] == "sem_seg"


def test_a_data_set_of_another_root_is_read_anew(tmp_path, monkeypatch):
    lqn.register()
    for root, count in (("one", 1), ("two", 2)):
        for part in ("images", "labels"):
            folder = tmp_path / root / "camvid" / part / "val"
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("L", (8, 4)).save(folder / f"{k}.png")
        monkeypatch.delenv("LQN_SEG_REAL_DATA", raising=False)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / root))
        assert len(DatasetCatalog.get("camvid_sem_seg_val")) == count
        actual = MetadataCatalog.get("camvid_sem_seg_val").image_root
        assert actual == str(tmp_path / root / "camvid" / "images" / "val")


def test_what_another_package_registers_later_is_its_own():
    """Mask2Former registers ADE20K's names when it is imported, before or after us."""
    lqn.register()
    name = "ade20k_panoptic_train"
    if "mask2former" not in sys.modules:
        assert isinstance(MetadataCatalog.get(name), LazyMetadata)
    DatasetCatalog.register(name, lambda: [{"file_name": "theirs"}])
    MetadataCatalog.get(name).set(stuff_classes=["wall"], thing_dataset_id_to_contiguous_id={})
    lqn.register()
    assert DatasetCatalog.get(name) == [{"file_name": "theirs"}]
    assert class_table((name,)) == (frozenset(), ["wall"])
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(name, list)


def test_data_sets_of_a_yaml_are_known_once_it_is_merged(folders, tmp_path):
    cfg = get_cfg()
    lqn.register()
    lqn.add_lqn_config(cfg)
    images, labels = folders
    path = tmp_path / "own.yaml"
    path.write_text(
        f"MODEL:\n  LQN:\n    DATASETS:\n    - NAME: of_a_yaml\n      IMAGE_DIR: {images}\n"
        f"      LABEL_DIR: {labels}\n      CLASSES: [a, b, c]\nDATASETS: {{TRAIN: [of_a_yaml]}}\n"
    )
    assert "of_a_yaml" not in DatasetCatalog
    cfg.merge_from_file(str(path))
    assert len(DatasetCatalog.get("of_a_yaml")) == 4
    path.write_text(path.read_text().replace("CLASSES: [a, b, c]", "KLASSES: [a]"))
    with pytest.raises(InputError, match=r"MODEL\.LQN\.DATASETS\[0\] has no key CLASSES"):
        cfg.merge_from_file(str(path))

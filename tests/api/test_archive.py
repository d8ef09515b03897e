"""What `save` writes, read back by pycocotools, by Pillow and by this project's readers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lqn_seg.api.archive import Archive
from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.errors import InputError


@pytest.fixture(scope="module")
def results(demo, scenes):
    return demo(scenes)


@pytest.fixture
def folder(results, scenes, tmp_path):
    for result in results:
        written = result.save(tmp_path / "out")
        assert all(path.is_file() for path in written)
    return tmp_path / "out"


def test_maps_are_read_back(results, folder, scenes):
    dataset = load_coco_panoptic("saved", scenes[0].parent, folder, folder / "panoptic.json")
    records = dataset.records()  # sizes, areas and ids are checked on the way
    assert [c.name for c in dataset.metadata.categories] == list(results[0].classes)
    assert len(records) == len(results)
    for record, result in zip(records, results):
        assert np.array_equal(dataset.metadata.read_panoptic(record), result.panoptic.ids)
        kinds = [s["category_id"] for s in record["segments_info"]]
        assert kinds == [s["category_id"] for s in result.panoptic.segments]
        labels = np.asarray(Image.open(folder / f"{result.file[:-4]}_labels.png"))
        assert labels.dtype == np.uint8 and np.array_equal(labels, result.semantic)


def test_instances_are_cocos(results, folder):
    coco = COCO(folder / "instances.json")
    for result in results:
        lines = coco.loadAnns(coco.getAnnIds(imgIds=[result.file[:-4]]))
        masks = np.stack([coco.annToMask(line) for line in lines])
        assert np.array_equal(masks.astype(bool), result.instances.pred_masks.numpy())
        assert [line["category_id"] for line in lines] == result.instances.pred_classes.tolist()
        assert [line["score"] for line in lines] == result.instances.scores.tolist()


def test_results_json_has_a_record_of_each_image(results, folder):
    content = json.loads((folder / "results.json").read_text())
    assert content["method"] == "lqn" and content["methods"] == ["teacher", "restore", "lqn"]
    assert "not calibrated" in content["confidence"]
    for record, result in zip(content["images"], results, strict=True):
        assert record["file"] == result.file and all(
            (folder / f).is_file() for f in record["files"]
        )
        assert list(record["methods"]) == content["methods"]
        assert abs(sum(record["methods"]["lqn"]["share_of_pixels"].values()) - 1) < 0.01


def test_an_image_is_replaced_and_names_never_clash(results, folder):
    results[0].save(folder)
    other = replace(results[1], file=f"below/{results[0].file}")
    twin = replace(results[2], file=results[0].file.replace(".png", ".jpg"))
    assert {*other.save(folder)}.isdisjoint(results[0].save(folder))
    assert {*twin.save(folder)}.isdisjoint(results[0].save(folder))
    records = json.loads((folder / "results.json").read_text())["images"]
    assert len(records) == 5 and len({record["name"] for record in records}) == 5
    assert len(json.loads((folder / "panoptic.json").read_text())["annotations"]) == 5


def test_results_of_another_run_do_not_mix(results, folder):
    other = replace(results[0], about=replace(results[0].about, method="teacher"))
    with pytest.raises(InputError, match=r"of another run \(it differs in: method\)"):
        Archive(folder, other.about, resume=True)
    other.save(folder)
    content = json.loads((folder / "results.json").read_text())
    assert content["method"] == "teacher" and len(content["images"]) == 1
    (folder / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results.json cannot be read"):
        other.save(folder)


def test_a_folder_that_cannot_be_written_is_named(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        results[0].save(tmp_path / "file")

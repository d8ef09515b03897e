"""The script that writes COCO's semantic maps, against the rule of Mask2Former's by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lqn_seg.data.images import read_label_map, write_id_map

IDS = np.array([[0, 1, 1, 2], [300, 300, 1, 2]])


def test_void_is_255_and_crowds_have_their_category(tmp_path: Path, script) -> None:
    panoptic = tmp_path / "coco" / "panoptic_val2017"
    panoptic.mkdir(parents=True)
    write_id_map(panoptic / "000000000007.png", IDS)
    segments = [
        {"id": 1, "category_id": 90},
        {"id": 2, "category_id": 3, "iscrowd": 1},
        {"id": 300, "category_id": 200},
    ]
    name = "000000000007"
    content = {
        "images": [{"id": 7, "file_name": f"{name}.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": 7, "file_name": f"{name}.png", "segments_info": segments}],
        "categories": [
            {"id": 3, "name": "car", "isthing": 1},
            {"id": 90, "name": "cat", "isthing": 1},
            {"id": 200, "name": "rug", "isthing": 0},
        ],
    }
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    assert script("datasets", "prepare_coco_semantic").write_semantic(tmp_path, "val") == 1
    written = read_label_map(tmp_path / "coco" / "panoptic_semseg_val2017" / f"{name}.png")
    assert written.tolist() == [[255, 1, 1, 0], [2, 2, 1, 0]]


def test_missing_annotations_are_one_sentence(tmp_path: Path, script, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--root", str(tmp_path), "--split", "val"])
    assert script("datasets", "prepare_coco_semantic").main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "panoptic_val2017.json" in error and "Traceback" not in error

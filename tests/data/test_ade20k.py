"""ADE20K: the table, and raw and converted labels meaning the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.segmentation_sets import ADE20K_CLASSES
from lqn_seg.errors import InputError

RAW = np.array([[0, 1, 150], [2, 13, 0]], dtype=np.uint8)
CONVERTED = np.array([[255, 0, 149], [1, 12, 255]], dtype=np.uint8)


def tree(root: Path, folder: str, labels: np.ndarray) -> None:
    base = root / "ADEChallengeData2016"
    for path in (base / "images" / "validation", base / folder / "validation"):
        path.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.zeros((*labels.shape, 3), np.uint8))
    picture.save(base / "images" / "validation" / "ADE_val_00000001.jpg")
    Image.fromarray(labels).save(base / folder / "validation" / "ADE_val_00000001.png")


def test_table() -> None:
    assert len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    # Places known from objectInfo150.txt (raw label - 1).
    for index, name in {0: "wall", 12: "person", 20: "car", 76: "boat", 149: "flag"}.items():
        assert ADE20K_CLASSES[index] == name


def test_raw_and_converted_labels_agree(tmp_path: Path) -> None:
    tree(tmp_path, "annotations", RAW)
    for converted in (False, True):
        if converted:
            tree(tmp_path, "annotations_detectron2", CONVERTED)
        dataset = get_dataset("ade20k_sem_seg_val", root=tmp_path)
        (record,) = dataset.records()
        assert ("detectron2" in record["sem_seg_file_name"]) == converted
        assert (record["image_id"], record["height"], record["width"]) == ("ADE_val_00000001", 2, 3)
        np.testing.assert_array_equal(dataset.metadata.read_semantic(record), CONVERTED)
    assert dataset.metadata.evaluator_type == "sem_seg"
    assert dataset.metadata.thing_ids == frozenset()


def test_label_outside_the_table(tmp_path: Path) -> None:
    tree(tmp_path, "annotations_detectron2", np.where(CONVERTED == 149, 150, CONVERTED))
    dataset = get_dataset("ade20k_sem_seg_val", root=tmp_path)
    with pytest.raises(InputError, match=r"ADE_val_00000001\.png holds label 150.*150 classes"):
        dataset.metadata.read_semantic(dataset.records()[0])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ADEChallengeData2016/images/validation.*sceneparsing"):
        get_dataset("ade20k_sem_seg_val", root=tmp_path)
    images = tmp_path / "ADEChallengeData2016" / "images" / "validation"
    images.mkdir(parents=True)
    with pytest.raises(InputError, match=r"annotations/validation .*does not exist"):
        get_dataset("ade20k_sem_seg_val", root=tmp_path)
    (tmp_path / "ADEChallengeData2016" / "annotations" / "validation").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no \.jpg"):
        get_dataset("ade20k_sem_seg_val", root=tmp_path).records()
    Image.new("RGB", (2, 2)).save(images / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg .*no label map"):
        get_dataset("ade20k_sem_seg_val", root=tmp_path).records()


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
def test_real_images() -> None:
    dataset = get_dataset("ade20k_sem_seg_val", root=os.environ["LQN_SEG_REAL_DATA"])
    assert len(dataset.records()) == 3
    for record in dataset.records():
        labels = dataset.metadata.read_semantic(record)
        assert labels[labels != 255].max() < 150
    info = Path(dataset.metadata.image_root or "").parents[1] / "objectInfo150.txt"
    lines = info.read_text().splitlines()[1:]
    assert len(lines) == 150
    matches = sum(c in line.split("\t")[-1] for c, line in zip(ADE20K_CLASSES, lines))
    assert matches > 130  # the file spells a few names otherwise

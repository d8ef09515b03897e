"""Image and label folders: what is read, how it is registered, and which file is named if bad."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data import catalog
from lqn_seg.data.catalog import get_dataset, register_label_folders
from lqn_seg.data.segmentation_sets import CAMVID_CLASSES, CAMVID_IGNORE
from lqn_seg.errors import InputError

LABELS = np.array([[0, 1, 9], [2, 9, 0]], dtype=np.uint8)
CLASSES = ("road", "car", "sky")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two drives of one and two frames; nothing stays registered."""
    monkeypatch.setattr(catalog, "_registered", {})
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (images, labels):
        folder.mkdir()
    for frame in ("b_2.jpg", "a_1.jpg", "b_1.jpeg"):
        Image.new("RGB", (3, 2)).save(images / frame)
        Image.fromarray(LABELS).save(labels / f"{Path(frame).stem}.png")
    return images, labels


def test_folders_are_read_in_the_order_of_names(folders: tuple[Path, Path]) -> None:
    register_label_folders("mine", *folders, CLASSES, ignore_label=9)
    dataset = get_dataset("mine")
    records = dataset.records()
    assert [record["image_id"] for record in records] == ["a_1", "b_1", "b_2"]
    assert records[1]["file_name"].endswith("b_1.jpeg")
    assert (records[0]["height"], records[0]["width"]) == (2, 3)
    np.testing.assert_array_equal(dataset.metadata.read_semantic(records[0]), LABELS)
    assert dataset.metadata.class_names == CLASSES and dataset.metadata.ignore_label == 9
    assert dataset.metadata.evaluator_type == "sem_seg" and not dataset.metadata.thing_ids


def test_prefixes_choose_images(folders: tuple[Path, Path]) -> None:
    register_label_folders("drive_b", *folders, CLASSES, 9, prefixes=("b_",))
    assert [r["image_id"] for r in get_dataset("drive_b").records()] == ["b_1", "b_2"]
    register_label_folders("drive_c", *folders, CLASSES, 9, prefixes=("c_",))
    with pytest.raises(InputError, match=r"images of drive_c holds no .*starts with c_"):
        get_dataset("drive_c").records()


def test_a_name_means_one_data_set(folders: tuple[Path, Path]) -> None:
    register_label_folders("mine", *folders, CLASSES, 9)
    register_label_folders("mine", *map(str, folders), list(CLASSES), 9)
    with pytest.raises(InputError, match="'mine' is already taken"):
        register_label_folders("mine", *folders, CLASSES, 255)
    with pytest.raises(InputError, match="'mine' is already taken"):
        catalog.register_coco_panoptic("mine", *folders, "panoptic.json")
    with pytest.raises(InputError, match="'camvid_sem_seg_val' is already taken"):
        register_label_folders("camvid_sem_seg_val", *folders, CLASSES, 9)
    assert "mine" in catalog.dataset_names()


@pytest.mark.parametrize(
    "classes, ignore_label, sentence",
    [
        ((), 255, "at least one class name"),
        ("road", 255, "at least one class name"),
        (("road", " "), 255, "the class name ' ' is blank"),
        (("road", "car", "road"), 255, "'road' occurs twice"),
        (CLASSES, 2, r"ignore_label 2 .* labels 0 \.\. 2"),
        (CLASSES, -1, "ignore_label -1"),
    ],
)
def test_a_bad_table_is_refused_at_once(classes, ignore_label, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        register_label_folders("mine", "images", "labels", classes, ignore_label)


def problems(name: str = "mine") -> tuple[str, ...]:
    """Those of a data set of which something is left; strict, the first of them is raised."""
    dataset = get_dataset(name).listed()
    with pytest.raises(InputError) as error:
        get_dataset(name).records()
    assert str(error.value) == dataset.problems[0] and dataset.records(strict=False)
    return dataset.problems


def test_the_file_at_fault_is_named_and_left_out(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    register_label_folders("mine", *folders, CLASSES, 9)
    assert get_dataset("mine").listed().problems == ()
    Image.fromarray(np.where(LABELS == 2, 3, LABELS)).save(labels / "a_1.png")
    dataset = get_dataset("mine")
    with pytest.raises(InputError, match=r"a_1\.png holds label 3, outside the 3 classes of mine"):
        dataset.metadata.read_semantic(dataset.records()[0])
    Image.fromarray(LABELS.T.copy()).save(labels / "b_1.png")
    (sentence,) = problems()
    assert "b_1.png is 3 x 2 (height x width), but its image b_1.jpeg is 2 x 3" in sentence
    left = get_dataset("mine").listed().records(strict=False)
    assert [record["image_id"] for record in left] == ["a_1", "b_2"]
    (labels / "b_1.png").unlink()
    assert "b_1.jpeg of mine has no label map" in problems()[0]
    Image.fromarray(LABELS).save(labels / "b_1.png")
    Image.new("RGB", (3, 2)).save(images / "b_2.png")
    assert "holds two images named b_2 (b_2.jpg, b_2.png)" in problems()[0]
    (images / "a_1.jpg").write_text("no picture")
    assert "a_1.jpg is not an image" in problems()[0] and len(problems()) == 2
    register_label_folders("gone", images / "none", labels, CLASSES)
    with pytest.raises(InputError, match=r"folder .*none of gone does not exist"):
        get_dataset("gone")


def test_one_bad_file_among_many(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    register_label_folders("mine", *folders, CLASSES, 9)
    for name in ("c.TIF", "d.webp", "e.tiff", "empty.jpg", "folder.jpg", "link.jpg", "alone.bmp"):
        Image.fromarray(LABELS).save(labels / f"{Path(name).stem}.png")
        Image.new("RGB", (3, 2)).save(images / name)
    for name in ("empty.jpg", "folder.jpg", "link.jpg"):
        (images / name).unlink()
    (images / "empty.jpg").touch()
    (images / "folder.jpg").mkdir()
    (images / "link.jpg").symlink_to(images / "nowhere.jpg")
    (images / "._d.webp").write_bytes(b"\x00\x05\x16\x07")
    (labels / "alone.png").unlink()
    Image.fromarray(LABELS).save(labels / "more.png")
    (labels / "._more.png").touch()
    expected = (
        "alone.bmp of mine has no label map",
        "empty.jpg is empty (0 bytes)",
        "folder.jpg is a folder",
        "link.jpg does not exist",
        "holds hidden files, which are no images: ._d.webp",
        f"no image of mine for the label map {labels / 'more.png'}",
    )
    result = problems()
    assert len(result) == len(expected)
    for sentence, words in zip(result, expected):
        assert words in sentence
    left = [record["image_id"] for record in get_dataset("mine").records(strict=False)]
    assert left == ["a_1", "b_1", "b_2", "c", "d", "e"]
    # Of another prefix nothing is said.
    register_label_folders("drive_a", *folders, CLASSES, 9, prefixes=("a_",))
    assert get_dataset("drive_a").listed().problems == ()


def test_images_in_folders_of_the_folder_are_said(folders: tuple[Path, Path]) -> None:
    register_label_folders("mine", *folders, CLASSES, 9)
    assert get_dataset("mine").listed().notes == ()
    (folders[0] / "more").mkdir()
    Image.new("RGB", (3, 2)).save(folders[0] / "more" / "x.jpg")
    (note,) = get_dataset("mine").listed().notes
    assert "the images in its folders more are not read" in note


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_fit_the_upright_picture(folders: tuple[Path, Path], orientation: int) -> None:
    images, labels = folders
    register_label_folders("mine", *folders, CLASSES, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (3, 2)).save(images / "a_1.jpg", exif=exif)
    upright = LABELS if orientation < 5 else LABELS.T.copy()
    Image.fromarray(upright).save(labels / "a_1.png")
    record = get_dataset("mine").records()[0]
    assert (record["height"], record["width"]) == upright.shape
    np.testing.assert_array_equal(get_dataset("mine").metadata.read_semantic(record), upright)
    Image.fromarray(upright.T.copy()).save(labels / "a_1.png")
    (sentence,) = problems()
    assert "a_1.png is" in sentence
    stored = "those of the pixels as stored and must be turned too" in sentence
    assert stored == (orientation > 4)


def test_more_than_255_classes_need_another_ignore_label(folders: tuple[Path, Path]) -> None:
    many = [f"class {k}" for k in range(300)]
    with pytest.raises(InputError, match=r"ignore_label 255 must lie outside .* 0 \.\. 299"):
        register_label_folders("many", *folders, many)
    register_label_folders("many", *folders, many, 65535)
    labels = np.array([[0, 255, 256], [299, 65535, 9]], np.uint16)
    Image.fromarray(labels).save(folders[1] / "a_1.png")
    dataset = get_dataset("many")
    read = dataset.metadata.read_semantic(dataset.records()[0])
    np.testing.assert_array_equal(read, labels)


def test_camvid_is_looked_for_among_the_real_data_first(tmp_path, monkeypatch) -> None:
    real, usual = tmp_path / "real", tmp_path / "usual"
    monkeypatch.setenv("LQN_SEG_REAL_DATA", str(real))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(usual))
    with pytest.raises(InputError, match=f"camvid/images, which is not in {real}, {usual}.*SegNet"):
        get_dataset("camvid_sem_seg_val")
    for root, count in ((usual, 1), (real, 2)):
        for kind, suffix, mode in (("images", "jpg", "RGB"), ("labels", "png", "L")):
            folder = root / "camvid" / kind / "train"
            folder.mkdir(parents=True)
            for k in range(count):
                for drive in ("0006R0", "0001TP"):
                    Image.new(mode, (3, 2)).save(folder / f"{drive}_f{k:05}.{suffix}")
        assert len(get_dataset("camvid_sem_seg_train").records()) == count
    (record, _) = get_dataset("camvid_sem_seg_report").records()
    assert record["file_name"].startswith(str(real)) and record["image_id"] == "0001TP_f00000"
    assert len(get_dataset("camvid_sem_seg_train", root=usual).records()) == 1


@pytest.mark.skipif("LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set")
def test_real_camvid_is_split_by_drive() -> None:
    datasets = {s: get_dataset(f"camvid_sem_seg_{s}") for s in ("train", "val", "report")}
    ids = {s: [r["image_id"] for r in dataset.records()] for s, dataset in datasets.items()}
    drives = {split: {name.split("_")[0] for name in names} for split, names in ids.items()}
    assert {s: len(names) for s, names in ids.items()} == {"train": 305, "val": 101, "report": 62}
    assert drives == {"train": {"0006R0", "0016E5"}, "val": {"0016E5"}, "report": {"0001TP"}}
    assert not set(ids["train"]) & set(ids["val"])
    labels = datasets["val"].metadata.read_semantic(datasets["val"].records()[0])
    top, bottom = labels[: labels.shape[0] // 4], labels[-labels.shape[0] // 4 :]
    for part, name in ((top, "building"), (bottom, "road")):
        counts = np.bincount(part.ravel(), minlength=12)
        counts[CAMVID_IGNORE] = 0
        assert counts.argmax() == CAMVID_CLASSES.index(name)

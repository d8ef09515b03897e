"""Batches for teacher training: what is in them, and that they follow from their seed alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lqn_seg.data import catalog
from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.data.catalog import get_dataset, register_label_folders
from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.data.images import read_id_map, read_image, write_id_map
from lqn_seg.engine.training import training_images
from lqn_seg.engine.training.eomt_training import pixel_labels
from lqn_seg.engine.training.training_images import TrainingImages
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD

IGNORE = 7
STILL = AugmentationConfig(flip=0)
CROP = AugmentationConfig(
    crop=True, scale=(0.7, 2), brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1
)


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A semantic data set of three images of two sizes, a class per channel value.

    Class 0 is red, 2 is blue, and the ignored rest is green; class 1 is nowhere.
    """
    monkeypatch.setattr(catalog, "_registered", {})
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, size in (("a", (48, 80)), ("b", (80, 48)), ("c", (48, 80))):
        labels = rng.choice([0, 2, IGNORE], (size[0] // 16, size[1] // 16)).astype(np.uint8)
        labels.flat[:2] = 0, 2
        labels = labels.repeat(16, 0).repeat(16, 1)
        colors = np.zeros((8, 3), np.uint8)
        colors[[0, 2, IGNORE]] = (200, 0, 0), (0, 0, 200), (0, 200, 0)
        Image.fromarray(colors[labels]).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{name}.png")
    folders = tmp_path / "images", tmp_path / "labels"
    register_label_folders("photographs", *folders, ("red", "none", "blue"), IGNORE)
    return get_dataset("photographs")


def denormalised(pixels: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels * std + mean) * 255).permute(1, 2, 0).numpy()


def same(a: dict, b: dict) -> bool:
    return a["pixel_values"].equal(b["pixel_values"]) and all(
        x.equal(y) for key in ("mask_labels", "class_labels") for x, y in zip(a[key], b[key])
    )


@pytest.mark.parametrize("flip", [0, 1])
def test_a_panoptic_batch_is_the_files_themselves(scenes_root, monkeypatch, flip):
    """Without a crop (the demo's training) images are mirrored and nothing else is drawn."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes_root))
    data = get_dataset("demo_panoptic_train")
    images = TrainingImages(data, (96, 96), AugmentationConfig(flip=flip))
    batch = images.batch([2, 0], (0, 2, 5))
    assert same(batch, images.batch([2, 0]))
    for place, index in enumerate((2, 0)):
        record, step = images.records[index], -1 if flip else 1
        pixels = read_image(record["file_name"])[:, ::step].astype(np.float32) / 255
        pixels = (pixels - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
        assert np.array_equal(batch["pixel_values"][place], pixels.transpose(2, 0, 1))
        ids = read_id_map(record["pan_seg_file_name"])[:, ::step]
        segments = record["segments_info"]
        masks = np.stack([ids == segment["id"] for segment in segments])
        assert np.array_equal(batch["mask_labels"][place], masks.astype(np.float32))
        categories = [segment["category_id"] for segment in segments]
        assert batch["class_labels"][place].tolist() == categories


def test_a_semantic_image_has_a_mask_per_class_and_none_for_the_ignored(photographs):
    images = TrainingImages(photographs, (48, 80), STILL)
    (masks,), (classes,) = (images.batch([0])[k] for k in ("mask_labels", "class_labels"))
    labels = photographs.metadata.read_semantic(images.records[0])
    assert classes.tolist() == [0, 2]
    assert np.array_equal(masks, np.stack([labels == 0, labels == 2]))
    assert (labels == IGNORE).any()


def test_crops_keep_masks_on_their_pixels(photographs):
    images = TrainingImages(photographs, (32, 32), AugmentationConfig(crop=True, scale=(0.7, 2)))
    for seed in range(10):
        batch = images.batch([0, 1, 2], (seed,))
        assert batch["pixel_values"].shape == (3, 3, 32, 32)
        labels = pixel_labels(batch["mask_labels"], batch["class_labels"]).numpy()
        for pixels, truth, masks in zip(batch["pixel_values"], labels, batch["mask_labels"]):
            assert masks.flatten(1).any(1).all()  # what the crop left out has no mask
            # Tiles are blended only where they meet: 200 is unmixed, black is outside.
            color = np.rint(denormalised(pixels))
            for channel, label in ((0, 0), (2, 2), (1, -1)):
                pure = color[..., channel] > 190
                assert (truth[pure] == label).all()
            assert (truth[color.sum(2) == 0] == -1).all()


def test_crop_and_colours_follow_from_the_seed_alone(photographs):
    first = TrainingImages(photographs, (32, 32), CROP).batch([0, 1], (0, 2, 7))
    images = TrainingImages(photographs, (32, 32), CROP)
    images.batch([2, 1], (0, 2, 6))
    assert same(first, images.batch([0, 1], (0, 2, 7)))
    assert not same(first, images.batch([0, 1], (0, 2, 8)))
    twice = images.batch([0, 0], (0, 2, 7))["pixel_values"]
    assert not twice[0].equal(twice[1])


def test_without_a_crop_another_size_is_named(photographs):
    with pytest.raises(
        InputError, match=r"b\.png is 80x48 pixels; .* 48x80 \(MODEL.*AUGMENTATION crop"
    ):
        TrainingImages(photographs, (48, 80)).batch([1])


def test_pixel_labels_are_the_classes_of_the_masks():
    masks = torch.tensor([[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 1]]]).float()
    empty = torch.zeros(0, 2, 3), torch.zeros(0).long()
    with torch.autocast("cpu", torch.bfloat16):
        labels = pixel_labels([masks, empty[0]], [torch.tensor([300, 0]), empty[1]])
    assert labels.tolist() == [[[300, 0, -1], [-1, -1, 0]], [[-1] * 3] * 2]


def panoptic(folder, segments, size=(48, 64)):
    """A data set of an image of stripes of 8 x 1 pixels, one a segment, as many as are asked for.

    Args:
        segments: whether each is a crowd.
    """
    ids = np.zeros(size, np.int64)
    for k in range(len(segments)):
        row, column = divmod(k, size[1])
        ids[8 * row : 8 * row + 8, column] = k + 1
    infos = [
        {"id": k + 1, "category_id": 1 + k % 2, "iscrowd": int(crowd), "area": 8, "bbox": []}
        for k, crowd in enumerate(segments)
    ]
    for info in infos:
        info["bbox"] = [0, 0, 1, 8]
    for name in ("images", "panoptic"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("RGB", size[::-1], (9, 9, 9)).save(folder / "images" / "0.png")
    write_id_map(folder / "panoptic" / "0.png", ids)
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": size[0], "width": size[1]}],
        "annotations": [{"image_id": 0, "file_name": "0.png", "segments_info": infos}],
        "categories": [
            {"id": 1, "name": "thing", "isthing": 1},
            {"id": 2, "name": "stuff", "isthing": 0},
        ],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    return load_coco_panoptic(
        "mine", folder / "images", folder / "panoptic", folder / "panoptic.json"
    )


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 300])
@pytest.mark.parametrize("crop", [False, True])
def test_every_segment_is_a_target(tmp_path, count, crop):
    dataset = panoptic(tmp_path, [False] * count)
    size = (48, 48) if crop else (48, 64)
    batch = TrainingImages(dataset, size, AugmentationConfig(crop=crop, flip=0)).batch([0])
    (masks,), (classes,) = batch["mask_labels"], batch["class_labels"]
    if crop:
        assert len(masks) == len(classes) <= count and masks.sum(0).max() <= 1
        return
    assert masks.shape == (count, 48, 64) and classes.tolist() == [k % 2 for k in range(count)]
    assert (masks.sum((1, 2)) == 8).all()
    for k in (0, count - 1) if count else ():
        row, column = divmod(k, 64)
        assert masks[k, 8 * row : 8 * row + 8, column].all()


def test_crowds_are_no_targets(tmp_path):
    dataset = panoptic(tmp_path, [False, True, False, True, True])
    batch = TrainingImages(dataset, (48, 64)).batch([0])
    assert batch["class_labels"][0].tolist() == [0, 0]
    assert batch["mask_labels"][0].shape == (2, 48, 64)
    assert batch["mask_labels"][0].sum() == 16


def test_what_is_odd_about_the_images_is_said(photographs, capsys):
    records = photographs.records()
    turned = Image.Exif()
    turned[0x0112] = 3
    for record in records[:2]:
        Image.open(record["file_name"]).save(record["file_name"], exif=turned)
    odd = replace(photographs, notes=("two of them are alike",))
    images = TrainingImages(odd, (48, 48), CROP)
    assert "note: two of them are alike" in capsys.readouterr().err
    images.batch([0, 1], (0,))
    assert capsys.readouterr().err.count("has the EXIF orientation 3") == 1


def test_an_image_that_cannot_be_used_is_named_and_the_next_takes_its_place(photographs, capsys):
    files = [record["file_name"] for record in photographs.records()]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(files[0]).save(files[0], exif=turned)  # its labels are those of the stored pixels
    Image.new("L", (48, 80), 5).save(photographs.records(strict=False)[0]["sem_seg_file_name"])
    images = TrainingImages(photographs, (48, 48), CROP)
    assert [record["image_id"] for record in images.records] == ["b", "c"]
    assert "left out: label map" in capsys.readouterr().err
    batch = images.batch([0, 1], (0,))
    assert "b: label map" in capsys.readouterr().err and list(images.left_out) == [0]
    assert "holds label 5" in images.left_out[0]
    again = images.batch([1, 0], (0,))  # the same image, in either place
    assert same(batch, again)
    Image.new("L", (80, 48), 5).save(images.records[1]["sem_seg_file_name"])
    with pytest.raises(InputError, match=r"no image can be trained on: .*holds label 5"):
        TrainingImages(photographs, (48, 48), CROP).batch([0])


def test_too_many_images_left_out_stop_the_training(photographs, monkeypatch):
    monkeypatch.setattr(training_images, "FEW", 1)
    for record in photographs.records()[:2]:
        Image.new("L", (record["width"], record["height"]), 5).save(record["sem_seg_file_name"])
    with pytest.raises(InputError, match="2 of 3 images of photographs cannot be trained on"):
        TrainingImages(photographs, (48, 48), CROP).batch([0])

"""Batches for teacher training: what is in them, and that they follow from their seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lqn_seg.data import catalog
from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.data.catalog import get_dataset, register_label_folders
from lqn_seg.data.images import read_id_map, read_image
from lqn_seg.engine.training_images import TrainingImages, pixel_labels
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD

IGNORE = 7
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


def test_a_panoptic_batch_is_the_files_themselves(scenes_root, monkeypatch):
    """Without a crop (the demo's training) nothing is drawn, and a seed changes nothing."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes_root))
    images = TrainingImages(get_dataset("demo_panoptic_train"), (96, 96))
    batch = images.batch([2, 0], [False, True], (0, 2, 5))
    assert same(batch, images.batch([2, 0], [False, True]))
    for place, (index, step) in enumerate(((2, 1), (0, -1))):
        record = images.records[index]
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
    images = TrainingImages(photographs, (48, 80))
    (masks,), (classes,) = (images.batch([0], [False])[k] for k in ("mask_labels", "class_labels"))
    labels = photographs.metadata.read_semantic(images.records[0])
    assert classes.tolist() == [0, 2]
    assert np.array_equal(masks, np.stack([labels == 0, labels == 2]))
    assert (labels == IGNORE).any()


@pytest.mark.parametrize("flip", [False, True])
def test_crops_keep_masks_on_their_pixels(photographs, flip):
    images = TrainingImages(photographs, (32, 32), AugmentationConfig(crop=True, scale=(0.7, 2)))
    for seed in range(10):
        batch = images.batch([0, 1, 2], [flip] * 3, (seed,))
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
    first = TrainingImages(photographs, (32, 32), CROP).batch([0, 1], [True, False], (0, 2, 7))
    images = TrainingImages(photographs, (32, 32), CROP)
    images.batch([2, 1], [True, True], (0, 2, 6))
    assert same(first, images.batch([0, 1], [True, False], (0, 2, 7)))
    assert not same(first, images.batch([0, 1], [True, False], (0, 2, 8)))
    twice = images.batch([0, 0], [False, False], (0, 2, 7))["pixel_values"]
    assert not twice[0].equal(twice[1])


def test_without_a_crop_another_size_is_named(photographs):
    with pytest.raises(InputError, match=r"b\.png is 80x48 pixels; .* 48x80 \(MODEL.*CROP True"):
        TrainingImages(photographs, (48, 80)).batch([1], [False])


def test_pixel_labels_are_the_classes_of_the_masks():
    masks = torch.tensor([[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 1]]]).float()
    empty = torch.zeros(0, 2, 3), torch.zeros(0).long()
    with torch.autocast("cpu", torch.bfloat16):
        labels = pixel_labels([masks, empty[0]], [torch.tensor([300, 0]), empty[1]])
    assert labels.tolist() == [[[300, 0, -1], [-1, -1, 0]], [[-1] * 3] * 2]

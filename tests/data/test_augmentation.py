"""Augmentation: image and labels stay together, and every draw follows from the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.engine.training.training_images import UNLABELLED, augment


def ramp(height: int, width: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a map that both hold their own row (axis 0) or column (axis 1), plus 5."""
    index_map = (np.mgrid[:height, :width][axis] + 5).astype(np.uint8)
    return np.repeat(index_map[..., None], 3, 2), index_map


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (40, 40), (13, 200)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.4, 0.9), (1.2, 2.5)])
def test_image_and_map_are_cropped_alike(size, scale):
    for seed in range(10):
        for axis in (0, 1):
            config = AugmentationConfig(crop=True, scale=scale)
            pixels, labels = augment(*ramp(*size, axis), config, 64, (seed,))
            assert pixels.shape == (3, 64, 64) and labels.shape == (64, 64)
            outside = labels == UNLABELLED
            assert not pixels[:, outside].any()
            # The nearest pixel's centre is half a pixel away at most, and the image is rounded;
            # at its border an image that shrinks lacks half of what it averages.
            assert (pixels[0].int() - labels)[~outside].abs().max() <= 1


def test_at_scale_one_the_short_side_is_the_crop():
    image, index_map = ramp(60, 100, 1)
    image[0], image[-1] = 1, 2
    offsets = set()
    for seed in range(30):
        pixels, labels = augment(
            image, index_map, AugmentationConfig(crop=True, flip=0), 60, (seed,)
        )
        assert pixels[:, 0].max() == 1 and pixels[:, -1].max() == 2  # the full height, untouched
        column = int(labels[0, 0]) - 5
        np.testing.assert_array_equal(labels, index_map[:, column : column + 60])
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), image[:, column : column + 60])
        offsets.add(column)
    assert len(offsets) > 15 and min(offsets) < 5 and max(offsets) > 35


def test_the_seed_alone_decides_and_no_other_draw_is_changed():
    image, index_map = ramp(60, 100, 1)
    config = AugmentationConfig(True, (0.5, 2), 0.5, 0.5, 0.5, 0.5, 0.1)
    torch.manual_seed(0)
    first = augment(image, index_map, config, 32, (3, 1))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    again, other = (augment(image, index_map, config, 32, (3, k)) for k in (1, 2))
    for one, same, different in zip(first, again, other):
        assert torch.equal(one, same) and not torch.equal(one, different)


def test_as_often_mirrored_as_asked_for():
    image, index_map = ramp(8, 8, 1)
    for flip in (0.0, 0.3, 1.0):
        config = AugmentationConfig(flip=flip)
        columns = [augment(image, index_map, config, 8, (k,))[1][0, 0].item() for k in range(200)]
        assert abs(columns.count(12) / 200 - flip) < 0.1 and set(columns) <= {5, 12}


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_pixels_and_never_labels(name):
    image, index_map = ramp(16, 16, 0)
    image[..., 1] //= 2
    config = AugmentationConfig(flip=0, **{name: 0.4})
    pixels, labels = augment(image, index_map, config, 16, (0,))
    assert not np.array_equal(pixels.permute(1, 2, 0), image)
    assert np.array_equal(labels, index_map)


def test_nothing_asked_for_is_nothing_done():
    image, index_map = ramp(6, 7, 0)
    pixels, labels = augment(image, index_map, AugmentationConfig(flip=0), 6, (0,))
    assert np.array_equal(pixels.permute(1, 2, 0), image) and np.array_equal(labels, index_map)

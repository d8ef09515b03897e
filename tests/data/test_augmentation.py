"""Augmentation: image and labels stay together, and every draw follows from the generator."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from lqn_seg.data.augmentation import (
    UNLABELLED,
    AugmentationConfig,
    jitter_colors,
    random_crop,
)
from lqn_seg.errors import InputError


def ramp(height: int, width: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a map that both hold their own row (axis 0) or column (axis 1), plus 5."""
    index_map = (np.mgrid[:height, :width][axis] + 5).astype(np.uint8)
    return np.repeat(index_map[..., None], 3, 2), index_map


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (40, 40), (13, 200)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.4, 0.9), (1.2, 2.5)])
def test_image_and_map_are_cropped_alike(size, scale):
    for seed in range(10):
        for axis in (0, 1):
            rng = np.random.default_rng(seed)
            pixels, labels = random_crop(*ramp(*size, axis), 64, scale, rng)
            assert pixels.shape == (64, 64, 3) and labels.shape == (64, 64)
            outside = labels == UNLABELLED
            assert not pixels[outside].any()
            # The nearest pixel's centre is half a pixel away at most, and the image is rounded;
            # at its border an image that shrinks lacks half of what it averages.
            assert np.abs(pixels[..., 0].astype(int) - labels)[~outside].max() <= 1


def test_at_scale_one_the_short_side_is_the_crop():
    image, index_map = ramp(60, 100, 1)
    image[0], image[-1] = 1, 2
    offsets = set()
    for seed in range(30):
        pixels, labels = random_crop(image, index_map, 60, (1, 1), np.random.default_rng(seed))
        assert pixels[0].max() == 1 and pixels[-1].max() == 2  # the full height, untouched
        column = int(labels[0, 0]) - 5
        np.testing.assert_array_equal(labels, index_map[:, column : column + 60])
        np.testing.assert_array_equal(pixels, image[:, column : column + 60])
        offsets.add(column)
    assert len(offsets) > 15 and min(offsets) < 5 and max(offsets) > 35


def test_the_same_generator_gives_the_same_crop_and_colours():
    image, index_map = ramp(60, 100, 1)
    config = AugmentationConfig(True, (0.5, 2), 0.5, 0.5, 0.5, 0.5, 0.1)

    def draw(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        pixels, labels = random_crop(image, index_map, 32, config.scale, rng)
        return [jitter_colors(pixels, config, rng), labels]

    for again, other, array in zip(draw(3), draw(4), draw(3)):
        assert np.array_equal(array, again) and not np.array_equal(array, other)


class Fixed:
    """A generator whose uniform draws are handed in."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def uniform(self, low: float, high: float) -> float:
        value = self.values.pop(0)
        assert low <= value <= high
        return value


@pytest.mark.parametrize(
    "draws, expected",
    [
        ((0.5, 1, 1, 0), [50, 25, 10]),
        ((1.5, 1, 1, 0), [150, 75, 30]),
        ((1, 0, 1, 0), [61.53] * 3),  # 0.299 R + 0.587 G + 0.114 B of every pixel
        ((1, 1, 0, 0), [61.53] * 3),
        ((1, 1, 1.5, 0), [119.2, 44.2, 0]),
    ],
)
def test_colours_in_closed_form(draws, expected):
    image = np.full((4, 5, 3), (100, 50, 20), np.uint8)
    config = AugmentationConfig(brightness=1, contrast=1, saturation=1, hue=0.5)
    got = jitter_colors(image, config, Fixed(*draws))
    assert np.abs(got - np.array(expected)).max() <= 0.51


def test_hue_turns_as_colorsys_has_it():
    image = np.full((2, 2, 3), (200, 80, 40), np.uint8)
    got = jitter_colors(image, AugmentationConfig(hue=0.5), Fixed(1, 1, 1, 0.25))
    h, s, v = colorsys.rgb_to_hsv(200 / 255, 80 / 255, 40 / 255)
    expected = np.array(colorsys.hsv_to_rgb((h + 0.25) % 1, s, v)) * 255
    assert np.abs(got - expected).max() < 4  # Pillow's hue is a byte


def test_nothing_asked_for_is_nothing_done():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    rng = np.random.default_rng(0)
    assert jitter_colors(image, AugmentationConfig(), rng) is image
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(
    "values, sentence",
    [
        (dict(crop=True, scale=(0, 1)), r"SCALE must be \(least, most\)"),
        (dict(crop=True, scale=(2, 1)), r"SCALE must be \(least, most\)"),
        (dict(crop=True, scale=(1, "2")), r"SCALE must be \(least, most\)"),
        (dict(crop=True, scale=(1,)), r"SCALE must be \(least, most\)"),
        (dict(scale=(0.5, 1)), r"SCALE \(0\.5, 1\) needs MODEL\.LQN\.TRAIN\.CROP True"),
        (dict(flip=1.5), "FLIP must be at least 0 and at most 1"),
        (dict(hue=0.6), r"HUE must be at least 0 and at most 0\.5"),
        (dict(contrast=-0.1), "CONTRAST must be at least 0, not"),
        (dict(brightness=float("nan")), "BRIGHTNESS must be at least 0, not nan"),
    ],
)
def test_values_out_of_range_are_named(values, sentence):
    with pytest.raises(InputError, match=sentence):
        AugmentationConfig(**values)

"""Pixel controls against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lqn_seg.adapt.controls import BLUR_SIGMA, change_pixels, pixel_statistics
from lqn_seg.adapt.methods import PIXEL_CONTROLS, PixelControl
from lqn_seg.core.alignment import Calibration


def crops(count: int = 3, height: int = 24, width: int = 32) -> torch.Tensor:
    """(B, 3, h, w) smooth images in 0..1, whole levels of 255."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 6, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * smooth).round() / 255


def calibration(mean: tuple[float, float], deviation: tuple[float, float]) -> Calibration:
    logs = [math.log(value) for value in deviation]
    return Calibration({}, 0.1, 0.4, torch.tensor([[mean[0], logs[0]], [mean[1], logs[1]]]))


def test_pixel_statistics_are_those_of_all_channels_together():
    images = crops()
    for image, (mean, log) in zip(images.double().numpy(), pixel_statistics(images).tolist()):
        assert mean == pytest.approx(image.mean(), abs=1e-6)
        assert log == pytest.approx(math.log(image.std(ddof=1)), abs=1e-5)
    assert pixel_statistics(torch.full((1, 3, 4, 4), 0.5)).isfinite().all()


def test_standardise_brings_contrast_and_brightness_to_the_ranges_end():
    images = crops()
    wide = calibration((0.0, 1.0), (1e-3, 1.0))
    torch.testing.assert_close(change_pixels("standardise", images, wide), images)
    assert change_pixels("standardise", images, None) is images
    pale = change_pixels("standardise", 0.2 * images + 0.7, calibration((0.4, 0.6), (0.1, 0.3)))
    for image in pale:
        assert image.mean().item() == pytest.approx(0.6, abs=1e-5)
        assert image.std().item() == pytest.approx(0.1, abs=1e-5)
    # shape and colour stay: the same up to one gain and one offset
    slope = 0.1 / images[0].std()
    expected = (images[0] - images[0].mean()) * slope + 0.6
    torch.testing.assert_close(pale[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [96, 192])
def test_blur_is_a_gaussian_that_grows_with_the_image(side):
    image = crops(1, side, side + 16)
    sigma = BLUR_SIGMA * side / 96
    reach = 12
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    expected = image[0].double().numpy()
    for axis in (1, 2):
        expected = np.apply_along_axis(np.convolve, axis, expected, weights, "same")
    found = change_pixels("blur", image, None)[0].numpy()
    inside = np.s_[:, reach:-reach, reach:-reach]
    assert np.abs(found - expected)[inside].max() < 1.5 / 255
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    left = change_pixels("blur", noise, None).std() / noise.std()
    # white noise keeps 1 / (2 sqrt(pi) sigma) of its deviation
    assert left.item() == pytest.approx(1 / (2 * math.sqrt(math.pi) * sigma), rel=0.15)


def test_denoise_takes_noise_and_leaves_the_edge():
    image = torch.full((1, 3, 48, 48), 0.25)
    image[..., 24:] = 0.75
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = (image + 0.04 * noise).clamp(0, 1)
    found = change_pixels("denoise", noisy, None)
    assert (found - image).std() < 0.5 * (noisy - image).std()
    assert (found[..., 26] - found[..., 21]).mean() > 0.45


@pytest.mark.parametrize("name", ["blur", "denoise", "standardise"])
def test_images_are_changed_alone_and_keep_shape_and_type(name):
    images = crops()
    clean = calibration((0.4, 0.45), (0.1, 0.12))
    together = change_pixels(name, images, clean)
    assert together.shape == images.shape and together.dtype == images.dtype
    for b in range(len(images)):
        alone = change_pixels(name, images[b : b + 1], clean)
        torch.testing.assert_close(alone[0], together[b])


def test_the_gauge_decides_on_blur_and_denoise_only():
    assert [n for n in PIXEL_CONTROLS if PixelControl(n).gauged] == ["blur", "denoise"]

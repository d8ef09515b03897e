"""Corruptions against closed forms, the published constants, cv2, and what seeding promises."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data import corruptions
from lqn_seg.data.corruptions import ALL_CORRUPTIONS, corrupt, disk_kernel, plasma_fractal
from lqn_seg.errors import InputError


def picture(height: int = 96, width: int = 128) -> np.ndarray:
    """Colours with detail at every scale, like a photograph's, away from black and white."""
    random = np.random.default_rng(0)
    channels = [plasma_fractal(512, 1.8, random)[:height, :width] for _ in range(3)]
    return (40 + 160 * np.stack(channels, -1)).astype(np.uint8)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_same_arguments_same_pixels_whatever_came_before(name: str) -> None:
    image = picture()
    original = image.copy()
    first = corrupt(image, name, 3, seed=1)
    np.random.seed(0)  # noqa: NPY002  (global state must not matter)
    for other in reversed(ALL_CORRUPTIONS):
        corrupt(image[::-1], other, 2)
    np.testing.assert_array_equal(corrupt(np.asfortranarray(image), name, 3, seed=1), first)
    np.testing.assert_array_equal(image, original)
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    assert first.flags.writeable


@pytest.mark.parametrize(
    "name",
    ["gaussian_noise", "shot_noise", "snow", "frost", "fog", "rain"],
)
def test_noise_differs_by_seed_image_and_severity(name: str) -> None:
    image = np.full((32, 32, 3), 128, np.uint8)
    other = image.copy()
    other[0, 0, 0] += 1
    base = corrupt(image, name, 1).astype(int)
    for changed in (corrupt(image, name, 1, seed=1), corrupt(other, name, 1)):
        assert (base[1:] != changed[1:]).mean() > 0.3


@pytest.mark.parametrize(
    "name",  # the published constants of the others do not grow in this measure
    sorted(
        set(ALL_CORRUPTIONS)
        - {"fog", "glass_blur", "snow", "frost", "elastic_transform"}
        - {"low_resolution"}  # which has a test of its own: this picture is smooth
    ),
)
def test_severity_grows(name: str) -> None:
    image = picture()
    errors = [
        ((corrupt(image, name, severity).astype(float) - image) ** 2).mean()
        for severity in range(1, 6)
    ]
    assert errors[0] > 0
    assert errors == sorted(errors), errors


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (33, 20), (40, 130)])
@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_any_size(name: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert corrupt(image, name, 5).shape == image.shape


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_has_the_published_deviation(severity: int) -> None:
    image = np.full((256, 256, 3), 128, np.uint8)
    noise = corrupt(image, "gaussian_noise", severity) / 255 - 128 / 255
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    # Clipping at 0 and 1 spoils the deviation, not the quartiles.
    low, high = np.quantile(noise, [0.25, 0.75])
    assert (high - low) / 2 == pytest.approx(0.67449 * scale, rel=0.02)
    assert abs(np.median(noise)) < 0.01


@pytest.mark.parametrize("severity", [1, 5])
def test_brightness_against_colorsys(severity: int) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (10, 10, 3), dtype=np.uint8)
    image[0, 0] = 0
    image[0, 1] = (255, 128, 0)
    got = corrupt(image, "brightness", severity)
    for pixel, result in zip(image.reshape(-1, 3), got.reshape(-1, 3)):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        raised = colorsys.hsv_to_rgb(h, s, min(1, v + severity / 10))
        assert result == pytest.approx(255 * np.array(raised), abs=0.5 + 1e-6)


def test_pixelate_makes_blocks_of_equal_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    got = corrupt(image, "pixelate", 5)  # a quarter of the side: blocks of 4 x 4
    blocks = got.reshape(10, 4, 15, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    means = image.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    assert np.abs(blocks[:, 0, :, 0] - means).max() <= 1


def test_jpeg_is_pillows_at_the_published_quality() -> None:
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "JPEG", quality=15)
    expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(corrupt(picture(), "jpeg_compression", 3), expected)


@pytest.mark.parametrize("severity", range(1, 6))
def test_blur_at_the_reference_size_is_opencvs(severity: int) -> None:
    cv2 = pytest.importorskip("cv2")
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    axis = np.arange(-max(8, radius), max(8, radius) + 1)
    disk = (axis[:, None] ** 2 + axis[None] ** 2 <= radius**2).astype(np.float64)
    taps = (3, 3) if radius <= 8 else (5, 5)
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=taps, sigmaX=sigma)
    kernel /= kernel.sum()
    np.testing.assert_allclose(disk_kernel(radius, sigma), kernel, atol=1e-12)
    image = picture(224, 300)
    expected = cv2.filter2D(image / 255, -1, kernel) * 255
    got = corrupt(image, "defocus_blur", severity)
    assert np.abs(got - expected).max() <= 0.5 + 1e-6


def test_blur_keeps_a_flat_image_and_scales_with_the_image() -> None:
    flat = np.full((50, 70, 3), 77, np.uint8)
    np.testing.assert_array_equal(corrupt(flat, "defocus_blur", 5), flat)
    # A disk of radius r has variance r^2 / 4 along an axis.
    for scale in (0.5, 1.0, 2.0, 4.0):
        kernel = disk_kernel(6, 0.1, scale)
        axis = np.arange(len(kernel)) - len(kernel) // 2
        deviation = np.sqrt((kernel.sum(0) * axis**2).sum())
        assert kernel.sum() == pytest.approx(1)
        assert deviation == pytest.approx(6 * scale / 2, rel=0.06)


def test_fog_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "plasma_fractal", lambda side, *_: np.full((side, side), 0.25))
    image = picture()
    brightest = image.max() / 255
    expected = (image / 255 + 2.5 * 0.25) * brightest / (brightest + 2.5)
    assert np.abs(corrupt(image, "fog", 3) - 255 * expected).max() <= 0.5 + 1e-9


def test_plasma_fractal_literal_loop() -> None:
    side, decay = 16, 1.5
    random = np.random.default_rng(1)
    field, wibble, step = np.zeros((side, side)), 100.0, side

    def around(y: int, x: int, offsets: list[tuple[int, int]], h: int) -> float:
        return sum(field[(y + h * dy) % side, (x + h * dx) % side] for dy, dx in offsets) / 4

    diagonal = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    straight = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    while step >= 2:
        h, cells = step // 2, side // step
        for oy, ox, offsets in [(h, h, diagonal), (0, h, straight), (h, 0, straight)]:
            draws = wibble * random.uniform(-wibble, wibble, (cells, cells))
            for i in range(cells):
                for j in range(cells):
                    y, x = oy + i * step, ox + j * step
                    field[y, x] = around(y, x, offsets, h) + draws[i, j]
        step, wibble = h, wibble / decay
    expected = (field - field.min()) / (field.max() - field.min())
    got = plasma_fractal(side, decay, np.random.default_rng(1))
    np.testing.assert_allclose(got, expected, atol=1e-12)
    with pytest.raises(ValueError, match="power of two"):
        plasma_fractal(48, 2.0, random)


def test_bad_arguments_are_named() -> None:
    image = picture()
    bad: list[tuple[tuple, str]] = [
        ((image, "gausian_noise", 1), "did you mean 'gaussian_noise'"),
        ((image, "fog", 0), "severity must be 1, 2, 3, 4 or 5, got 0"),
        ((image, "fog", 6), "got 6"),
        ((image, "fog", 2.5), "got 2.5"),
        ((image, "fog", True), "got True"),
        ((image, "fog", 1, -1), "seed must not be negative"),
        ((image / 255, "fog", 1), "uint8 array of RGB pixels, got float64"),
        ((image.tolist(), "fog", 1), "got list"),
        ((image[..., 0], "fog", 1), r"shape \(H, W, 3\), got \(96, 128\)"),
        ((image[..., [0, 1, 2, 0]], "fog", 1), r"got \(96, 128, 4\)"),
        ((image[:0], "fog", 1), r"got \(0, 128, 3\)"),
    ]
    for arguments, message in bad:
        with pytest.raises(InputError, match=message):
            corrupt(*arguments)

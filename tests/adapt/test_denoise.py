"""Pixel noise, against a loop over blocks with SciPy's transform, and OpenCV's non-local means."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dct, dctn, idct, idctn

from lqn_seg.adapt.denoise import LEAST_NOISE, noise_deviation, remove_noise
from lqn_seg.data.corruptions import corrupt


@pytest.fixture
def image():
    """(3, 48, 72) in 0.2..0.8: coloured regions with edges, and a texture without colour."""
    generator = torch.Generator().manual_seed(0)
    regions = F.interpolate(torch.rand(1, 3, 4, 6, generator=generator), (48, 72))[0]
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(72), indexing="ij")
    return 0.3 + 0.4 * regions + 0.1 * ((rows + 2 * columns) % 5 == 0)


def noisy(image, deviation, seed=1):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return image + deviation * noise


@pytest.mark.parametrize("deviation", [0.02, 0.05, 0.1])
def test_the_deviation_is_that_of_the_noise(image, deviation):
    measured = noise_deviation(noisy(image, deviation)[None]).item()
    assert measured == pytest.approx(deviation, rel=0.12)


def test_texture_is_no_noise_and_padding_does_not_count(image):
    clean, noise = image, noisy(image, 0.1)
    assert noise_deviation(clean[None]).item() < LEAST_NOISE
    grey = noisy(image.mean(0, keepdim=True).expand(3, -1, -1), 0.0)
    grey = grey + 0.3 * torch.rand(1, 48, 72, generator=torch.Generator().manual_seed(2))
    assert noise_deviation(grey[None]).item() < LEAST_NOISE
    padded = F.pad(noise, (0, 72, 0, 48))
    expected = noise_deviation(noise[None]).item()
    assert noise_deviation(padded[None]).item() == pytest.approx(expected, rel=1e-4)
    assert noise_deviation(torch.zeros(2, 3, 32, 32)).tolist() == [0, 0]


def slow(image: np.ndarray, deviation: float) -> np.ndarray:
    """Each block by itself, every second pixel, mirrored beyond the image."""
    side, step, margin = 8, 2, 6
    colours = dct(image, axis=0, norm="ortho")
    padded = np.pad(colours, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    total = np.zeros_like(padded)
    for row in range(0, padded.shape[1] - side + 1, step):
        for column in range(0, padded.shape[2] - side + 1, step):
            place = slice(None), slice(row, row + side), slice(column, column + side)
            parts = dctn(padded[place], axes=(1, 2), norm="ortho")
            kept = np.where(np.abs(parts) > 3 * deviation, parts, 0)
            kept[:, 0, 0] = parts[:, 0, 0]
            total[place] += idctn(kept, axes=(1, 2), norm="ortho")
    inside = total[:, margin:-margin, margin:-margin] / (side // step) ** 2
    return np.clip(idct(inside, axis=0, norm="ortho"), 0, 1)


def test_what_is_removed_is_what_a_loop_over_blocks_removes(image):
    pixels = noisy(image, 0.1).clamp(0, 1)
    excess = math.sqrt(noise_deviation(pixels[None]).item() ** 2 - 0.03**2)
    expected = slow(pixels.double().numpy(), excess)
    np.testing.assert_allclose(remove_noise(pixels[None], 0.03)[0], expected, atol=1e-5)


def test_an_image_without_noise_and_its_neighbours_stay_as_they_are(image):
    pixels = torch.stack([image, noisy(image, 0.1), noisy(image, 0.02)]).clamp(0, 1)
    cleaned = remove_noise(pixels, 0.03)
    assert torch.equal(cleaned[0], pixels[0]) and torch.equal(cleaned[2], pixels[2])
    assert torch.equal(cleaned[1], remove_noise(pixels[1:2], 0.03)[0])
    assert torch.equal(remove_noise(pixels, math.inf), pixels)  # not measured on clean images


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_it_is_as_good_as_non_local_means(image, name):
    clean = F.interpolate(image[None], scale_factor=3, mode="bilinear")[0]
    clean = (255 * clean).round().byte().movedim(0, 2).numpy()
    corrupted = corrupt(clean, name, 3)
    pixels = torch.from_numpy(corrupted).movedim(2, 0)[None].float() / 255
    ours = 255 * remove_noise(pixels, 0.0)[0].movedim(0, 2).numpy()
    deviation = 255 * noise_deviation(pixels).item()
    theirs = cv2.fastNlMeansDenoisingColored(corrupted, None, deviation, deviation, 5, 15)
    errors = (np.square(x - clean.astype(float)).mean() for x in (corrupted, ours, theirs))
    before, after, reference = errors
    assert after < 0.25 * before and after < 1.2 * reference


@pytest.mark.parametrize("name", ["fog", "contrast", "jpeg_compression", "defocus_blur"])
def test_other_damage_is_left_alone(image, name):
    clean = (255 * image).round().byte().movedim(0, 2).numpy()
    pixels = torch.from_numpy(corrupt(clean, name, 3)).movedim(2, 0)[None].float() / 255
    assert torch.equal(remove_noise(pixels, 0.0), pixels)

"""Controls against sums written out: on other pixels, and in the student's place."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lqn_seg.adapt.controls import (
    BLUR_SIGMA,
    SMOOTH,
    change_pixels,
    dehaze,
    guided_filter,
    pixel_statistics,
    smooth,
)
from lqn_seg.adapt.journey import Images, adapt
from lqn_seg.adapt.methods import PIXEL_CONTROLS, PixelControl
from lqn_seg.adapt.registry import make_method
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.config import with_variant
from tests.adapt.conftest import CLEAN, NOISY, adapted
from tests.core.conftest import make_fields

FEATURES = 5


def crops(count: int = 3, height: int = 24, width: int = 32) -> torch.Tensor:
    """(B, 3, h, w) smooth images in 0..1, whole levels of 255."""
    coarse = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    smoothed = F.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * smoothed).round() / 255


MEANS, DEVIATIONS = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])
AVERAGE = Calibration({}, 0.1, 0.4, torch.stack([MEANS, DEVIATIONS.log()]))


# --- other pixels


def test_pixel_statistics_are_each_channels_own():
    images = crops()
    for image, (means, logs) in zip(images.double().numpy(), pixel_statistics(images).tolist()):
        assert means == pytest.approx(image.mean((1, 2)), abs=1e-6)
        assert logs == pytest.approx(np.log(image.std((1, 2), ddof=1)), abs=1e-5)
    assert pixel_statistics(torch.full((1, 3, 4, 4), 0.5)).isfinite().all()


def test_standardise_brings_each_channel_to_the_clean_images_average():
    images = crops()
    assert change_pixels("standardise", images, None) is images
    for moved in change_pixels("standardise", 0.2 * images + 0.7, AVERAGE):
        torch.testing.assert_close(moved.mean((1, 2)), MEANS, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(moved.std((1, 2)), DEVIATIONS, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [96, 192])
def test_blur_is_a_gaussian_that_grows_with_the_image(side):
    image = crops(1, side, side + 16)
    sigma, reach = BLUR_SIGMA * side / 96, 12
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    expected = image[0].double().numpy()
    for axis in (1, 2):
        expected = np.apply_along_axis(np.convolve, axis, expected, weights, "same")
    result = change_pixels("blur", image, None)[0].numpy()
    inside = np.s_[:, reach:-reach, reach:-reach]
    assert np.abs(result - expected)[inside].max() < 1.5 / 255
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    left = change_pixels("blur", noise, None).std() / noise.std()
    # White noise keeps 1 / (2 sqrt(pi) sigma) of its deviation.
    assert left.item() == pytest.approx(1 / (2 * math.sqrt(math.pi) * sigma), rel=0.15)


def test_denoise_takes_noise_and_leaves_the_edge():
    image = torch.full((1, 3, 48, 48), 0.25)
    image[..., 24:] = 0.75
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = (image + 0.04 * noise).clamp(0, 1)
    result = change_pixels("denoise", noisy, None)
    assert (result - image).std() < 0.5 * (noisy - image).std()
    assert (result[..., 26] - result[..., 21]).mean() > 0.45


def test_clahe_stretches_lightness_and_keeps_colour():
    """A grey texture of little contrast gets more; a picture of one colour keeps its hue."""
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    texture = (0.5 + 0.05 * noise).expand(1, 3, 64, 64)
    stretched = change_pixels("clahe", texture, None)
    assert stretched.std() > 2 * texture.std()
    assert (stretched - stretched.mean(1, keepdim=True)).abs().max() < 3 / 255  # still grey
    red = torch.tensor([0.6, 0.2, 0.2])[None, :, None, None].expand(1, 3, 64, 64)
    changed = change_pixels("clahe", red, None).mean((0, 2, 3))
    assert changed[0] > 1.5 * changed[1] and abs(changed[1] - changed[2]) < 0.03


@pytest.mark.parametrize("name", ["blur", "denoise", "standardise", "clahe"])
def test_images_are_changed_alone_and_keep_shape_and_type(name):
    images, clean = crops(), AVERAGE
    together = change_pixels(name, images, clean)
    assert together.shape == images.shape and together.dtype == images.dtype
    for b in range(len(images)):
        alone = change_pixels(name, images[b : b + 1], clean)
        torch.testing.assert_close(alone[0], together[b])


# --- before a teacher


def answers(name: str, teacher, pixels: torch.Tensor, calibration=None) -> torch.Tensor:
    """(B, H, W, D) tokens of a control for (B, 3, h, w) pixels in 0..1; "" is the teacher."""
    method = make_method(PixelControl(name) if name else None, teacher)
    with torch.no_grad():
        return adapt(method, Images(teacher, pixels, [], calibration)).tokens


def test_the_teacher_sees_changed_pixels_where_damage_calls_for_them(eomt, calibration):
    pixels = torch.stack([CLEAN, NOISY]).float() / 255
    settings, close = replace(calibration, undamaged=0.05), torch.testing.assert_close
    teacher = answers("", eomt, pixels)
    for name in ("blur", "denoise"):
        result = answers(name, eomt, pixels, settings)
        close(result[0], teacher[0], atol=1e-4, rtol=1e-4)  # an image that is not damaged
        changed = change_pixels(name, pixels[1:], None)
        close(result[1:], answers("", eomt, changed), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(result[1], teacher[1], atol=1e-2)  # a blur of 32 pixels is too small
    result = answers("standardise", eomt, pixels, settings)
    changed = change_pixels("standardise", pixels, settings)
    close(result, answers("", eomt, changed), atol=1e-4, rtol=1e-4)
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(result, teacher))
    mirrored = answers("", eomt, pixels.flip(-1)).flip(2)
    close(answers("flip", eomt, pixels), (teacher + mirrored) / 2, atol=1e-5, rtol=1e-5)
    for name in ("blur", "denoise", "standardise"):  # nothing says what damage is, or clean
        assert torch.equal(answers(name, eomt, pixels), teacher)
    assert [n for n in PIXEL_CONTROLS if PixelControl(n).only_damaged] == ["blur", "denoise"]


@pytest.mark.parametrize("variant", ["kernel", "ridge"])
def test_closed_forms_stand_in_for_the_student(eomt, calibration, variant):
    pixels = NOISY[None].float() / 255
    recipe = with_variant(adapted(), variant)
    method = make_method(recipe, eomt)
    with torch.no_grad():
        result = adapt(method, Images(eomt, pixels, [], calibration))
    assert method.precision == "float32" and result.weight.tolist() == [1.0]
    assert result.seen.damage is not None  # aligned as a student's teacher is
    assert torch.equal(result.tokens, smooth(result.seen.field, 0.5, variant))
    assert not torch.allclose(result.tokens, result.seen.field[:, -1], atol=1e-2)


# --- closed forms


def slow_kernel(guide: np.ndarray) -> np.ndarray:
    """(N, N) how much two positions have to do with each other, one pair at a time."""
    rows, columns, features = guide.shape
    guide = (guide - guide.mean((0, 1))) / guide.std((0, 1))
    kernel = np.empty((rows * columns, rows * columns))
    for a in range(rows * columns):
        for b in range(rows * columns):
            (i, j), (k, m) = divmod(a, columns), divmod(b, columns)
            alike = sum((guide[i, j, f] - guide[k, m, f]) ** 2 for f in range(features)) / features
            near = ((i - k) ** 2 + (j - m) ** 2) / (max(rows, columns) / 6) ** 2
            kernel[a, b] = math.exp(-0.5 * (alike / 0.5**2 + near))
    return kernel


@pytest.mark.parametrize("shape", [(3, 4), (6, 5)])
@pytest.mark.parametrize("fraction, layer", [(0.5, 2), (1.0, 4), (0.0, 1)])
def test_kernel_and_ridge_are_what_numpy_finds(shape, fraction, layer):
    fields = make_fields(2, (4, *shape), FEATURES)
    kernel, ridge = (smooth(fields, fraction, form).flatten(1, 2) for form in ("kernel", "ridge"))
    for b in range(2):
        weights = slow_kernel(fields[b, layer - 1].double().numpy())
        last = fields[b, -1].double().numpy().reshape(-1, FEATURES)
        expected = weights @ last / weights.sum(1, keepdims=True)
        np.testing.assert_allclose(kernel[b], expected, atol=1e-3, rtol=1e-3)
        middle = last.mean(0)
        solved = np.linalg.solve(weights + 0.3 * np.eye(len(weights)), last - middle)
        np.testing.assert_allclose(ridge[b], weights @ solved + middle, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("form", ["kernel", "ridge"])
def test_a_constant_stays_units_come_back_and_images_are_alone(form):
    fields = make_fields(2, (4, 3, 4), FEATURES)
    answer, moved = smooth(fields, 0.5, form), fields.clone()
    moved[:, -1] = 3 * fields[:, -1] + 7
    torch.testing.assert_close(smooth(moved, 0.5, form), 3 * answer + 7, atol=1e-3, rtol=1e-4)
    moved[:, -1] = 7
    torch.testing.assert_close(smooth(moved, 0.5, form), torch.full_like(answer, 7))
    fields[1, -1, 2, 2, 0] = torch.nan
    broken = smooth(fields, 0.5, form)
    torch.testing.assert_close(broken[0], answer[0], atol=1e-4, rtol=1e-4)
    assert not broken[1].isfinite().all()


# --- dehazing


def test_dehazing_finds_what_the_haze_hid():
    """Haze as its model has it, I = J t + A (1 - t), of one transmission over a clear picture."""
    random = np.random.default_rng(0)
    clear = random.integers(0, 256, (96, 128, 3)).astype(np.float64)
    clear[..., 1] *= random.random((96, 128)) < 0.7  # some colour is dark near every pixel
    air, seen = np.array([230.0, 225, 220]), 0.6
    hazy = (clear * seen + air * (1 - seen)).round().astype(np.uint8)
    hazy[:3, :40] = air.round()  # as the sky is
    got = dehaze(hazy).astype(np.float64)[8:]
    before, after = (np.abs(x - clear[8:]).mean() for x in (hazy[8:], got))
    assert after < 0.25 * before


def test_the_guided_filter_is_the_best_line_in_each_window():
    random = np.random.default_rng(1)
    guide, values = random.random((2, 7, 9)).astype(np.float32)
    side, half = 3, 1
    padded = [np.pad(x.astype(np.float64), half, mode="symmetric") for x in (guide, values)]
    slope, shift = np.zeros((7, 9)), np.zeros((7, 9))
    for i in range(7):
        for j in range(9):
            g, v = (x[i : i + side, j : j + side].ravel() for x in padded)
            slope[i, j] = np.cov(g, v, bias=True)[0, 1] / (g.var() + SMOOTH)
            shift[i, j] = v.mean() - slope[i, j] * g.mean()
    means = [np.pad(x, half, mode="symmetric") for x in (slope, shift)]
    windows = [np.lib.stride_tricks.sliding_window_view(x, (3, 3)).mean((2, 3)) for x in means]
    want = windows[0] * guide + windows[1]
    np.testing.assert_allclose(guided_filter(guide, values, side), want, atol=1e-4)

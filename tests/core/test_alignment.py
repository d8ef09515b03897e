"""Ranges and restoration against sums written out, and what must hold whatever the tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lqn_seg.adapt.calibration import RangeBuilder, calibrated_layers, quantiles
from lqn_seg.adapt.noise import noise_fraction, residual
from lqn_seg.core.alignment import Aligner, Calibration, LayerRange, Style
from lqn_seg.errors import InputError

GRID = (5, 6)
FEATURES = 7
IMAGES = 24


def build(tokens, quantile=0.0, centre=None, split=IMAGES) -> LayerRange:
    builder = RangeBuilder(centre)
    for part in tokens.split(split):
        builder.observe(part)
    for part in tokens.split(split):
        builder.measure(part)
    return builder.finish(quantile)


@pytest.fixture
def blank() -> torch.Tensor:
    """(H, W, D) what a blank image's tokens are."""
    return torch.randn(*GRID, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clean(blank) -> torch.Tensor:
    """(B, H, W, D) clean tokens; the last feature carries nothing."""
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(FEATURES, FEATURES, generator=generator)
    mix[:, -1] = 0
    gain = 1 + torch.rand(IMAGES, 1, 1, 1, generator=generator)
    offset = 0.3 * torch.randn(IMAGES, 1, 1, FEATURES, generator=generator)
    noise = torch.randn(IMAGES, *GRID, FEATURES, generator=generator)
    return blank + (gain * noise + offset) @ mix


def damaged_images(clean: torch.Tensor) -> torch.Tensor:
    """(6, H, W, D) a clean image, two of another contrast, two noisy ones, and one shifted."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(*clean.shape[1:], generator=generator)
    return torch.stack(
        [
            clean[0],
            0.2 * clean[1],
            5 * clean[2],
            clean[3] + 3 * noise,
            0.3 * clean[4] + noise,
            clean[5] + 4,
        ]
    )


def slow_restore(result: LayerRange, image: torch.Tensor) -> tuple[np.ndarray, float]:
    """One image, direction by direction."""
    centre, basis = result.centre.double().numpy(), result.basis.double().numpy()
    means, deviations = result.mean.double().numpy(), result.deviation.double().numpy()
    parts = (image.double().numpy() - centre).reshape(-1, FEATURES) @ basis
    logs = [math.log(max(parts[:, k].std(), 1e-6)) for k in range(FEATURES)]
    size = 0.5 * math.log(sum(math.exp(2 * value) for value in logs))
    common = min(max(size, result.gain[0].item()), result.gain[1].item()) - size
    loudest = max(deviations[:, k].mean() for k in range(FEATURES))
    restored, changes = np.empty_like(parts), []
    for k in range(FEATURES):
        change = 0.0
        carries = deviations[:, k].mean() > loudest + math.log(1e-3)
        if carries:
            change = min(max(logs[k] + common, deviations[0, k]), deviations[1, k]) - logs[k]
            changes.append(change - common)
        mean = parts[:, k].mean()
        target = min(max(mean, means[0, k]), means[1, k])
        restored[:, k] = (parts[:, k] - mean) * math.exp(change) + target
    tokens = (restored @ basis.T).reshape(image.shape) + centre
    return tokens, math.sqrt(sum(c * c for c in changes) / len(changes))


# --- finding the range


@pytest.mark.parametrize("given", [False, True])
def test_centre_and_basis_are_a_direct_decomposition(clean, blank, given):
    result = build(clean, centre=blank if given else None, split=5)
    centre = (blank if given else clean.double().mean(0)).double()
    torch.testing.assert_close(result.centre.double(), centre, atol=1e-6, rtol=1e-6)
    shifted = (clean.double() - centre).reshape(-1, FEATURES).numpy()
    covariance = np.cov(shifted.T, bias=True)
    values = np.linalg.eigvalsh(covariance)  # ascending
    basis = result.basis.double().numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(FEATURES), atol=1e-6)
    np.testing.assert_allclose(basis.T @ covariance @ basis, np.diag(values), atol=1e-4)


@pytest.mark.parametrize("quantile", [0.0, 0.1])
def test_ranges_are_quantiles_over_images(clean, quantile):
    result = build(clean, quantile)
    basis, centre = result.basis.double().numpy(), result.centre.double().numpy()
    parts = (clean.double().numpy() - centre).reshape(IMAGES, -1, FEATURES) @ basis
    ends = [quantile, 1 - quantile]
    carries = result.signal.numpy()
    assert carries.sum() == FEATURES - 1
    np.testing.assert_allclose(result.mean, np.quantile(parts.mean(1), ends, 0), atol=1e-5)
    logs = np.log(parts.std(1))[:, carries]
    np.testing.assert_allclose(result.deviation[:, carries], np.quantile(logs, ends, 0), atol=1e-5)
    gain = 0.5 * np.log(parts.var(1).sum(1))
    np.testing.assert_allclose(result.gain, np.quantile(gain, ends), atol=1e-5)


@pytest.mark.parametrize("quantile", [0.5, -0.1, float("nan")])
def test_a_quantile_out_of_range_is_named(clean, quantile):
    with pytest.raises(InputError, match=r"quantile must be in \[0, 0\.5\)"):
        build(clean, quantile)


def test_one_image_is_no_range(clean):
    with pytest.raises(InputError, match="at least two images, not 1"):
        build(clean[:1])
    with pytest.raises(InputError, match="at least two images, not 0"):
        RangeBuilder().finish(0.0)


def tensors_of(clean: LayerRange) -> dict[str, torch.Tensor]:
    return {name: x for name, x in vars(clean).items() if isinstance(x, torch.Tensor)}


@pytest.mark.parametrize("given", [False, True])
def test_ranges_are_found_on_the_cpu_wherever_the_tokens_are(clean, blank, elsewhere, given):
    centre = blank if given else None
    result = build(elsewhere(clean), 0.1, elsewhere(blank) if given else None, split=5)
    for name, tensor in tensors_of(build(clean, 0.1, centre, split=5)).items():
        assert type(getattr(result, name)) is torch.Tensor
        assert torch.equal(getattr(result, name), tensor), name
    with pytest.raises(RuntimeError, match="same device"):
        result.align(elsewhere(clean))
    with pytest.raises(TypeError, match="float64"):
        elsewhere(clean).double()


@pytest.mark.parametrize("count", [1, 2, 25, 1000])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_quantiles_are_numpys(count, shape):
    values = torch.randn(count, *shape, generator=torch.Generator().manual_seed(6))
    shares = (0.0, 0.02, 0.5, 0.95, 1.0)
    np.testing.assert_allclose(
        quantiles(values, shares), np.quantile(values.double(), shares, axis=0), atol=2e-5
    )


def test_quantiles_of_more_values_than_older_torch_takes():
    values = torch.arange((1 << 24) + 2).flip(0).float()[:, None] / 4
    low, high = quantiles(values, (0.25, 1.0)).flatten().tolist()
    assert low == pytest.approx(1 << 20, rel=1e-6) and high == values.max()


# --- restoring


def test_restoring_is_what_it_says_direction_by_direction(clean, blank):
    images = damaged_images(clean)
    for centre in (None, blank):
        result = build(clean, 0.1, centre)
        tokens, damage = result.align(images)
        assert 0 < int(result.signal.sum()) < FEATURES
        for b, image in enumerate(images):
            expected, expected_damage = slow_restore(result, image)
            np.testing.assert_allclose(tokens[b], expected, atol=2e-4, rtol=1e-4)
            assert damage[b].item() == pytest.approx(expected_damage, abs=1e-4)


def test_with_a_style_statistics_become_what_it_leaves(clean, blank):
    """However damaged: nothing is pulled into the range."""
    result = build(clean, 0.1, blank)
    louder = torch.cat([torch.zeros(FEATURES), result.signal / FEATURES**0.5])[:, None]
    middle = torch.cat(result.components(clean)[1:], 1).mean(0)
    style = Style(middle, torch.ones(2 * FEATURES), louder, 0.9 * louder, torch.tensor(0.5))
    images = damaged_images(clean)
    images[3] += 9 * (images[3] - clean[3])  # far more noise
    before = torch.cat(result.components(images)[1:], 1)
    tokens, damage = replace(result, style=style).align(images)
    after = torch.cat(result.components(tokens)[1:], 1)
    signal = torch.cat([torch.ones(FEATURES, dtype=torch.bool), result.signal])
    torch.testing.assert_close(
        after[:, signal], style.remove(before)[:, signal], atol=1e-3, rtol=1e-3
    )
    assert (after - before)[:, signal].abs().max() > 0.5
    assert torch.equal(damage, result.align(images)[1]) and damage.max() > 0.9


@pytest.mark.parametrize("styled", [False, True])
def test_only_the_strongest_directions_change(clean, monkeypatch, styled):
    whole = build(clean, 0.1)
    monkeypatch.setattr("lqn_seg.adapt.calibration.DIRECTIONS", 4)
    result = build(clean, 0.1)
    assert result.basis.shape == (FEATURES, 4) and result.mean.shape == (2, 4)
    torch.testing.assert_close(result.basis, whole.basis[:, -4:])
    if styled:
        push = torch.cat([torch.zeros(4), torch.full((4,), 0.5)])[:, None]
        style = Style(torch.zeros(8), torch.ones(8), push, push, torch.tensor(0.1))
        result = replace(result, style=style)
    images = damaged_images(clean)
    moved = (result.align(images)[0] - images).double()
    assert moved.abs().amax((1, 2, 3)).max() > 0.5
    beside = moved @ whole.basis[:, :-4].double()
    torch.testing.assert_close(beside, torch.zeros_like(beside), atol=1e-4, rtol=0)


def test_inside_the_range_nothing_changes(clean, blank):
    result = build(clean, 0.0, blank)
    tokens, damage = result.align(clean)
    torch.testing.assert_close(tokens, clean, atol=2e-5, rtol=1e-5)
    assert damage.max() < 1e-5


@pytest.mark.parametrize("contrast", [0.2, 0.01, 7.0])
def test_a_loss_of_contrast_is_undone_up_to_the_ranges_end(blank, contrast):
    """Clean images that differ in contrast only: what they keep to is a range of contrasts."""
    pattern = torch.randn(*GRID, FEATURES, generator=torch.Generator().manual_seed(4))
    contrasts = torch.linspace(1, 2, IMAGES)[:, None, None, None]
    result = build(blank + contrasts * pattern, 0.0, blank)
    image = blank + contrast * (1.5 * pattern)
    tokens, damage = result.align(image[None])
    nearest = 1 if contrast < 1 else 2
    torch.testing.assert_close(tokens[0], blank + nearest * pattern, atol=1e-4, rtol=1e-4)
    assert damage.item() < 1e-3  # a common gain is no damage


def test_damage_grows_with_noise_and_with_blur(clean, blank):
    result = build(clean, 0.0, blank)
    noise = torch.randn(*clean.shape[1:], generator=torch.Generator().manual_seed(5))
    _, noisy = result.align(torch.stack([clean[0] + s * noise for s in (0, 1, 2, 4, 8)]))
    assert noisy[0] < 1e-5 and (noisy.diff() > 0).all() and noisy[1] > 0.01
    # blur: the weak directions lose, the strong ones keep
    parts = (clean[0] - blank) @ result.basis
    shares = torch.linspace(0, 1, FEATURES)
    weaker = [(parts * shares.lerp(torch.ones(FEATURES), keep)) for keep in (1.0, 0.3, 0.1)]
    _, blurred = result.align(torch.stack([p @ result.basis.T + blank for p in weaker]))
    assert blurred[0] < 1e-5 and (blurred[1:].diff() > 0).all() and blurred[1] > 0.01


def test_restored_tokens_keep_their_type(clean):
    tokens, damage = build(clean, 0.1).align(damaged_images(clean).bfloat16())
    assert tokens.dtype == torch.bfloat16 and damage.dtype == torch.float32


# --- while the teacher runs


def calibration(layers, undamaged=0.1) -> Calibration:
    return Calibration(layers, undamaged, 0.4, torch.zeros(2, 2))


def test_a_callers_autocast_changes_no_number(clean, blank):
    with torch.autocast("cpu", torch.bfloat16):
        inside = build(clean, 0.1, blank)
        restored = inside.align(damaged_images(clean))
        fields = torch.stack([clean, clean.flip(2)], 1)
        errors = residual(fields)
    outside = build(clean, 0.1, blank)
    pairs = zip(tensors_of(inside).values(), tensors_of(outside).values())
    assert all(torch.equal(a, b) for a, b in pairs)
    expected = outside.align(damaged_images(clean))
    assert all(torch.equal(a, b) for a, b in zip(restored, expected))
    assert torch.equal(errors, residual(fields))


def test_the_restorer_knows_its_layers_and_measures_damage_at_the_first(clean):
    result, images = build(clean, 0.1), damaged_images(clean)
    aligner = Aligner(calibration({1: result, 3: result}))
    assert aligner(0, images) is images and aligner(2, images) is images
    assert aligner.damage.numel() == 0
    expected, damage = result.align(images)
    assert torch.equal(aligner(1, images), expected)
    assert torch.equal(aligner.damage, damage)
    assert torch.equal(aligner(3, 2 * images), result.align(2 * images)[0])
    assert torch.equal(aligner.damage, damage)  # of the first layer still


def test_damaged_is_beyond_what_clean_images_show():
    aligner = Aligner(calibration({}, undamaged=0.1))
    aligner.damage = torch.tensor([0.0, 0.05, 0.1, 0.11, 1.0])
    assert aligner.damaged.tolist() == [False, False, False, True, True]


def test_noise_on_a_structured_field_is_found_in_its_amount():
    """Tokens that their guide determines, and white noise of known variance on top."""
    rows, columns, features = 16, 16, 24
    source = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 6, (1, rows, columns), generator=source)
    guides, tokens = (torch.randn(6, features, generator=source) for _ in range(2))
    own = 0.3 * torch.randn(1, rows, columns, features, generator=source)
    clean = torch.stack([guides[classes], tokens[classes] + own], 1)
    settings = replace(calibration({}), residual=residual(clean).item())
    assert settings.residual < 0.2  # alike positions predict each other
    assert noise_fraction(settings, clean).tolist() == pytest.approx([0.0], abs=1e-6)
    noise = torch.randn(clean[:, -1].shape, generator=source)
    for deviation in (0.3, 0.6, 1.2):
        noisy = clean.clone()
        noisy[:, -1] += deviation * noise
        # What predicts is noisy too, and the residual is over a variance that grew: about.
        expected = deviation**2 / (deviation**2 + 0.3**2)
        assert noise_fraction(settings, noisy).item() == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(
    "depth, queries, last", [(24, 4, 12), (12, 4, 6), (4, 2, 2), (4, 3, 1), (3, 3, 0), (5, 1, 2)]
)
def test_layers_are_restored_up_to_the_middle_and_before_the_queries(depth, queries, last):
    assert list(calibrated_layers(depth, queries)) == list(range(last + 1))

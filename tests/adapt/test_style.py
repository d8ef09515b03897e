"""The filter of a layer's style, against its formula, and the augmentations behind it."""

import pytest
import torch

from lqn_seg.adapt.style import CHANGES, NOISE_WEIGHT, SHRINKAGE, augment, fit_style

IMAGES, STATISTICS = 400, 12


@pytest.fixture
def clean():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(STATISTICS, STATISTICS, generator=generator)
    return torch.randn(IMAGES, STATISTICS, generator=generator) @ mixing + 3


@pytest.fixture
def changed(clean):
    """Augmentations that move one direction, far more than clean images vary, and hardly others."""
    generator = torch.Generator().manual_seed(1)
    strength = torch.randn(3, IMAGES, 1, generator=generator)
    rest = torch.randn(3, IMAGES, STATISTICS, generator=generator)
    return clean + 20 * strength * _direction() + 0.01 * rest


def _direction():
    return torch.eye(STATISTICS)[2] + torch.eye(STATISTICS)[7]


def test_the_filter_is_wieners(clean, changed):
    style = fit_style(clean, changed)
    standard = (clean - clean.mean(0)) / clean.std(0)
    moved = ((changed - clean) / clean.std(0)).flatten(0, 1)
    signal = moved.T @ moved / len(moved)
    noise = torch.cov(standard.T, correction=0)
    noise = (1 - SHRINKAGE) * noise + SHRINKAGE * torch.eye(STATISTICS)
    expected = signal @ torch.linalg.inv(signal + NOISE_WEIGHT * noise)
    assert torch.allclose(style.write @ style.read.T, expected, atol=2e-3)


def test_style_goes_and_content_stays(clean, changed):
    style = fit_style(clean, changed)
    away = style.remove(clean + 40 * _direction()) - clean
    assert away.norm(dim=1).median() < 0.25 * (40 * _direction()).norm()
    content = torch.eye(STATISTICS)[4] * 40  # as far, where no augmentation goes
    kept = style.remove(clean + content) - style.remove(clean)
    assert (kept @ content).median() / content.square().sum() > 0.8


def test_most_clean_images_are_left_alone(clean, changed):
    style = fit_style(clean, changed)
    fresh = clean.roll(1, 0) * 0.5 + clean * 0.75**0.5 + 3 * (0.5 - 0.75**0.5)  # as these are
    for images in (clean, fresh):
        untouched = (style.remove(images) - images).abs().amax(1) < 1e-4
        assert untouched.float().mean() == pytest.approx(0.95, abs=0.03)


def test_few_images_do_not_hide_how_much_others_vary():
    """Twenty images of forty statistics: a filter made from them sees little style in them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(500, 40, generator=generator)
    changed = images[:20] + torch.randn(3, 20, 40, generator=generator)
    style = fit_style(images[:20], changed)
    untouched = (style.remove(images[20:]) - images[20:]).abs().amax(1) < 1e-4
    assert untouched.float().mean() > 0.85


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_images_are_enough_for_numbers(clean, changed, count):
    style = fit_style(clean[:count], changed[:, :count])
    assert all(tensor.isfinite().all() for tensor in vars(style).values())


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_moves_pixels(change):
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(3, 120, 168, generator=generator)
    changed = [change(image, generator) for _ in range(5)]  # some hardly, by chance
    assert all(one.shape == image.shape for one in changed)
    assert max((one - image).abs().max() for one in changed) > 0.05


def test_a_change_follows_from_the_image_and_the_look_alone():
    images = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    first, again, other = augment(images, 0), augment(images.flip(0), 0), augment(images, 1)
    assert torch.equal(first, again.flip(0)) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1

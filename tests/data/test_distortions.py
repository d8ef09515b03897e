"""Distortions against stored outputs of ImageNet-C's published code, and the drawn frost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lqn_seg.data.corruptions import CORRUPTIONS, OWN_STRENGTHS, STRENGTHS, corrupt
from lqn_seg.data.distortions import DISTORTIONS, distort, frost_texture

# Every 32nd pixel of what make_imagenet_c.py of github.com/hendrycks/robustness (8190fe3, with
# scikit-image 0.26, OpenCV 5.0, SciPy 1.17, ImageMagick 6.9.11) makes of `scene()`, by
# severity 1 .. 5, where np.random is np.random.default_rng(severity).
PUBLISHED = json.loads((Path(__file__).parent / "imagenet_c.json").read_text())
# Mean and deviation, in levels of 255, of the five photographs that it adds as frost.
PHOTOGRAPHS = [(131, 19), (207, 22), (207, 22), (152, 28), (123, 43)]


def scene(side: int = 224) -> np.ndarray:
    """Waves and tiles: smooth parts and edges, dark and bright."""
    y, x = np.mgrid[:side, :side]
    waves = [128 + 90 * np.sin(x / (9 + 4 * k) + y / (31 - 6 * k)) for k in range(3)]
    tiles = np.random.default_rng(5).integers(0, 256, (7, 7, 3))
    tiles = tiles.repeat(side // 7, 0).repeat(side // 7, 1)
    tiled = (x // 16 + y // 16) % 3 == 0
    return np.rint(np.where(tiled[..., None], tiles, np.stack(waves, -1))).astype(np.uint8)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_code(name: str, severity: int) -> None:
    random = np.random.default_rng(severity)
    got = distort(scene() / 255, name, STRENGTHS[name][severity - 1], random)
    got = 255 * np.clip(got[16::32, 16::32].ravel(), 0, 1)
    # It truncates to 8 bits between the steps of these: once, or for each of two layers of snow.
    levels = {"glass_blur": 1, "motion_blur": 1, "snow": 2}.get(name, 0)
    np.testing.assert_allclose(got, PUBLISHED[name][severity - 1], atol=levels + 0.501)


def test_all_fifteen_are_there() -> None:
    assert len(CORRUPTIONS) == 15
    published = set(DISTORTIONS) - set(OWN_STRENGTHS)
    assert set(PUBLISHED) | {"frost"} == published < set(CORRUPTIONS)


@pytest.mark.parametrize(("severity", "kept", "ice"), [(1, 1, 0.4), (3, 0.7, 0.7), (5, 0.6, 0.75)])
def test_frost_adds_the_texture_with_the_published_weights(
    severity: int, kept: float, ice: float
) -> None:
    x = scene() / 255
    got = distort(x, "frost", STRENGTHS["frost"][severity - 1], np.random.default_rng(0))
    texture = frost_texture(224, 224, np.random.default_rng(0))
    np.testing.assert_allclose(got, kept * x + ice * texture, atol=1e-12)


def test_frost_is_as_bright_and_as_rough_as_the_photographs() -> None:
    greys = [255 * frost_texture(64, 96, np.random.default_rng(k)).mean(2) for k in range(16)]
    means, deviations = np.array([(grey.mean(), grey.std()) for grey in greys]).T
    expected = np.mean(PHOTOGRAPHS, axis=0)
    assert means.mean() == pytest.approx(expected[0], abs=15)
    assert deviations.mean() == pytest.approx(expected[1], abs=5)
    assert means.std() > 15


@pytest.mark.parametrize(
    "name",
    ["glass_blur", "motion_blur", "zoom_blur", "snow", "elastic_transform", "rain", "dirt"],
)
def test_lengths_grow_with_the_image(name: str) -> None:
    """A picture of twice the side is damaged as much."""

    def damage(side: int) -> float:
        image = scene(224).repeat(side // 224, 0).repeat(side // 224, 1)
        errors = [(corrupt(image, name, 3, seed).astype(float) - image) ** 2 for seed in range(2)]
        return float(np.sqrt(np.mean(errors)))

    assert damage(448) == pytest.approx(damage(224), rel=0.2)

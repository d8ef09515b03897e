"""Chains, halves and the four corruptions of our own: closed forms, Pillow, and names as files."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import ndimage

from lqn_seg.data.corruptions import (
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    OWN_STRENGTHS,
    STRENGTHS,
    corrupt,
    parse_corruption,
    strengths_of,
)
from lqn_seg.data.distortions import distort
from lqn_seg.data.file_names import file_name
from lqn_seg.engine.evaluate import Condition
from lqn_seg.errors import InputError
from tests.data.test_corruptions import picture

COMPOSED = ("fog+jpeg_compression", "half_gaussian_noise", "half_fog+rain", "dirt+dirt")


def halves_of(image: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name, the half and the rest of an image."""
    (top, bottom), (left, right) = np.array_split(image, 2), np.array_split(image, 2, axis=1)
    return {
        **{"left": (left, right), "right": (right, left)},
        **{"top": (top, bottom), "bottom": (bottom, top)},
    }


def test_a_chain_is_its_links_one_after_the_other() -> None:
    image = picture()
    fog = corrupt(image, "fog", 2, seed=5)
    chained = corrupt(image, "fog+jpeg_compression", 2, seed=5)
    np.testing.assert_array_equal(chained, corrupt(fog, "jpeg_compression", 2, seed=5))
    assert (chained != corrupt(image, "jpeg_compression+fog", 2, seed=5)).any()
    twice = corrupt(image, "gaussian_noise+gaussian_noise", 1)  # other pixels, other noise
    once = corrupt(image, "gaussian_noise", 1)
    added = np.corrcoef((once - image.astype(float)).ravel(), (twice - once.astype(float)).ravel())
    assert abs(added[0, 1]) < 0.1


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "elastic_transform", "reupload", "fog+jpeg_compression"]
)
def test_half_is_the_whole_damage_in_one_half_alone(name: str) -> None:
    drawn, image = set(), picture(40, 60)
    whole = {seed: halves_of(corrupt(image, name, 3, seed)) for seed in range(24)}
    for seed, damaged in whole.items():
        got = halves_of(corrupt(image, f"half_{name}", 3, seed))
        (half,) = (
            key
            for key, (inside, outside) in got.items()
            if np.array_equal(outside, halves_of(image)[key][1])
            and np.array_equal(inside, damaged[key][0])
        )
        drawn.add(half)
    assert drawn == {"left", "right", "top", "bottom"}


def test_the_half_is_the_images_whatever_happens_in_it() -> None:
    image = picture(40, 60)
    changed = {
        ((corrupt(image, f"half_{name}", severity) != image).any(2)[::39, ::59]).tobytes()
        for name in ("impulse_noise+gaussian_noise", "brightness", "contrast")
        for severity in (1, 5)
    }
    assert len(changed) == 1


@pytest.mark.parametrize("name", [*ALL_CORRUPTIONS, *COMPOSED])
def test_names_are_safe_where_they_are_written(name: str) -> None:
    """In names of files, in YAML, on a command line; and "-" is before the severity alone."""
    condition = str(Condition(name, 3))
    assert file_name(condition) == condition and condition.rsplit("-", 1) == [name, "3"]
    assert set(condition) <= set("abcdefghijklmnopqrstuvwxyz_+-3") and "-" not in name
    assert yaml.safe_load(f"[{name}]") == [name] and shlex.split(name) == [name] == [
        shlex.quote(name).strip("'")
    ]


def test_no_corruption_can_be_taken_for_a_half_or_a_chain() -> None:
    assert not [n for n in ALL_CORRUPTIONS if n.startswith("half_") or not n.isidentifier()]
    assert len(ALL_CORRUPTIONS) == len(set(ALL_CORRUPTIONS)) == 19
    assert parse_corruption("half_fog+rain") == (True, ("fog", "rain"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fog+rian", r"unknown corruption 'rian': did you mean 'rain'\?"),
        ("half_frog", r"'frog': did you mean 'fog'"),
        ("half-fog", "'half-fog': did you mean 'fog'"),
        ("fog+half_rain", "'half_rain': did you mean 'rain'"),
        ("half_", "unknown corruption ''"),
        ("fog+", "unknown corruption ''"),
        ("fog:rain", "unknown corruption 'fog:rain'"),
        ("+".join(ALL_CORRUPTIONS), r"'gaussian_noise\+shot_' \.\.\. is longer than 100"),
    ],
)
def test_wrong_names_are_told(name: str, message: str) -> None:
    for use in (parse_corruption, strengths_of, lambda name: corrupt(picture(8, 8), name, 1)):
        with pytest.raises(InputError, match=message):
            use(name)


def test_hashes_of_published_studies_stay_and_composed_names_have_some() -> None:
    seven = (
        *("gaussian_noise", "defocus_blur", "contrast", "fog", "pixelate", "brightness"),
        "jpeg_compression",
    )
    used = {name: strengths_of(name) for name in seven}
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
    assert (
        digest
        == yaml.safe_load(Path("configs/study/demo.yaml").read_text())["FROZEN"]["corruptions"]
    )
    assert [strengths_of(name) for name in CORRUPTIONS] == list(STRENGTHS.values())
    expected = {"rain": OWN_STRENGTHS["rain"], "fog": STRENGTHS["fog"]}
    assert strengths_of("half_rain+fog") == strengths_of("rain+fog") == expected


@pytest.mark.parametrize("severity", range(1, 6))
def test_low_resolution_keeps_what_fewer_pixels_can_show(severity: int) -> None:
    def contrast_kept(period: int) -> float:
        wave = 127 + 100 * np.sin(2 * np.pi * np.arange(240) / period)
        image = np.broadcast_to(wave[None, :, None], (240, 240, 3)).round().astype(np.uint8)
        return corrupt(image, "low_resolution", severity)[24:-24, 24:-24].std() / image.std()

    shrunk = (2, 2.5, 3, 4, 6)[severity - 1]
    assert contrast_kept(math.ceil(1.25 * shrunk)) < 0.4  # waves shorter than two new pixels
    assert contrast_kept(math.ceil(8 * shrunk)) > 0.9
    assert contrast_kept(80) > 0.97


def test_reupload_is_two_sites_in_a_row() -> None:
    image, file, again = Image.fromarray(picture(60, 100)), io.BytesIO(), io.BytesIO()
    image.resize((60, 36), Image.Resampling.BICUBIC).save(file, "JPEG", quality=45)
    large = Image.open(file).resize((100, 60), Image.Resampling.BICUBIC)
    large.save(again, "JPEG", quality=50)
    got = corrupt(picture(60, 100), "reupload", 3)
    np.testing.assert_array_equal(got, np.asarray(Image.open(again)))


@pytest.mark.parametrize("seed", range(3))
def test_rain_is_bright_thin_streaks_in_one_direction(seed: int) -> None:
    got = corrupt(np.full((224, 224, 3), 60, np.uint8), "rain", 1, seed)
    assert got.min() == 60 and 100 < got.max() <= 230
    streaks, count = ndimage.label(got[..., 0] > 66, np.ones((3, 3)))
    assert 0.4 * 100 < count < 1.1 * 100  # 2 drops per 1000 pixels, some faint, some overlapping
    angles, thin = [], []
    for down, across in ndimage.find_objects(streaks):
        rows, columns = np.nonzero(got[down, across, 0] > 66)
        if len(rows) > 12:
            spread, axes = np.linalg.eigh(np.cov(rows, columns))
            thin.append(spread[0] / spread[1])
            angles.append(np.arctan(axes[1, 1] / axes[0, 1]))
    assert len(angles) > 10 and np.median(thin) < 0.03  # variance across, of that along
    assert abs(np.median(angles)) < np.radians(27)
    assert np.quantile(np.abs(angles - np.median(angles)), 0.8) < np.radians(8)


def test_rain_takes_contrast_from_the_scene() -> None:
    image = np.repeat(np.array([[40, 240]], np.uint8), 112, axis=1).repeat(224, 0)
    image = image[..., None].repeat(3, 2)
    dark, bright = (np.median(half) for half in np.split(corrupt(image, "rain", 3), 2, axis=1))
    assert (bright - dark) / 200 == pytest.approx(0.85, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_dirt_is_soft_dark_spots(seed: int) -> None:
    got = corrupt(np.full((224, 224, 3), 255, np.uint8), "dirt", 3, seed)
    clean = (got == 255).all(2)
    assert 0.6 < clean.mean() < 0.97
    darkest = 255 * (0.6 + 0.4 * np.array([0.2, 0.17, 0.13]))  # full cover in front of white
    assert (got.min((0, 1)) >= darkest - 1).all() and got.min() < 220
    assert np.abs(np.diff(got.astype(int), axis=0)).max() < 30  # no edges


def test_dirt_blurs_what_is_behind_it() -> None:
    y, x = np.mgrid[:224, :224]
    board = np.where((x // 2 + y // 2) % 2, 230, 90).astype(np.uint8)[..., None].repeat(3, 2)
    got, where = (
        distort(x, "dirt", OWN_STRENGTHS["dirt"][4], np.random.default_rng(0))
        for x in (board / 255, np.ones((224, 224, 3)))
    )
    covered = where[..., 2] == where.min()
    assert covered.sum() > 50 and got[covered].std(0).max() < 0.01
    np.testing.assert_array_equal(got[where == 1], (board / 255)[where == 1])

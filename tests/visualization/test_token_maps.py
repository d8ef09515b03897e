"""Colours of token maps against closed forms, and figures that say what they were given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lqn_seg.visualization import figures, files
from lqn_seg.visualization.palette import OUTLINE
from lqn_seg.visualization.panels import CATEGORY_DIFFERS, SAME, outline_changes
from lqn_seg.visualization.token_maps import (
    shared_basis,
    standardised,
)


def tokens(seed: int = 0, features: int = 7) -> np.ndarray:
    generator = np.random.default_rng(seed)
    deviations = np.geomspace(4, 0.1, features)
    return generator.normal(0, 1, (6, 5, features)) * deviations + 3


def test_a_basis_is_that_of_the_singular_value_decomposition():
    maps = [standardised(tokens(k), tokens(k)) for k in range(3)]
    basis = shared_basis(maps)
    stacked = np.concatenate([m.reshape(-1, 7) for m in maps])
    axes = np.linalg.svd(stacked, full_matrices=False)[2][:3].T
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(3)])
    low, high = np.quantile(stacked @ axes, (0.01, 0.99), axis=0)
    expected = 255 * ((maps[1] @ axes - low) / (high - low)).clip(0, 1)
    assert np.abs(basis(maps[1]) - expected).max() < 0.51
    # The same tokens have the same colour wherever they stand, and both ends are reached.
    colors = [basis(m) for m in maps]
    assert (basis(maps[1][:2]) == colors[1][:2]).all()
    assert min(c.min() for c in colors) == 0 and max(c.max() for c in colors) == 255


def test_units_are_the_teachers():
    teacher = tokens()
    for shift, scale in ((0, 1), (5, 40)):
        units = standardised(teacher * scale + shift, teacher * scale + shift)
        assert np.allclose(units, standardised(teacher, teacher))
        assert np.square(units).mean() == pytest.approx(1)


def test_only_the_edge_of_a_change_is_painted():
    changes = np.full((20, 20), SAME, np.uint8)
    changes[5:15, 5:15] = CATEGORY_DIFFERS
    grey = np.full((20, 20, 3), 100, np.uint8)
    result = (outline_changes(grey, changes) == OUTLINE).all(-1)
    assert result[5:15, 5:7].all() and result[5:7, 5:15].all()
    assert not result[7:13, 7:13].any() and result.sum() == 100 - 36
    twice = outline_changes(np.full((40, 40, 3), 100, np.uint8), changes)
    assert (twice == OUTLINE).all(-1).sum() == 400 - 256
    assert (outline_changes(grey, np.zeros_like(changes)) == grey).all()


def test_figures_are_the_same_bytes_and_label_their_axes(tmp_path):
    for name in ("a", "b"):
        written = figures.draw_by_layer({"LQN": [0.5, 0.4]}, tmp_path / name, "scene")
        assert [path.suffix for path in written] == [".png", ".svg"]
    for suffix in (".png", ".svg"):
        first, second = ((tmp_path / f"{n}{suffix}").read_bytes() for n in "ab")
        assert first == second
    text = (tmp_path / "a.svg").read_text()
    for words in ("layer of the teacher", "squared error / variance", "LQN", "scene"):
        assert words in text


def test_a_picture_and_a_gif_hold_their_pixels(tmp_path):
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (12, 9, 3), dtype=np.uint8)
    png, svg = files.save_picture(picture, tmp_path / "p.1", "a < b")
    assert (np.asarray(Image.open(png)) == picture).all()
    assert png.name == "p.1.png" and "a &lt; b" in svg.read_text()
    flat = [np.full((8, 8, 3), value, np.uint8) for value in (0, 120, 250)]
    with Image.open(files.save_gif(flat, tmp_path / "f.gif", 0.1)) as gif:
        assert gif.n_frames == 3
        for k, frame in enumerate(flat):
            gif.seek(k)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame).max() <= 1

"""Masks from files, against pycocotools and against runs counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from lqn_seg.data.masks import compress, decode, run_lengths
from lqn_seg.data.schema import RunLengths

H, W = 5, 7


def random_mask(seed: int, height: int = H, width: int = W) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((height, width)) < random.random()


def runs_of(mask: np.ndarray) -> list[int]:
    """Zeros first, down the columns."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("size", [(H, W), (120, 101)])  # numbers of one character, and of three
def test_run_lengths_of_a_compressed_mask_are_pycocotools(size: tuple[int, int]) -> None:
    for seed in range(30):
        mask = random_mask(seed, *size)
        if seed % 2:
            mask[10:, :] = False
            mask[:, 3:] = seed % 4 == 1
        text = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert run_lengths(RunLengths(size, text), *size).tolist() == runs_of(mask)
        np.testing.assert_array_equal(decode(compress(RunLengths(size, text), *size)), mask)


def test_runs_of_no_pixel_are_joined() -> None:
    """pycocotools' comparison of two masks ends where both have one, and IoU is wrong."""
    mask = random_mask(3)
    runs = runs_of(mask)
    split: list[int] = []
    for run in runs:
        split += [1, 0, run - 1, 0, 0] if run > 2 else [run, 0, 0]
    joined = compress(RunLengths((H, W), split[:-2] + [0] * 3), H, W)
    assert joined == compress(RunLengths((H, W), runs), H, W)
    np.testing.assert_array_equal(decode(joined), mask)
    naive = mask_api.frPyObjects({"size": [H, W], "counts": split}, H, W)
    plain = mask_api.frPyObjects({"size": [H, W], "counts": runs}, H, W)
    assert mask_api.iou([naive], [naive], [0])[0, 0] != 1 == mask_api.iou([joined], [plain], [0])


@pytest.mark.parametrize("runs", [[H * W], [0, H * W], [0, 0, H * W], [0, 0, 0, H * W]])
def test_one_run(runs: list[int]) -> None:
    filled = len(runs) % 2 == 0
    assert decode(compress(RunLengths((H, W), runs), H, W)).tolist() == [[filled] * W] * H


def test_polygons_are_pycocotools() -> None:
    polygons = [[1.0, 1, 5, 1, 5, 4], [-3, 2.5, 2, 2.5, 2, 9, -3, 9]]
    expected = mask_api.decode(mask_api.merge(mask_api.frPyObjects(polygons, H, W)))
    np.testing.assert_array_equal(decode(compress(polygons, H, W)), expected.astype(bool))


BAD: list[tuple[Any, str]] = [
    (RunLengths((H, W), [30, 4]), r"counts add up to 34 pixels, the image is 5 x 7"),
    (RunLengths((H, W), [30, 6]), r"counts add up to 36"),
    (RunLengths((H, W), []), r"counts add up to 0"),
    (RunLengths((W, H), [35]), r"size is \[7, 5\], the image is 5 x 7"),
    (RunLengths((H, W), [2**32 - 1] * 2), r"add up to 8589934590"),
    (RunLengths((H, W), ""), r"break off"),
    (RunLengths((H, W), "S1P"), r"break off"),  # pycocotools reads on beyond the text
    (RunLengths((H, W), "S1\x7f"), r"a character that no compressed mask has"),
    (RunLengths((H, W), "S1é"), r"a character that no compressed mask has"),
    (RunLengths((H, W), "S1 0"), r"a character that no compressed mask has"),
    (RunLengths((H, W), "o" * 60 + "0"), r"too large for a run length"),
    (RunLengths((H, W), "O"), r"negative run length -1"),
    (RunLengths((H, W), "S1" * 3), r"counts add up to"),
    ([], "is an empty list"),
    ([[]], r"\[0\] has 0 numbers"),
    ([[1.0, 1, 4, 4]], r"\[0\] has 4 numbers"),  # pycocotools takes it for a box
    ([[1, 1], [4, 1], [4, 4]], r"\[0\] has 2 numbers, not x, y of three points or more in one"),
    ([[1, 1, 4, 1, 4, 4], [1, 1, 4, 1, 4, 4, 3]], r"\[1\] has 7 numbers"),
    ([[1, 1, 1e9, 1, 4, 4]], r"\[0\] reaches 1e\+09 pixels far"),
    ([[1, 1, 4, -1e300, 4, 4]], r"\[0\] reaches -1e\+300 pixels far"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("segmentation", "message"), BAD)
def test_no_mask_is_a_sentence(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(segmentation, H, W)


@pytest.mark.timeout(60)
def test_damaged_text_is_a_mask_or_a_sentence() -> None:
    random, seen = np.random.default_rng(0), [0, 0]
    letters = [chr(code) for code in range(40, 120)]
    for seed in range(1000):
        mask = random_mask(seed)
        text = list(mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())
        for _ in range(random.integers(1, 3)):
            place = int(random.integers(len(text)))
            text[place : place + int(random.integers(2))] = random.choice(letters)
        try:
            result = compress(RunLengths((H, W), "".join(text)), H, W)
        except ValueError:
            seen[0] += 1
        else:
            seen[1] += 1
            assert decode(result).shape == (H, W)
    assert all(seen)

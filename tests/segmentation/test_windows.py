"""Windows against closed forms and against what they must leave unchanged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lqn_seg.segmentation.windows import PaddedWindow, SlidingWindows, resize_image


@pytest.mark.parametrize(
    "size, starts",
    [
        ((512, 512), (0,)),
        ((512, 683), (0, 171)),  # ceil(683 / 512) = 2, flush with the end
        ((1024, 2048), (0, 512)),  # Cityscapes at 1024: twice the height, halved to 512 x 1024
        ((300, 1000), (0, 398, 796, 1195)),  # resized to 512 x 1707: overhang 1195 over 3 gaps
    ],
)
def test_windows_cover_the_long_side_as_eomt_does(size, starts):
    layout = SlidingWindows.of(size, (512, 512))
    assert layout.starts[0] == 0
    assert len(layout.starts) == math.ceil(max(layout.resized) / 512)
    assert layout.starts == starts
    assert layout.starts[-1] + 512 == max(layout.resized)


def test_starts_are_those_of_eomts_formula_or_flush_with_the_end_where_it_is_not():
    for window, long in [(512, 683), (512, 1707), (1024, 2048), (640, 5000), (96, 2089)]:
        count = math.ceil(long / window)
        step = window - (count * window - long) / (count - 1)
        theirs = [int(k * step) for k in range(count)]
        starts = list(SlidingWindows.of((long, window), (window, window)).starts)
        assert starts[:-1] == theirs[:-1] and starts[-1] == long - window
    assert theirs[-1] == long - window - 1  # the last case


@pytest.mark.parametrize("size", [(48, 64), (31, 90), (100, 57)])
def test_pixels_are_resized_by_pillow_as_in_eomt(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    for layout in (SlidingWindows.of(size, (40, 40)), PaddedWindow.of(size, (40, 40))):
        rows, columns = layout.inside if isinstance(layout, PaddedWindow) else layout.resized
        expected = torch.from_numpy(np.array(picture.resize((columns, rows), Image.BILINEAR)))
        first = layout.crops(image)[0, :, :rows, :columns]
        assert first.equal(expected.movedim(2, 0)[:, :40, :40])


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 90), st.integers(5, 90))
def test_a_window_shows_the_pixels_it_names_and_averages_restore_the_image(height, width):
    layout = SlidingWindows.of((height, width), (16, 16))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    crops = layout.crops(image)
    resized = resize_image(image, layout.resized)
    whole = SlidingWindows(layout.resized, (16, 16), layout.resized, layout.starts)
    # Scores that are the pixels themselves come back as the resized image: overlaps agree.
    restored = whole.average(crops.float(), layout.resized)
    assert torch.allclose(restored, resized.float())


def test_overlaps_are_averaged():
    layout = SlidingWindows((4, 6), (4, 4), (4, 6), (0, 2))
    scores = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert layout.average(scores, (4, 6))[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_padding_keeps_the_aspect_ratio_and_fills_one_side(height, width):
    layout = PaddedWindow.of((height, width), (32, 48))
    assert layout.inside[0] == 32 or layout.inside[1] == 48
    assert abs(layout.inside[0] / height - layout.inside[1] / width) <= 1 / min(height, width)
    image = torch.full((3, height, width), 7, dtype=torch.uint8)
    crop = layout.crops(image)[0]
    assert crop.shape == (3, 32, 48)
    assert (crop[:, : layout.inside[0], : layout.inside[1]] == 7).all()
    assert int(crop.sum()) == 3 * 7 * layout.inside[0] * layout.inside[1]


def test_the_padding_is_cut_off_before_the_masks_are_resized():
    layout = PaddedWindow.of((16, 32), (32, 32))
    logits = torch.ones(1, 32, 32)
    logits[:, 16:] = -1  # the padding
    assert (layout.logits(logits, (16, 32)) == 1).all()


@pytest.mark.parametrize("size", [(16, 37), (40, 16), (16, 16)])
def test_stitched_windows_lie_where_their_pixels_do(size):
    """A coordinate ramp as the image: each token's place is the mean coordinate of its pixels."""
    layout, patch = SlidingWindows.of(size, (16, 16)), 4
    ramps = torch.stack(torch.meshgrid(*(torch.arange(s) for s in size), indexing="ij"))
    crops = layout.crops(torch.cat([ramps, ramps[:1]]).to(torch.uint8))[:, :2].float()
    tokens = torch.nn.functional.avg_pool2d(crops, patch).movedim(1, 3)  # (n, H, W, 2)
    stitched = layout.stitch(tokens[:, None])
    assert torch.equal(layout.cut(stitched[:, 0]), tokens)
    rows, columns = layout.coordinates((4, 4))
    # The pixels of token k (from 1) are patch (k - 1) ... patch k - 1.
    expected = patch * (torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1) - 0.5) - 0.5
    torch.testing.assert_close(stitched[0, 0], expected)

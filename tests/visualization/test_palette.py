from __future__ import annotations

import colorsys
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lqn_seg.visualization.palette import (
    NUM_SHADES,
    category_color,
    distinct_color,
    instance_shades,
    segment_colors,
)

CATEGORIES = [
    SimpleNamespace(name="sky", isthing=False, color=(120, 170, 220)),
    SimpleNamespace(name="disc", isthing=True, color=(220, 60, 60)),
    SimpleNamespace(name="new", isthing=True, color=None),
]
BYTES = st.tuples(*[st.integers(0, 255)] * 3)


def test_fallback_colors_are_distinct_for_more_categories_than_coco_panoptic_has():
    colors = np.array([distinct_color(k) for k in range(134)])
    distances = np.abs(colors[:, None] - colors[None]).sum(-1)[np.triu_indices(134, 1)]
    assert distances.min() > 0
    # The first ones, which small tables use, can be told apart at a glance.
    few = np.abs(colors[:8, None] - colors[None, :8]).sum(-1)[np.triu_indices(8, 1)]
    assert few.min() >= 60


def test_own_color_wins_and_missing_one_falls_back():
    assert category_color(CATEGORIES[1], 1) == (220, 60, 60)
    assert category_color(CATEGORIES[2], 2) == distinct_color(2)


@given(BYTES)
def test_shades_of_any_color_are_distinct_start_with_it_and_keep_its_hue(color):
    shades = instance_shades(color)
    assert shades[0] == color and len(set(shades)) == NUM_SHADES
    assert all(0 <= v <= 255 for shade in shades for v in shade)
    hue, lightness, saturation = colorsys.rgb_to_hls(*(v / 255 for v in color))
    if saturation < 0.3 or not 0.2 < lightness < 0.8:
        return  # greys have no hue worth keeping
    for shade in shades:
        shift = abs(colorsys.rgb_to_hls(*(v / 255 for v in shade))[0] - hue)
        assert min(shift, 1 - shift) < 0.06


def _map(centres, size=64):
    ids = np.full((size, size), 1, np.int32)
    for number, (row, column) in centres.items():
        ids[row - 4 : row + 4, column - 4 : column + 4] = number
    segments = [{"id": 1, "category_id": 0}]
    return ids, segments + [{"id": n, "category_id": 1} for n in centres]


def test_an_object_keeps_its_color_when_ids_change_and_another_is_missed():
    ids, segments = _map({5: (10, 10), 6: (10, 50), 7: (50, 30)})
    other_ids, other_segments = _map({31: (50, 30), 22: (11, 10)})
    colors = segment_colors(ids, segments, CATEGORIES)
    other = segment_colors(other_ids, other_segments, CATEGORIES)
    assert (other[31], other[22], other[1]) == (colors[7], colors[5], colors[1])
    assert colors == segment_colors(ids, list(reversed(segments)), CATEGORIES)


def test_instances_differ_until_shades_run_out_then_all_are_used_again():
    centres = {k + 2: (4 + 8 * (k // 8), 4 + 8 * (k % 8)) for k in range(2 * NUM_SHADES)}
    ids, segments = _map(centres)
    colors = segment_colors(ids, segments, CATEGORIES)
    used = [colors[k] for k in centres]
    assert all(used.count(shade) == 2 for shade in instance_shades((220, 60, 60)))
    assert colors[1] == (120, 170, 220)

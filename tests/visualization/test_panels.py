from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from lqn_seg.errors import InputError
from lqn_seg.visualization.files import save_png
from lqn_seg.visualization.palette import VOID_COLOR
from lqn_seg.visualization.panels import (
    CATEGORY_DIFFERS,
    DIFFERENCE_LEGEND,
    INSTANCE_DIFFERS,
    SAME,
    Cell,
    Row,
    Segmentation,
    cell_size,
    comparison_row,
    difference_map,
    draw_difference,
    legend_entries,
    one_segment_per_class,
    overlay,
    panel,
)

CATEGORIES = [
    SimpleNamespace(name="sky", isthing=False, color=(0, 0, 255)),
    SimpleNamespace(name="disc", isthing=True, color=(255, 0, 0)),
    SimpleNamespace(name="square", isthing=True, color=(0, 255, 0)),
]
SKY, DISC, SQUARE = 0, 1, 2


def _segments(**ids):
    names = {"sky": SKY, "disc": DISC, "square": SQUARE}
    return [{"id": i, "category_id": names[n[:-1]]} for n, i in ids.items()]


def _scene():
    ids = np.zeros((12, 12), np.int32)
    ids[:, :6] = 7
    return np.full((12, 12, 3), 100, np.uint8), Segmentation(ids, _segments(sky1=7))


def test_overlay_colors_segments_and_leaves_void_as_it_is():
    drawn = overlay(*_scene(), CATEGORIES)
    assert (drawn[:, :5] == (30, 30, 208)).all()  # most of the way from grey 100 to blue
    assert (drawn[:, 5] > 200).all()  # the border, on the side of the left pixel
    void = drawn[:, 6:]
    untouched = (void == 100).all(-1)
    hatched = (void == VOID_COLOR).all(-1)
    assert (untouched | hatched).all()
    assert untouched.mean() > 0.8 and hatched.any()


def test_overlay_at_a_larger_size_keeps_borders_one_pixel_wide():
    drawn = overlay(*_scene(), CATEGORIES, (36, 36))
    assert drawn.shape == (36, 36, 3)
    white = (drawn > 200).all(-1)
    assert white.sum() == 36 and white[:, 17].all()


def test_a_semantic_map_has_one_segment_per_class():
    segments = one_segment_per_class(np.array([[0, 3], [1, 3]])).segments
    assert [(s["id"], s["category_id"]) for s in segments] == [(1, 0), (3, 2)]


def test_difference_map_by_hand():
    # columns: sky | the same disc under other ids | disc vs square | two discs merged into one
    first = Segmentation(
        np.array([[1, 2, 3, 4, 4, 5]] * 2), _segments(sky1=1, disc1=2, disc2=3, disc3=4, disc4=5)
    )
    second = Segmentation(
        np.array([[9, 3, 8, 6, 6, 6]] * 2), _segments(sky1=9, disc1=3, square1=8, disc2=6)
    )
    same, category, instance = SAME, CATEGORY_DIFFERS, INSTANCE_DIFFERS
    # Segment 4 has IoU 2/3 with segment 6: a match. Segment 5 has 1/3: none.
    expected = [[same, same, category, same, same, instance]] * 2
    assert difference_map(first, second, CATEGORIES).tolist() == expected
    assert difference_map(second, first, CATEGORIES).tolist() == expected


def test_difference_map_needs_more_than_half_for_a_match():
    first = Segmentation(np.array([[1, 1, 2, 2]]), _segments(disc1=1, disc2=2))
    second = Segmentation(np.array([[1, 1, 1, 1]]), _segments(disc1=1))
    assert (difference_map(first, second, CATEGORIES) == INSTANCE_DIFFERS).all()  # IoU 0.5 each


def test_difference_map_counts_void_as_a_category_and_stuff_has_no_instances():
    first = Segmentation(np.array([[0, 0, 1, 1]]), _segments(sky1=1))
    second = Segmentation(np.array([[0, 2, 2, 3]]), _segments(sky1=2, sky2=3))
    assert difference_map(first, second, CATEGORIES).tolist() == [[SAME, CATEGORY_DIFFERS, 0, 0]]


def test_difference_map_of_semantic_maps_knows_no_instances():
    first, second = (one_segment_per_class(np.array([x])) for x in ([2, 1, 1, 1], [2, 2, 2, 2]))
    things = [c for c in CATEGORIES if c.isthing] * 2
    expected = [[SAME, CATEGORY_DIFFERS, CATEGORY_DIFFERS, CATEGORY_DIFFERS]]
    assert difference_map(first, second, things).tolist() == expected


def test_draw_difference_colors_only_what_differs():
    image = np.full((1, 3, 3), 200, np.uint8)
    drawn = draw_difference(image, np.array([[0, 1, 2]], np.uint8), (1, 3))
    assert len(set(drawn[0, 0])) == 1  # grey
    for pixel, (_, color) in zip(drawn[0, 1:], DIFFERENCE_LEGEND[:2]):
        assert np.abs(pixel.astype(int) - color).max() < 60


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((96, 96), (288, 288)),
        ((48, 96), (144, 288)),
        ((480, 640), (240, 320)),
        ((300, 40), (300, 40)),
    ],
)
def test_cell_size(shape, expected):
    assert cell_size(*shape) == expected


def test_a_repeated_title_is_written_once_and_labels_take_a_strip():
    picture = np.zeros((40, 50, 3), np.uint8)
    plain = panel([Row([Cell(picture), Cell(picture)])] * 2).shape
    assert plain[0] > 80 and plain[1] > 100
    one_row = panel([Row([Cell(picture, "a"), Cell(picture, "b")])]).shape
    two_rows = panel([Row([Cell(picture, "a"), Cell(picture, "b")], "clean")] * 2).shape
    bar = two_rows[0] - plain[0]
    assert bar == one_row[0] - panel([Row([Cell(picture)] * 2)]).shape[0] > 0
    assert two_rows[1] > plain[1]
    rows = [Row([Cell(picture, "a", f"PQ {k}")]) for k in range(2)]
    assert panel(rows).shape[0] == plain[0] + 2 * bar


def _find(drawn, picture) -> tuple[int, int]:
    """Row and column of the upper left corner of a picture in a panel."""
    h, w = picture.shape[:2]
    column, row = cv2.minMaxLoc(cv2.matchTemplate(drawn, picture, cv2.TM_SQDIFF))[2]
    assert (drawn[row : row + h, column : column + w] == picture).all()
    return row, column


def test_panel_holds_the_pictures_unchanged_and_fits_long_text():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 60, 80, 3), dtype=np.uint8)
    title = "a title far too long for a picture of this width"
    row = Row([Cell(p, title, "PQ 61.3") for p in pictures], "a label too long for it")
    drawn = panel([row], [("entry " * 40, (1, 2, 3))] * 3)
    (top, left), (other_top, right) = (_find(drawn, picture) for picture in pictures)
    assert top == other_top
    # Nothing but paper between the pictures and at the right edge.
    assert (drawn[top : top + 60, left + 80 : right] == 255).all()
    assert (drawn[:, right + 80 :] == 255).all()


def test_panel_draws_titles_labels_and_legend():
    picture = np.random.default_rng(0).integers(128, 256, (60, 90, 3), dtype=np.uint8)
    legend = [("sky", (0, 0, 255)), ("disc", (255, 0, 0))]
    drawn = panel([Row([Cell(picture, "LQN", "PQ 61.3")], "fog")], legend)
    for _, color in legend:
        assert (drawn == color).all(-1).sum() > 100
    top, left = _find(drawn, picture)
    assert (drawn[:top] < 128).any()  # title
    assert (drawn[top : top + 60, :left] < 128).any()  # label


def test_legend_names_what_occurs_in_table_order():
    first = Segmentation(np.array([[3, 4]]), _segments(square1=3, disc1=4))
    second = Segmentation(np.array([[0, 4]]), _segments(disc1=4))
    names = [name for name, _ in legend_entries([first], CATEGORIES)]
    assert names == ["disc", "square"]
    names = [name for name, _ in legend_entries([first, second], CATEGORIES)]
    assert names == ["disc", "square", "no segment"]


def test_comparison_row_has_one_cell_per_picture_and_says_how_much_differs():
    image, truth = _scene()
    nothing = Segmentation(np.zeros_like(truth.ids), [])
    predictions = {"EoMT": truth, "LQN": nothing}
    row = comparison_row(image, truth, predictions, CATEGORIES, "clean", {"LQN": "PQ 61.3"})
    assert [c.title for c in row.cells] == ["image", "ground truth", "EoMT", "LQN", "LQN vs EoMT"]
    assert row.cells[3].figure == "PQ 61.3" and row.cells[4].note == "50.0% of pixels"
    assert {c.image.shape for c in row.cells} == {(276, 276, 3)}
    without = comparison_row(image, None, {"A": truth}, CATEGORIES)
    assert [c.title for c in without.cells] == ["image", "A", "A vs A"]


def test_save_png_round_trip_leaves_nothing_else(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save_png(image, tmp_path / "new" / "a.png")
    assert (np.asarray(Image.open(path)) == image).all()
    save_png(255 - image, path)
    assert (np.asarray(Image.open(path)) == 255 - image).all()
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_save_png_to_an_impossible_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for place in ("file/a.png", "folder.png"):
        with pytest.raises(InputError, match=rf"cannot write .*{place}"):
            save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / place)
    assert len(list(tmp_path.iterdir())) == 2

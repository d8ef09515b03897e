"""Overlays, difference maps and comparison panels. Images are uint8 (H, W, 3) RGB."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lqn_seg.visualization.palette import (
    OUTLINE,
    VOID_COLOR,
    CategoryLike,
    Color,
    category_color,
    segment_colors,
)

Size = tuple[int, int]  # height, width
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SAME, CATEGORY_DIFFERS, INSTANCE_DIFFERS = 0, 1, 2
_DIFFERENCE_COLORS: dict[int, Color] = {
    CATEGORY_DIFFERS: (226, 38, 96),
    INSTANCE_DIFFERS: (250, 176, 5),
}
DIFFERENCE_LEGEND: tuple[tuple[str, Color], ...] = (
    ("category differs", _DIFFERENCE_COLORS[CATEGORY_DIFFERS]),
    ("only the instance differs", _DIFFERENCE_COLORS[INSTANCE_DIFFERS]),
    ("outline of what differs", OUTLINE),
)

_INK, _MUTED, _WARNING, _PAPER = (28, 30, 36), (110, 114, 124), (179, 18, 58), (255, 255, 255)
_OPACITY = 0.7  # of a segment's colour
_TITLE, _LABEL, _SMALL = (ImageFont.load_default(size) for size in (17, 15, 14))
# Lengths in px. A bar is a row of titles, a margin at the left may hold labels.
_GUTTER, _MARGIN, _LABEL_MARGIN, _BAR = 6, 14, 27, 26
_LEGEND_LINE, _SWATCH, _CAPTION_LINE = 24, 14, 19


class Segmentation(NamedTuple):
    """A panoptic map (H, W), 0 = void, and its segments (`id`, contiguous `category_id`)."""

    ids: np.ndarray
    segments: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One picture of a panel."""

    image: np.ndarray
    title: str = ""  # above it
    figure: str = ""  # at the right of the title, such as "PQ 61.3"
    note: str = ""  # inside its lower right corner


@dataclass(frozen=True)
class Row:
    """One row of a panel."""

    cells: Sequence[Cell]
    label: str = ""  # written sideways at the left


def one_segment_per_class(ids: np.ndarray) -> Segmentation:
    """A segmentation of a semantic map (H, W) of classes + 1, 0 = void."""
    present = [int(i) for i in np.unique(ids) if i]
    return Segmentation(ids, [{"id": i, "category_id": i - 1, "isthing": False} for i in present])


def overlay(
    image: np.ndarray,
    segmentation: Segmentation,
    categories: Sequence[CategoryLike],
    size: Size | None = None,
    strength: float = _OPACITY,
) -> np.ndarray:
    """The image with its segments in colour and their borders in white, one pixel wide at `size`.
    Pixels of no segment keep the image's own colours under thin hatching. `strength`: opacity of a
    segment's colour."""
    ids, segments = segmentation
    colors = segment_colors(ids, segments, categories)
    if size is not None:
        image, ids = _resize_image(image, size), _resize_ids(ids, size)
    painted = _by_id(ids, colors, VOID_COLOR).astype(np.float32)
    opacity = np.where(ids[..., None] > 0, np.float32(strength), np.float32(0))
    drawn = (1 - opacity) * image + opacity * painted
    hatching = np.add.outer(*map(np.arange, ids.shape)) % 7 == 0
    drawn[(ids == 0) & hatching] = VOID_COLOR
    borders = np.zeros(ids.shape, dtype=bool)  # to the right or lower neighbour
    borders[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    borders[:-1] |= ids[:-1] != ids[1:]
    drawn[borders] = 0.15 * drawn[borders] + 0.85 * 255
    return drawn.round().astype(np.uint8)


def difference_map(
    first: Segmentation, second: Segmentation, categories: Sequence[CategoryLike]
) -> np.ndarray:
    """Where two segmentations of one size disagree, as a uint8 map (H, W) of three values.

    `CATEGORY_DIFFERS`: different categories (void counts as one). `INSTANCE_DIFFERS`: same thing
    category, but the two segments are no match; a match is an IoU above 0.5, which makes it unique
    (Kirillov et al., Panoptic Segmentation, 2019, Theorem 1). `SAME`: everything else.
    """
    category, other = (
        _by_id(s.ids, {int(x["id"]): int(x["category_id"]) for x in s.segments}, -1)
        for s in (first, second)
    )
    result = np.where(category == other, SAME, CATEGORY_DIFFERS)
    things = np.array([bool(c.isthing) for c in categories] + [False])  # [-1] is void
    both_thing = (result == SAME) & things[category]
    for each in (first, second):  # a semantic map has one segment for a thing's class
        whole = {int(x["id"]): int(not x.get("isthing", True)) for x in each.segments}
        both_thing &= _by_id(each.ids, whole, 0) == 0
    pairs, overlap = np.unique(
        np.stack([first.ids[both_thing], second.ids[both_thing]]), axis=1, return_counts=True
    )
    area, other_area = (
        dict(zip(*np.unique(s.ids, return_counts=True), strict=True)) for s in (first, second)
    )
    for (a, b), intersection in zip(pairs.T, overlap):
        if 2 * intersection <= area[a] + other_area[b] - intersection:
            result[both_thing & (first.ids == a) & (second.ids == b)] = INSTANCE_DIFFERS
    return result.astype(np.uint8)


def draw_difference(image: np.ndarray, differences: np.ndarray, size: Size) -> np.ndarray:
    """A `difference_map` over a pale grey copy of the image; see `DIFFERENCE_LEGEND`."""
    image, differences = _resize_image(image, size), _resize_ids(differences, size)
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    drawn = np.repeat((140 + 0.42 * grey)[..., None], 3, axis=2)
    for value, color in _DIFFERENCE_COLORS.items():
        where = differences == value
        drawn[where] = 0.25 * drawn[where] + 0.75 * np.array(color, dtype=np.float32)
    return drawn.clip(0, 255).round().astype(np.uint8)


def outline_changes(drawn: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """A picture, at any size, with the outlines of what differs, two pixels wide."""
    changed = _resize_ids(differences, (drawn.shape[0], drawn.shape[1])) != SAME
    cross = np.zeros((5, 5), np.uint8)
    cross[[0, 2, 2, 2, 4], [2, 0, 2, 4, 2]] = 1  # what lies two pixels inside
    inner = cv2.erode(changed.astype(np.uint8), cross, borderValue=0)
    outlined = drawn.copy()
    outlined[changed & (inner == 0)] = OUTLINE
    return outlined


def legend_entries(
    segmentations: Sequence[Segmentation], categories: Sequence[CategoryLike]
) -> list[tuple[str, Color]]:
    """Name and colour of every category that occurs in any of the segmentations, in table order,
    and "no segment" if some pixel belongs to none."""
    present = {int(s["category_id"]) for seg in segmentations for s in seg.segments}
    entries = [(categories[i].name, category_color(categories[i], i)) for i in sorted(present)]
    if any((seg.ids == 0).any() for seg in segmentations):
        entries.append(("no segment", VOID_COLOR))
    return entries


def cell_size(height: int, width: int) -> Size:
    """The size at which a panel shows an image: about 256 to 320 px on its longer side. Small ones
    grow by a whole factor."""
    longest = max(height, width)
    if longest <= 320:
        factor = max(1, round(272 / longest))
        return factor * height, factor * width
    return max(1, round(height * 320 / longest)), max(1, round(width * 320 / longest))


def comparison_row(
    image: np.ndarray,
    ground_truth: Segmentation | None,
    predictions: Mapping[str, Segmentation],
    categories: Sequence[CategoryLike],
    label: str = "",
    figures: Mapping[str, str] | None = None,
) -> Row:
    """Image, ground truth if there is one, one overlay per prediction, with what differs from the
    first outlined, and where the last differs from the first. `figures`: as in `Cell`, by method.
    """
    size = cell_size(*image.shape[:2])
    cells = [Cell(_resize_image(image, size), "image")]
    if ground_truth is not None:
        cells.append(Cell(overlay(image, ground_truth, categories, size), "ground truth"))
    first = next(iter(predictions.values()))
    for name, prediction in predictions.items():
        drawn = overlay(image, prediction, categories, size)
        changes = difference_map(first, prediction, categories)
        cells.append(Cell(outline_changes(drawn, changes), name, (figures or {}).get(name, "")))
    names, note = list(predictions), f"{100 * (changes != SAME).mean():.1f}% of pixels"
    drawn = draw_difference(image, changes, size)
    return Row([*cells, Cell(drawn, f"{names[-1]} vs {names[0]}", note=note)], label)


def panel(rows: Sequence[Row], legend: Sequence[tuple[str, Color]] = ()) -> np.ndarray:
    """Rows of titled pictures on white, with row labels at the left and a legend at the bottom. A
    title that repeats the one above it, figure included, is written once."""
    columns = zip(*(row.cells for row in rows), strict=True)
    widths = [max(cell.image.shape[1] for cell in column) for column in columns]
    left = _MARGIN + (_LABEL_MARGIN if any(row.label for row in rows) else 0)
    lefts = [left + sum(widths[:k]) + _GUTTER * k for k in range(len(widths))]
    width = lefts[-1] + widths[-1] + _MARGIN
    strips = [_paper(width, _MARGIN)]
    for row, above in zip(rows, [None, *rows[:-1]]):
        strips += [_paper(width, _GUTTER)] if above else []
        strips.append(_draw_row(row, above, lefts, widths, width))
    strips += [_draw_legend(legend, left, width)] if legend else []
    return np.concatenate([*map(np.asarray, strips), np.asarray(_paper(width, _MARGIN))])


def captioned(
    picture: np.ndarray, sentences: Sequence[str], warnings: Sequence[str] = ()
) -> np.ndarray:
    """A picture with sentences above it on white, broken to its width; warnings first, in red."""
    width = picture.shape[1]
    lines = [
        (line, ink)
        for texts, ink in ((warnings, _WARNING), (sentences, _INK))
        for text in texts
        for line in broken(text, _SMALL, width - 2 * _MARGIN)
    ]
    if not lines:
        return picture
    strip = _paper(width, len(lines) * _CAPTION_LINE + _MARGIN)
    draw = ImageDraw.Draw(strip)
    for k, (line, ink) in enumerate(lines):
        middle = _MARGIN + k * _CAPTION_LINE + _CAPTION_LINE // 2
        draw.text((_MARGIN, middle), line, ink, _SMALL, anchor="lm")
    return np.concatenate([np.asarray(strip), picture])


def broken(text: str, font: Font, room: int) -> list[str]:
    """A text in lines of at most `room` pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _paper(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), _PAPER)


def _draw_row(
    row: Row, above: Row | None, lefts: Sequence[int], widths: Sequence[int], width: int
) -> Image.Image:
    """A row as wide as the panel, with a bar of titles where any does not repeat the one above."""
    titles = [(cell.title, cell.figure) for cell in row.cells]
    titles_above = [(c.title, c.figure) for c in above.cells] if above else [None] * len(titles)
    shown = [any(title) and title != up for title, up in zip(titles, titles_above)]
    top = _BAR if any(shown) else 0
    height = max(cell.image.shape[0] for cell in row.cells)
    strip = _paper(width, top + height)
    draw = ImageDraw.Draw(strip)
    for cell, has_title, left, room in zip(row.cells, shown, lefts, widths):
        if has_title:
            _draw_title(draw, cell, left, room)
        h, w = cell.image.shape[:2]
        x, y = left + (room - w) // 2, top + (height - h) // 2
        strip.paste(Image.fromarray(cell.image), (x, y))
        if cell.note:
            _draw_note(draw, cell.note, x + w, y + h)
    if row.label:  # reads upwards
        label, text = _paper(height, 23), _fitted(row.label, _LABEL, height)
        middle = (height / 2, 11.5)
        ImageDraw.Draw(label).text(middle, text, _INK, _LABEL, anchor="mm", stroke_width=0.3)
        strip.paste(label.rotate(90, expand=True), (_MARGIN - 4, top))
    return strip


def _draw_title(draw: ImageDraw.ImageDraw, cell: Cell, left: int, width: int) -> None:
    figure = _fitted(cell.figure, _SMALL, width)
    title = _fitted(cell.title, _TITLE, width - (_SMALL.getlength(figure) + 10 if figure else 0))
    # A stroke of a third of a pixel is the nearest thing to bold that Pillow's own font has.
    draw.text((left, 11), title, _INK, _TITLE, anchor="lm", stroke_width=0.35)
    draw.text((left + width, 11), figure, _MUTED, _SMALL, anchor="rm")


def _draw_note(draw: ImageDraw.ImageDraw, note: str, right: int, bottom: int) -> None:
    """A note on a white tag whose lower right corner is (right, bottom)."""
    width = int(_SMALL.getlength(note)) + 12
    draw.rectangle((right - width, bottom - 22, right - 1, bottom - 1), fill=_PAPER)
    draw.text((right - width / 2, bottom - 10), note, _INK, _SMALL, anchor="mm")


def _draw_legend(legend: Sequence[tuple[str, Color]], left: int, width: int) -> Image.Image:
    gap, entries, x, y = _SWATCH + 7, [], left, 10
    for text, color in legend:
        text = _fitted(text, _SMALL, width - left - _MARGIN - gap)
        length = gap + int(_SMALL.getlength(text))
        if x > left and x + length > width - _MARGIN:
            x, y = left, y + _LEGEND_LINE
        entries.append((x, y, text, color))
        x += length + 22
    strip = _paper(width, y + _LEGEND_LINE)
    draw = ImageDraw.Draw(strip)
    for x, y, text, color in entries:
        swatch = (x, y + 5, x + _SWATCH, y + 5 + _SWATCH)
        draw.rounded_rectangle(swatch, radius=3, fill=color)
        if color == VOID_COLOR:  # as in `overlay`
            draw.line(swatch, fill=_PAPER)
        draw.text((x + gap, y + 12), text, _INK, _SMALL, anchor="lm")
    return strip


def _fitted(text: str, font: Font, room: float) -> str:
    """The text, cut with an ellipsis if it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text.rstrip() + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def _by_id(ids: np.ndarray, values: Mapping[int, Any], void: Any) -> np.ndarray:
    """(H, W, ...) the value of each pixel's id."""
    unique, inverse = np.unique(ids, return_inverse=True)
    return np.array([values.get(int(i), void) for i in unique])[inverse.reshape(ids.shape)]


def _resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Nearest neighbour when growing (the model's pixels stay visible), Lanczos when shrinking."""
    growing = size[0] >= image.shape[0] and size[1] >= image.shape[1]
    method = Image.Resampling.NEAREST if growing else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), method))


def _resize_ids(ids: np.ndarray, size: Size) -> np.ndarray:
    """Nearest neighbour at pixel centres."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, ids.shape)
    )
    return ids[rows[:, None], columns]

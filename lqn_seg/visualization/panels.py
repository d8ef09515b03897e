"""Overlays, difference maps and comparison panels, drawn with numpy and Pillow into files.

Images are uint8 (H, W, 3) RGB arrays. A segmentation is a panoptic prediction or ground truth:
an integer map (H, W) with 0 = void, and one dict per segment with `id` and `category_id`, the
latter an index into the data set's categories (contiguous ids, not the ids of a COCO file).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lqn_seg.errors import InputError
from lqn_seg.visualization.palette import (
    OUTLINE,
    VOID_COLOR,
    CategoryLike,
    Color,
    category_color,
    segment_colors,
)

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

_INK, _MUTED, _PAPER = (28, 30, 36), (110, 114, 124), (255, 255, 255)
_GUTTER, _MARGIN = 6, 14
_TITLE, _LABEL, _SMALL = 17, 15, 14  # font sizes, px
_BAR = 26  # height of a row of titles, px


class Segmentation(NamedTuple):
    """A panoptic map (H, W), 0 = void, and its segments (`id`, contiguous `category_id`)."""

    ids: np.ndarray
    segments: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One picture of a panel.

    `title` stands above it, `figure` ("PQ 61.3") at the right of the title, and `note` inside the
    picture's lower right corner.
    """

    image: np.ndarray
    title: str = ""
    figure: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a panel and its label, which is written sideways at the left."""

    cells: Sequence[Cell]
    label: str = ""


def overlay(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    categories: Sequence[CategoryLike],
    *,
    alpha: float = 0.7,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The image with its segments in colour and their borders in white.

    Pixels of no segment keep the image's own colours under thin hatching, so that what a
    prediction left out stands out and can still be looked at.

    Args:
        image: uint8 (H, W, 3).
        ids: (H, W) integers, 0 = void.
        segments: one dict per segment, `id` and `category_id` (index into `categories`).
        categories: in the order of their contiguous ids.
        alpha: share of the segment's colour, 0..1; 1 hides the image under segments.
        size: (height, width) to draw at; borders are one pixel wide at this size.

    Raises:
        InputError: wrong shapes or types, or a map with ids that `segments` does not list.
    """
    _check_segmentation(image, ids, segments)
    colors = segment_colors(ids, segments, categories)
    if size is not None:
        image, ids = _resize_image(image, size), _resize_ids(ids, size)
    unique, inverse = np.unique(ids, return_inverse=True)
    table = np.array([colors.get(int(i), VOID_COLOR) for i in unique], dtype=np.float32)
    painted = table[inverse.reshape(ids.shape)]
    share = np.where(ids[..., None] > 0, np.float32(alpha), np.float32(0))
    drawn = (1 - share) * image + share * painted
    drawn[(ids == 0) & _hatching(*ids.shape)] = VOID_COLOR
    drawn[_borders(ids)] = 0.15 * drawn[_borders(ids)] + 0.85 * 255
    return drawn.round().astype(np.uint8)


def difference_map(
    first: Segmentation, second: Segmentation, categories: Sequence[CategoryLike]
) -> np.ndarray:
    """Where two panoptic results disagree, as a uint8 map (H, W) of three values.

    `CATEGORY_DIFFERS`: the two maps give the pixel different categories (void counts as one).
    `INSTANCE_DIFFERS`: same thing category, but the two segments are not each other's match; a
    match is an IoU above 0.5, which makes it unique (Kirillov et al., Panoptic Segmentation, 2019,
    Theorem 1). `SAME`: everything else. Segment ids themselves are never compared.

    Raises `InputError` if the maps differ in shape or list unknown ids.
    """
    if first.ids.shape != second.ids.shape:
        raise InputError(
            f"Cannot compare segmentations of different sizes, {first.ids.shape} and "
            f"{second.ids.shape}."
        )
    category_first, category_second = _category_map(first), _category_map(second)
    result = np.where(category_first == category_second, SAME, CATEGORY_DIFFERS)
    things = np.array([bool(c.isthing) for c in categories] + [False])  # [-1] is void
    both_thing = (result == SAME) & things[category_first]
    pairs, overlap = np.unique(
        np.stack([first.ids[both_thing], second.ids[both_thing]]), axis=1, return_counts=True
    )
    area_first, area_second = _areas(first.ids), _areas(second.ids)
    for (a, b), intersection in zip(pairs.T, overlap):
        union = area_first[int(a)] + area_second[int(b)] - int(intersection)
        if 2 * int(intersection) <= union:
            result[both_thing & (first.ids == a) & (second.ids == b)] = INSTANCE_DIFFERS
    return result.astype(np.uint8)


def draw_difference(
    image: np.ndarray, differences: np.ndarray, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A `difference_map` over a pale grey copy of the image; see `DIFFERENCE_LEGEND`.

    Args:
        image: uint8 (H, W, 3).
        differences: (H, W), values of `difference_map`.
        size: (height, width) to draw at.
    """
    _check_image(image)
    if differences.shape != image.shape[:2]:
        raise InputError(f"The difference map is {differences.shape}, the image {image.shape[:2]}.")
    if size is not None:
        image, differences = _resize_image(image, size), _resize_ids(differences, size)
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    drawn = np.repeat((140 + 0.42 * grey)[..., None], 3, axis=2)
    for value, color in _DIFFERENCE_COLORS.items():
        where = differences == value
        drawn[where] = 0.25 * drawn[where] + 0.75 * np.array(color, dtype=np.float32)
    return drawn.clip(0, 255).round().astype(np.uint8)


def outline_changes(drawn: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """A picture with the outlines of what differs, two pixels wide, in a colour of their own.

    Args:
        drawn: uint8 (H, W, 3), at any size.
        differences: (h, w), values of `difference_map`.
    """
    _check_image(drawn)
    changed = _resize_ids(differences, (drawn.shape[0], drawn.shape[1])) != SAME
    framed = np.pad(changed, 2)
    inner = changed.copy()
    for rows, columns in ((0, 2), (4, 2), (2, 0), (2, 4)):  # what lies two pixels inside
        inner &= framed[rows : rows + changed.shape[0], columns : columns + changed.shape[1]]
    outlined = drawn.copy()
    outlined[changed & ~inner] = OUTLINE
    return outlined


def legend_entries(
    segmentations: Sequence[Segmentation], categories: Sequence[CategoryLike]
) -> list[tuple[str, Color]]:
    """Name and colour of every category that occurs in any of the segmentations, in table order.

    A last entry, "no segment", is there if some pixel belongs to none.
    """
    present = {int(s["category_id"]) for seg in segmentations for s in seg.segments}
    entries = [(categories[i].name, category_color(categories[i], i)) for i in sorted(present)]
    if any((seg.ids == 0).any() for seg in segmentations):
        entries.append(("no segment", VOID_COLOR))
    return entries


def cell_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a panel shows an image: about 256 to 320 px on its longer side.

    Small images grow by a whole factor, so that every pixel stays a square of one size; large ones
    shrink to 320 px.
    """
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
    *,
    reference: str,
    compared: str,
    label: str = "",
    figures: Mapping[str, str] | None = None,
) -> Row:
    """Image, ground truth if there is one, one overlay per prediction, and where two differ.

    Regions of a prediction that differ from the reference's are outlined.

    Args:
        image: uint8 (H, W, 3), as the model saw it.
        predictions: method name -> segmentation, drawn in this order.
        reference, compared: names of the two predictions of the last picture.
        figures: method name -> short text beside its title, for example "PQ 61.3".

    Raises:
        InputError: a name is not among the predictions, or a shape is wrong.
    """
    for name in (reference, compared):
        if name not in predictions:
            raise InputError(f"No prediction is named '{name}'; there are {list(predictions)}.")
    _check_image(image)
    size = cell_size(*image.shape[:2])
    cells = [Cell(_resize_image(image, size), "image")]
    if ground_truth is not None:
        drawn = overlay(image, *ground_truth, categories, size=size)
        cells.append(Cell(drawn, "ground truth"))
    for name, prediction in predictions.items():
        drawn = overlay(image, *prediction, categories, size=size)
        changes = difference_map(predictions[reference], prediction, categories)
        cells.append(Cell(outline_changes(drawn, changes), name, (figures or {}).get(name, "")))
    differences = difference_map(predictions[reference], predictions[compared], categories)
    share = f"{100 * (differences != SAME).mean():.1f}% of pixels"
    drawn = draw_difference(image, differences, size=size)
    cells.append(Cell(drawn, f"{compared} vs {reference}", note=share))
    return Row(cells, label)


def panel(rows: Sequence[Row], legend: Sequence[tuple[str, Color]] = ()) -> np.ndarray:
    """Rows of titled pictures on white, with row labels at the left and a legend at the bottom.

    A title that repeats the one above it, figure included, is written once. Within a column all
    cells are as wide as the widest; within a row as high as the highest; pictures are centred.

    Args:
        rows: equally long rows of cells; cells are drawn at the size they have.
        legend: (text, colour) entries; see `legend_entries` and `DIFFERENCE_LEGEND`.

    Returns:
        uint8 (H', W', 3).

    Raises:
        InputError: no rows, rows of different lengths, or a cell that is not a uint8 RGB image.
    """
    if not rows or not rows[0].cells:
        raise InputError("A panel needs at least one row with at least one picture.")
    if len({len(row.cells) for row in rows}) != 1:
        raise InputError(f"Rows of a panel differ in length: {[len(row.cells) for row in rows]}.")
    for row in rows:
        for cell in row.cells:
            _check_image(cell.image)
    widths = [max(c.image.shape[1] for c in column) for column in zip(*(r.cells for r in rows))]
    left = _MARGIN + (_LABEL + 12 if any(row.label for row in rows) else 0)
    lefts = [left + sum(widths[:k]) + _GUTTER * k for k in range(len(widths))]
    width = lefts[-1] + widths[-1] + _MARGIN
    legend_height = _draw_legend(None, legend, 0, left, width)
    height = _rows_height(rows) + legend_height + 2 * _MARGIN
    canvas = Image.new("RGB", (width, height), _PAPER)
    top = _MARGIN
    above: Row | None = None
    for row in rows:
        top = _draw_row(canvas, row, above, top, lefts, widths)
        above = row
    _draw_legend(ImageDraw.Draw(canvas), legend, height - _MARGIN - legend_height, left, width)
    return np.asarray(canvas).copy()


def save_png(image: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Write a uint8 (H, W, 3) image; the file appears whole or not at all. Returns its path.

    Folders are made as needed. Raises `InputError` if the image or the place is not usable.
    """
    _check_image(image)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".part", dir=path.parent)
    except OSError as error:
        raise InputError(f"Cannot write picture '{path}': {error.strerror or error}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            Image.fromarray(image).save(file, format="PNG")
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise InputError(f"Cannot write picture '{path}': {error.strerror or error}.") from error
    return path


# --- drawing ------------------------------------------------------------------------------------


def _titles_shown(row: Row, above: Row | None) -> list[bool]:
    """Which cells of a row get their title drawn: those that do not repeat the cell above."""
    return [
        bool(cell.title or cell.figure)
        and (above is None or (cell.title, cell.figure) != (up.title, up.figure))
        for cell, up in zip(row.cells, (above or row).cells)
    ]


def _rows_height(rows: Sequence[Row]) -> int:
    height = _GUTTER * (len(rows) - 1)
    for row, above in zip(rows, [None, *rows[:-1]]):
        height += max(cell.image.shape[0] for cell in row.cells)
        height += _BAR if any(_titles_shown(row, above)) else 0
    return height


def _draw_row(
    canvas: Image.Image,
    row: Row,
    above: Row | None,
    top: int,
    lefts: Sequence[int],
    widths: Sequence[int],
) -> int:
    """Draw one row at height `top`; returns where the next one starts."""
    shown = _titles_shown(row, above)
    draw = ImageDraw.Draw(canvas)
    if any(shown):
        for cell, visible, left, width in zip(row.cells, shown, lefts, widths):
            if visible:
                _draw_title(draw, cell, top + _BAR // 2 - 2, left, width)
        top += _BAR
    height = max(cell.image.shape[0] for cell in row.cells)
    for cell, left, width in zip(row.cells, lefts, widths):
        h, w = cell.image.shape[:2]
        corner = (left + (width - w) // 2, top + (height - h) // 2)
        canvas.paste(Image.fromarray(cell.image), corner)
        if cell.note:
            _draw_note(draw, cell.note, corner[0] + w, corner[1] + h)
    if row.label:
        _draw_label(canvas, row.label, top, height)
    return top + height + _GUTTER


def _draw_title(draw: ImageDraw.ImageDraw, cell: Cell, middle: int, left: int, width: int) -> None:
    """Title in ink at the left of the cell, figure in grey at its right."""
    figure_font = _font(_SMALL)
    figure = _fitted(cell.figure, figure_font, width)
    room = width - (figure_font.getlength(figure) + 10 if figure else 0)
    # A stroke of a third of a pixel is the nearest thing to bold that Pillow's own font has.
    title_font = _font(_TITLE)
    title = _fitted(cell.title, title_font, room)
    draw.text((left, middle), title, _INK, title_font, anchor="lm", stroke_width=0.35)
    draw.text((left + width, middle), figure, _MUTED, figure_font, anchor="rm")


def _draw_note(draw: ImageDraw.ImageDraw, note: str, right: int, bottom: int) -> None:
    """A note on a white tag whose lower right corner is (right, bottom)."""
    font = _font(_SMALL)
    width = int(font.getlength(note)) + 12
    draw.rectangle((right - width, bottom - 22, right - 1, bottom - 1), fill=_PAPER)
    draw.text((right - width / 2, bottom - 10), note, _INK, font, anchor="mm")


def _draw_label(canvas: Image.Image, label: str, top: int, height: int) -> None:
    """Row label, reading upwards, centred on the row."""
    font = _font(_LABEL)
    text = _fitted(label, font, height)
    strip = Image.new("RGB", (height, _LABEL + 8), _PAPER)
    position = (height / 2, (_LABEL + 8) / 2)
    ImageDraw.Draw(strip).text(position, text, _INK, font, anchor="mm", stroke_width=0.3)
    canvas.paste(strip.rotate(90, expand=True), (_MARGIN - 4, top))


def _draw_legend(
    draw: ImageDraw.ImageDraw | None,
    legend: Sequence[tuple[str, Color]],
    top: int,
    left: int,
    width: int,
) -> int:
    """Draw the legend in lines that fit the width (nothing for `draw=None`); returns its height."""
    if not legend:
        return 0
    font, line, swatch = _font(_SMALL), 24, 14
    x, y = left, top + 10
    for text, color in legend:
        text = _fitted(text, font, width - left - _MARGIN - swatch - 7)
        advance = swatch + 7 + int(font.getlength(text)) + 22
        if x > left and x + advance - 22 > width - _MARGIN:
            x, y = left, y + line
        if draw is not None:
            _draw_swatch(draw, x, y + 5, swatch, color)
            draw.text((x + swatch + 7, y + 12), text, _INK, font, anchor="lm")
        x += advance
    return y + line - top


def _draw_swatch(draw: ImageDraw.ImageDraw, x: int, y: int, side: int, color: Color) -> None:
    box = (x, y, x + side, y + side)
    if color != VOID_COLOR:
        draw.rounded_rectangle(box, radius=3, fill=color)
        return
    draw.rectangle(box, outline=VOID_COLOR)  # hatched, as `overlay` draws it
    for offset in (side // 2, side, side + side // 2):
        start, stop = min(offset, side), max(0, offset - side)
        draw.line((x + start, y + stop, x + stop, y + start), fill=VOID_COLOR)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The text, cut with an ellipsis if it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text.rstrip() + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


# --- maps ---------------------------------------------------------------------------------------


def _borders(ids: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour belongs to another segment."""
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edge[:-1] |= ids[:-1] != ids[1:]
    return edge


def _hatching(height: int, width: int) -> np.ndarray:
    """(H, W) bool: diagonal lines one pixel wide, seven pixels apart."""
    return (np.arange(height)[:, None] + np.arange(width)) % 7 == 0


def _category_map(segmentation: Segmentation) -> np.ndarray:
    """(H, W) contiguous category ids, -1 = void."""
    _check_ids(segmentation.ids, segmentation.segments)
    categories = {int(s["id"]): int(s["category_id"]) for s in segmentation.segments}
    unique, inverse = np.unique(segmentation.ids, return_inverse=True)
    table = np.array([categories.get(int(i), -1) for i in unique])
    return table[inverse.reshape(segmentation.ids.shape)]


def _areas(ids: np.ndarray) -> dict[int, int]:
    unique, counts = np.unique(ids, return_counts=True)
    return {int(i): int(n) for i, n in zip(unique, counts)}


def _resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour when growing (the model's pixels stay visible), Lanczos when shrinking."""
    growing = size[0] >= image.shape[0] and size[1] >= image.shape[1]
    method = Image.Resampling.NEAREST if growing else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), method))


def _resize_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour at pixel centres, for integer maps of any width."""
    rows = ((np.arange(size[0]) + 0.5) * ids.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * ids.shape[1] / size[1]).astype(int)
    return ids[rows[:, None], columns[None, :]]


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"Expected a uint8 RGB image (height, width, 3), got {image.dtype} {image.shape}."
        )


def _check_segmentation(
    image: np.ndarray, ids: np.ndarray, segments: Sequence[Mapping[str, Any]]
) -> None:
    _check_image(image)
    if ids.shape != image.shape[:2]:
        raise InputError(f"The panoptic map is {ids.shape}, the image {image.shape[:2]}.")
    _check_ids(ids, segments)


def _check_ids(ids: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"A panoptic map holds integer ids, got {ids.dtype}.")
    unknown = set(np.unique(ids).tolist()) - {int(s["id"]) for s in segments} - {0}
    if unknown:
        raise InputError(f"The panoptic map has ids {sorted(unknown)} that no segment lists.")

"""The one palette of every panel: a category keeps its colour, its instances are shades of it.
Colours are (red, green, blue) integers in 0..255, the same in every panel of a scene."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Color = tuple[int, int, int]

VOID_COLOR: Color = (90, 90, 98)  # thin hatching over pixels that belong to no segment
OUTLINE: Color = (255, 0, 200)  # around what changed: no table of categories uses it
SERIES_COLORS = (  # of lines and points in plots, in this order
    *("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7"),
    *("#a463f2", "#97bbf5", "#9c6b4e", "#9498a0", "#b8860b", "#111111", "#d14fb5"),
)
SERIES_MARKERS = "osD^vP*Xh<>"
SEQUENTIAL = "viridis"  # of what is measured per position: perceptually even, readable in grey
NUM_SHADES = 8

_GOLDEN_RATIO = 0.6180339887498949
# (hue shift in turns, lightness shift) of the shades after the colour itself; one is spare
_SHADES = (
    *((0.0, 0.17), (0.0, -0.15), (0.012, 0.08), (-0.012, -0.08)),
    *((-0.012, 0.23), (0.012, -0.22), (0.015, 0.03), (0.015, 0.12)),
)


class CategoryLike(Protocol):
    """What a panel needs of a category; `data.catalog.Category` has it."""

    @property
    def name(self) -> str: ...
    @property
    def isthing(self) -> bool | int: ...
    @property
    def color(self) -> Color | None: ...


def series_style(index: int) -> dict[str, Any]:
    """Colour and marker of a plot's line number `index`."""
    return {
        "color": SERIES_COLORS[index % len(SERIES_COLORS)],
        "marker": SERIES_MARKERS[index % len(SERIES_MARKERS)],
    }


def distinct_color(index: int) -> Color:
    """Colour number `index` of an endless fixed list, for a category without its own: hues advance
    by the golden ratio, and neighbours in hue differ in saturation or brightness."""
    hue = (0.02 + index * _GOLDEN_RATIO) % 1.0
    saturation = (0.72, 0.50, 0.88)[index // 8 % 3]
    value = (0.92, 0.74, 0.58)[index // 4 % 3]
    return _to_bytes(colorsys.hsv_to_rgb(hue, saturation, value))


def category_color(category: CategoryLike, index: int) -> Color:
    """The category's own colour, or `distinct_color(index)` if its table gives none."""
    return distinct_color(index) if category.color is None else category.color


def instance_shades(color: Color) -> tuple[Color, ...]:
    """Shades of one category's colour, all different; the first is the colour itself."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(v / 255 for v in color))
    # Room on both sides: a shade that left [0, 1] would be clipped into another one.
    centre = min(max(lightness, 0.26), 0.74)
    shades = [color]
    for hue_shift, lightness_shift in _SHADES:
        shifted = ((hue + hue_shift) % 1.0, centre + lightness_shift, saturation)
        shade = _to_bytes(colorsys.hls_to_rgb(*shifted))
        if shade not in shades:
            shades.append(shade)
    return tuple(shades[:NUM_SHADES])


def segment_colors(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], categories: Sequence[CategoryLike]
) -> dict[int, Color]:
    """Colour of every segment of one panoptic map (H, W): stuff takes its category's, things shades
    of it, by where in the picture they lie, so that an object keeps its colour from panel to panel;
    of two that would share a shade, the smaller takes the next free one."""
    by_category: dict[int, list[int]] = {}
    for segment in segments:
        by_category.setdefault(int(segment["category_id"]), []).append(int(segment["id"]))
    regions = _regions(ids)
    colors: dict[int, Color] = {}
    for category, members in by_category.items():
        base = category_color(categories[category], category)
        shades = instance_shades(base) if categories[category].isthing else (base,)
        # Largest first: a speck must not take the shade of the object it lies next to.
        members.sort(key=lambda m: (-regions.get(m, (0, 0))[0], m))
        taken: list[int] = []
        for member in members:
            index = regions.get(member, (0, 0))[1] % len(shades)
            while index in taken[len(taken) // len(shades) * len(shades) :]:
                index = (index + 1) % len(shades)
            taken.append(index)
            colors[member] = shades[index]
    return colors


def _regions(ids: np.ndarray) -> dict[int, tuple[int, int]]:
    """Per id: area in pixels, and the number of the shade that its centroid prefers: a checkerboard
    over a 4 x 4 grid of the picture, so that neighbours prefer different ones."""
    height, width = ids.shape
    unique, inverse, area = np.unique(ids, return_inverse=True, return_counts=True)
    rows = np.repeat((np.arange(height) + 0.5) / height, width)
    columns = np.tile((np.arange(width) + 0.5) / width, height)
    row, column = (np.bincount(inverse.reshape(-1), x) / area for x in (rows, columns))
    cells = 3 * np.minimum(4 * row, 3).astype(int) + np.minimum(4 * column, 3).astype(int)
    return dict(zip(unique.tolist(), zip(area.tolist(), cells.tolist())))


def _to_bytes(rgb: tuple[float, float, float]) -> Color:
    red, green, blue = (round(255 * v) for v in rgb)
    return red, green, blue

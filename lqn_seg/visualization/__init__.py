"""Pictures as files: one deterministic palette, overlays, difference maps, comparison panels.

Imports numpy and Pillow only. Nothing opens a window, and the same input gives the same pixels.
"""

from __future__ import annotations

from lqn_seg.visualization.palette import (
    VOID_COLOR,
    CategoryLike,
    Color,
    category_color,
    distinct_color,
    instance_shades,
    segment_colors,
)
from lqn_seg.visualization.panels import (
    CATEGORY_DIFFERS,
    DIFFERENCE_LEGEND,
    INSTANCE_DIFFERS,
    SAME,
    Cell,
    Row,
    Segmentation,
    comparison_row,
    difference_map,
    draw_difference,
    legend_entries,
    overlay,
    panel,
    save_png,
)

__all__ = [
    "CATEGORY_DIFFERS",
    "DIFFERENCE_LEGEND",
    "INSTANCE_DIFFERS",
    "SAME",
    "VOID_COLOR",
    "CategoryLike",
    "Cell",
    "Color",
    "Row",
    "Segmentation",
    "category_color",
    "comparison_row",
    "difference_map",
    "distinct_color",
    "draw_difference",
    "instance_shades",
    "legend_entries",
    "overlay",
    "panel",
    "save_png",
    "segment_colors",
]

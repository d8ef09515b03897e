"""Sentences above a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIZE, _LINE, _MARGIN = 14, 19, 14  # px
_INK, _WARNING, _PAPER = (28, 30, 36), (179, 18, 58), (255, 255, 255)


def captioned(
    picture: np.ndarray, sentences: Sequence[str], warnings: Sequence[str] = ()
) -> np.ndarray:
    """A picture (H, W, 3) uint8 with sentences above it on white, broken to its width.

    Args:
        warnings: further sentences, in red and before the others.
    """
    font, width = ImageFont.load_default(_SIZE), picture.shape[1]
    lines = [
        (line, ink)
        for texts, ink in ((warnings, _WARNING), (sentences, _INK))
        for text in texts
        for line in broken(text, font, width - 2 * _MARGIN)
    ]
    if not lines:
        return picture
    strip = Image.new("RGB", (width, len(lines) * _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(strip)
    for k, (line, ink) in enumerate(lines):
        middle = _MARGIN + k * _LINE + _LINE // 2
        draw.text((_MARGIN, middle), line, ink, font, anchor="lm")
    return np.concatenate([np.asarray(strip), picture])


def broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> list[str]:
    """A text in lines of at most `room` pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

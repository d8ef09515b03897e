"""Pictures and plots as files, each whole or not there at all; `stem` is a path without suffix.

Every writer makes folders as needed, and raises `InputError` where it cannot write.
"""

import base64
import contextlib
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from lqn_seg.errors import InputError

Pixels = NDArray[np.uint8]
_DPI = 110


def with_ending(stem: Path, ending: str) -> Path:
    """A path with ".png" or the like after its whole name: `with_suffix` would cut "IMG.2024"."""
    return stem.with_name(stem.name + ending)


def write_file(path: Path, content: bytes) -> Path:
    """Write a file; returns its path."""
    partial = with_ending(path, ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def png_bytes(image: Pixels) -> bytes:
    """A picture (H, W, 3) as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(image: Pixels, path: Path) -> Path:
    """Write a picture (H, W, 3); returns its path."""
    return write_file(path, png_bytes(image))


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a plot as PNG and as SVG; the same plot gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lqn_seg", "svg.fonttype": "none"}):
        figure.savefig(png, format="png", dpi=_DPI)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    contents = {".png": png, ".svg": svg}
    return [write_file(with_ending(stem, e), c.getvalue()) for e, c in contents.items()]


def save_picture(image: Pixels, stem: Path, title: str = "") -> list[Path]:
    """Write a picture (H, W, 3) as PNG, and as SVG that holds the same pixels."""
    (height, width), content = image.shape[:2], png_bytes(image)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<title>{escape(title or stem.name)}</title><image width="{width}" height="{height}" '
        f'href="data:image/png;base64,{base64.b64encode(content).decode()}"/></svg>\n'
    )
    contents = {".png": content, ".svg": svg.encode()}
    return [write_file(with_ending(stem, e), c) for e, c in contents.items()]


def save_gif(frames: Sequence[Pixels], path: Path, seconds: float = 0.6) -> Path:
    """Write frames of one size as an endless GIF; the last stays three times as long."""
    first, *rest = [Image.fromarray(frame).quantize(255) for frame in frames]
    durations = [round(1000 * seconds)] * len(rest) + [round(3000 * seconds)]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return write_file(path, buffer.getvalue())

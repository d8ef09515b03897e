"""The paper's figures, and what it could not print: drawn from arrays, into PNG and SVG files.

Nothing here runs a model (`lab.inspect.visualize` does), opens a window or depends on the time.
Images are uint8 (H, W, 3) RGB; `stem` is a path without suffix.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from lqn_seg.errors import InputError
from lqn_seg.visualization.palette import SEQUENTIAL, SERIES_COLORS, SERIES_MARKERS
from lqn_seg.visualization.panels import save_png

Float = NDArray[np.floating]
Pixels = NDArray[np.uint8]
_DPI = 110
_MEAN_TOKEN: dict[str, Any] = {
    "color": "black",
    "linewidth": 0.8,
    "linestyle": ":",
    "label": "the mean token",
}


def with_ending(stem: Path, ending: str) -> Path:
    """A path with ".png" or the like after its whole name: `with_suffix` would cut "IMG.2024"."""
    return stem.with_name(stem.name + ending)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make a file's folder; what then cannot be written is one sentence."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG, and as SVG beside it; the same figure gives the same bytes.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    written = [with_ending(stem, ".png"), with_ending(stem, ".svg")]
    style = matplotlib.rc_context({"svg.hashsalt": "lqn_seg", "svg.fonttype": "none"})
    with style, _writing(stem):
        FigureCanvasAgg(figure).print_figure(str(written[0]), dpi=_DPI)
        FigureCanvasSVG(figure).print_figure(str(written[1]), metadata={"Date": None})
    return written


def save_picture(image: Pixels, stem: Path, title: str = "") -> list[Path]:
    """Write a picture as PNG, and as SVG that holds the same pixels.

    Raises:
        InputError: they cannot be written.
    """
    path = save_png(image, with_ending(stem, ".png"))
    height, width = image.shape[:2]
    content = base64.b64encode(path.read_bytes()).decode()
    svg = with_ending(stem, ".svg")
    with _writing(svg):
        svg.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
            f"<title>{escape(title or stem.name)}</title><image "
            f'width="{width}" height="{height}" href="data:image/png;base64,{content}"/></svg>\n'
        )
    return [path, svg]


def save_gif(frames: Sequence[Pixels], path: Path, seconds: float = 0.6) -> Path:
    """Write frames of one size as an endless GIF; the last stays three times as long.

    Raises:
        InputError: it cannot be written.
    """
    first, *rest = [Image.fromarray(frame).quantize(255) for frame in frames]
    durations = [round(1000 * seconds)] * len(rest) + [round(3000 * seconds)]
    with _writing(path):
        first.save(
            path, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        )
    return path


def png_bytes(image: Pixels) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def draw_token_maps(
    image: Pixels,
    layers: Sequence[int],
    teacher: Sequence[Pixels],
    student: Sequence[Pixels],
    errors: Sequence[Float],
    stem: Path,
    *,
    name: str,
    heading: str,
) -> list[Path]:
    """Columns: layers. Rows: the teacher's tokens, the student's, and the error between them.

    Args:
        teacher, student: colour maps per layer.
        errors: (H, W) error over variance per layer.
        name: of the student.
    """
    count = len(layers)
    figure = Figure(figsize=(1.9 * (count + 1) + 0.8, 6.3), layout="constrained")
    axes = figure.subplots(3, count + 1, squeeze=False)
    for row in axes:
        row[0].axis("off")
    axes[0][0].imshow(image)
    axes[0][0].set_title("image", fontsize="medium")
    most = max(float(np.quantile(error, 0.98)) for error in errors)
    shown = None
    for k, layer in enumerate(layers):
        column = axes[:, k + 1]
        column[0].imshow(teacher[k])
        column[0].set_title(f"layer {layer}", fontsize="medium")
        column[1].imshow(student[k])
        shown = column[2].imshow(errors[k], cmap=SEQUENTIAL, vmin=0, vmax=most)
        column[2].set_xlabel(f"mean {errors[k].mean():.2f}")
        for cell in column:
            cell.set_xticks([])
            cell.set_yticks([])
    for row, label in zip(axes, ("teacher", name, "error / variance")):
        row[1].set_ylabel(label)
    assert shown is not None
    figure.colorbar(shown, ax=axes[2][-1], label="squared error / variance")
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_layer_errors(
    curves: Mapping[str, Sequence[float]], stem: Path, heading: str
) -> list[Path]:
    """Error over variance by layer, one line per student."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for k, (name, errors) in enumerate(curves.items()):
        axes.plot(np.arange(1, len(errors) + 1), errors, label=name, **_style(k))
    axes.axhline(1, **_MEAN_TOKEN)
    axes.set_xlabel("layer of the teacher")
    axes.set_ylabel("squared error / variance of the teacher's tokens")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.set_title(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_steps(
    steps: Sequence[int],
    pictures: Sequence[Pixels],
    errors: Sequence[float],
    scores: Sequence[float] | None,
    stem: Path,
    *,
    metric: str,
    heading: str,
) -> list[Path]:
    """The prediction after chosen steps of the fit above the error (and the score) by step."""
    columns = min(len(steps), 6)
    rows = -(-len(steps) // columns)
    figure = Figure(figsize=(1.75 * columns, 1.95 * rows + 3.2), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.95] * rows + [3.0])
    for k, (step, picture) in enumerate(zip(steps, pictures)):
        axes = figure.add_subplot(grid[k // columns, k % columns])
        axes.imshow(picture)
        axes.set_title(f"step {step}", fontsize="medium")
        axes.axis("off")
    below = figure.add_subplot(grid[rows, :])
    places = np.arange(len(steps))
    lines = below.plot(places, errors, label="error / variance", **_style(0))
    below.axhline(1, **{**_MEAN_TOKEN, "label": None})
    below.set_xticks(places, [str(step) for step in steps])
    below.set_xlabel("Adam steps made (not to scale)")
    below.set_ylabel("last layer's squared error / variance\n(1: the mean token)")
    below.set_ylim(bottom=0)
    if scores is not None:
        right = below.twinx()
        lines += right.plot(places, scores, label=metric, **_style(1))
        right.set_ylabel(f"{metric} of this image (0-100)")
        right.set_ylim(0, 100)
    below.legend(handles=lines, fontsize="small", loc="center left")
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_depth_times(
    teacher_ms: Sequence[float],
    student_ms: Sequence[float],
    fit_ms: float,
    stem: Path,
    heading: str,
) -> list[Path]:
    """Milliseconds to a layer's tokens: the teacher computes its way there, a student is asked.

    Args:
        teacher_ms, student_ms: medians by layer, from layer 1.
        fit_ms: what the student cost before it could be asked.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    layers = np.arange(1, len(teacher_ms) + 1)
    axes.plot(layers, teacher_ms, label="teacher: all layers up to it, O(l)", **_style(0))
    label = f"student: one query, O(1)\n(once before: {fit_ms:.0f} ms of fitting)"
    axes.plot(layers, student_ms, label=label, **_style(1))
    axes.set_xlabel("layer whose tokens are wanted")
    axes.set_ylabel("milliseconds, median")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.set_title(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_gauge(
    readings: Mapping[str, Sequence[tuple[float, float]]],
    undamaged: float,
    stem: Path,
    heading: str,
) -> list[Path]:
    """What the gauge saw, and what it decided, by corruption and severity.

    Args:
        readings: corruption -> (damage, the student's share) for severities 0 (none), 1, 2, ...
        undamaged: the damage that clean images stay below.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, values) in enumerate(readings.items()):
        damage, share = zip(*values)
        severities = np.arange(len(values))
        left.plot(severities, damage, label=name.replace("_", " "), **_style(k))
        right.plot(severities, share, label=name.replace("_", " "), **_style(k))
    edge: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": "--"}
    left.axhline(undamaged, label="clean images stay below;\nabove it, tokens are restored", **edge)
    left.legend(handles=left.lines[-1:], fontsize="small", loc="upper left")
    left.set_ylabel("damage at the patch embedding\n(r.m.s. log change of deviations)")
    left.set_ylim(bottom=0)
    right.set_ylabel("share of the student's answer in the whole")
    right.set_ylim(-0.03, 1.03)
    for axes in (left, right):
        axes.set_xlabel("severity (0: the image as it is)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_title("what the gauge saw", fontsize="medium")
    right.set_title("what it decided", fontsize="medium")
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_reconstruction(
    image: Pixels, found: Mapping[str, Pixels], stem: Path, heading: str
) -> list[Path]:
    """The input, what each student makes of it, and the error of every pixel below."""
    figure = Figure(figsize=(2.6 * (len(found) + 1) + 0.6, 5.6), layout="constrained")
    axes = figure.subplots(2, len(found) + 1, squeeze=False)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
    axes[0][0].imshow(image)
    axes[0][0].set_title("input", fontsize="medium")
    axes[1][0].axis("off")
    differences = {n: np.abs(image.astype(float) - p).mean(-1) for n, p in found.items()}
    most = max(1.0, *(float(np.quantile(d, 0.99)) for d in differences.values()))
    shown = None
    for (above, below), (name, picture) in zip(axes.T[1:], found.items()):
        above.imshow(picture)
        above.set_title(name, fontsize="medium")
        shown = below.imshow(differences[name], cmap=SEQUENTIAL, vmin=0, vmax=most)
        below.set_xlabel(f"PSNR {psnr(image, picture):.1f} dB\nmean {differences[name].mean():.1f}")
    assert shown is not None
    # Beside both pictures of the last column, or the lower one would be narrower than the upper.
    place: dict[str, Any] = {"ax": list(axes[:, -1]), "shrink": 0.45, "anchor": (0, 0.1)}
    figure.colorbar(shown, label="absolute error (0-255)", **place)
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def psnr(image: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    error = float(np.square(image.astype(float) - other).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def _style(place: int) -> dict[str, Any]:
    """Of the line at a place in the palette."""
    return {
        "color": SERIES_COLORS[place % len(SERIES_COLORS)],
        "marker": SERIES_MARKERS[place % len(SERIES_MARKERS)],
        "markersize": 5,
    }

"""The paper's figures, and what it could not print: drawn from arrays, into PNG and SVG files.
Images are uint8 (H, W, 3) RGB; `stem` is a path without suffix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lqn_seg.visualization.files import Pixels, save_figure
from lqn_seg.visualization.palette import SEQUENTIAL, series_style

Float = NDArray[np.floating]
_MEAN_TOKEN: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": ":"}


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
    """Columns: layers. Rows: colour maps of the teacher's tokens and of the student's (`name`), and
    the errors over variance (H, W) between them."""
    count = len(layers)
    figure = Figure(figsize=(1.9 * (count + 1) + 0.8, 6.3), layout="constrained")
    axes = figure.subplots(3, count + 1, squeeze=False)
    for row, label in zip(axes, ("teacher", name, "error / variance")):
        row[0].axis("off")
        row[1].set_ylabel(label)
    _show(axes[0][0], image, "image")
    most = max(float(np.quantile(error, 0.98)) for error in errors)
    for k, (above, middle, below) in enumerate(axes.T[1:]):
        _show(above, teacher[k], f"layer {layers[k]}")
        _show(middle, student[k])
        colors = below.imshow(errors[k], cmap=SEQUENTIAL, vmin=0, vmax=most)
        below.set(xlabel=f"mean {errors[k].mean():.2f}", xticks=[], yticks=[])
    figure.colorbar(colors, ax=axes[2][-1], label="squared error / variance")
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_by_layer(
    curves: Mapping[str, Sequence[float]],
    stem: Path,
    heading: str,
    *,
    xlabel: str = "layer of the teacher",
    ylabel: str = "squared error / variance of the teacher's tokens",
    mean_token: bool = True,
) -> list[Path]:
    """One line per name of `curves`, from layer 1, and one at 1 where `mean_token`."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for k, (name, values) in enumerate(curves.items()):
        layers = np.arange(1, len(values) + 1)
        axes.plot(layers, values, label=name, markersize=5, **series_style(k))
    if mean_token:
        axes.axhline(1, label="the mean token", **_MEAN_TOKEN)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.set_title(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_steps(
    steps: Sequence[int],
    pictures: Sequence[Pixels],
    errors: Sequence[float],
    scores: Sequence[float],
    stem: Path,
    *,
    metric: str,
    heading: str,
) -> list[Path]:
    """The prediction after some steps of the fit above the error (and the score, where there is
    ground truth) by step."""
    columns = min(len(steps), 6)
    rows = -(-len(steps) // columns)
    figure = Figure(figsize=(1.75 * columns, 1.95 * rows + 3.2), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.95] * rows + [3.0])
    for k, (step, picture) in enumerate(zip(steps, pictures)):
        axes = figure.add_subplot(grid[k // columns, k % columns])
        _show(axes, picture, f"step {step}")
        axes.axis("off")
    below = figure.add_subplot(grid[rows, :])
    x = np.arange(len(steps))
    lines = below.plot(x, errors, label="error / variance", markersize=5, **series_style(0))
    below.axhline(1, **_MEAN_TOKEN)
    below.set_xticks(x, [str(step) for step in steps])
    below.set_xlabel("Adam steps made (not to scale)")
    below.set_ylabel("last layer's squared error / variance\n(1: the mean token)")
    below.set_ylim(bottom=0)
    if scores:
        right = below.twinx()
        lines += right.plot(x, scores, label=metric, markersize=5, **series_style(1))
        right.set(ylabel=f"{metric} of this image (0-100)", ylim=(0, 100))
    below.legend(handles=lines, fontsize="small", loc="center left")
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_alignment(
    readings: Mapping[str, Sequence[tuple[float, float]]],
    undamaged: float,
    stem: Path,
    heading: str,
) -> list[Path]:
    """Damage measured at the patch embedding, and the student's mixing weight that follows from it:
    `readings` of both by corruption, for severities 0 (none), 1, 2, ...; clean images stay below
    the damage `undamaged`."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, values) in enumerate(readings.items()):
        style = {**series_style(k), "markersize": 5, "label": name.replace("_", " ")}
        for axes, ys in zip((left, right), zip(*values)):
            axes.plot(np.arange(len(values)), ys, **style)
    edge: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": "--"}
    left.axhline(
        undamaged, label="clean images stay below;\nabove it, statistics are aligned", **edge
    )
    left.legend(handles=left.lines[-1:], fontsize="small", loc="upper left")
    left.set_ylabel("damage at the patch embedding\n(r.m.s. log change of deviations)")
    left.set_ylim(bottom=0)
    right.set(ylabel="mixing weight of the student's tokens", ylim=(-0.03, 1.03))
    for axes, title in ((left, "damage"), (right, "mixing weight")):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("severity (0: the image as it is)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def draw_reconstruction(
    image: Pixels, pictures: Mapping[str, Pixels], stem: Path, heading: str
) -> list[Path]:
    """The input, what each student makes of it, and the error of every pixel below."""
    figure = Figure(figsize=(2.6 * (len(pictures) + 1) + 0.6, 5.6), layout="constrained")
    axes = figure.subplots(2, len(pictures) + 1, squeeze=False)
    _show(axes[0][0], image, "input")
    axes[1][0].axis("off")
    errors = {name: np.abs(image.astype(float) - p).mean(-1) for name, p in pictures.items()}
    most = max(1.0, *(float(np.quantile(error, 0.99)) for error in errors.values()))
    for (above, below), (name, picture) in zip(axes.T[1:], pictures.items()):
        _show(above, picture, name)
        colors = below.imshow(errors[name], cmap=SEQUENTIAL, vmin=0, vmax=most)
        words = f"PSNR {cv2.PSNR(image, picture):.1f} dB\nmean {errors[name].mean():.1f}"
        below.set(xlabel=words, xticks=[], yticks=[])
    # Beside both pictures of the last column, or the lower one would be narrower than the upper.
    place: dict[str, Any] = {"ax": list(axes[:, -1]), "shrink": 0.45, "anchor": (0, 0.1)}
    figure.colorbar(colors, label="absolute error (0-255)", **place)
    figure.suptitle(heading, fontsize="medium")
    return save_figure(figure, stem)


def _show(axes: Axes, picture: Pixels, title: str = "") -> None:
    axes.imshow(picture)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="medium")

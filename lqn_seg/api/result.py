"""What a model answers for one image. Shapes: image (H, W), C classes, N instances."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lqn_seg.api.pixels import Pixels
from lqn_seg.data.schema import Category
from lqn_seg.segmentation.postprocess import Instances
from lqn_seg.visualization.files import png_bytes
from lqn_seg.visualization.panels import (
    DIFFERENCE_LEGEND,
    Cell,
    Row,
    Segmentation,
    captioned,
    cell_size,
    comparison_row,
    legend_entries,
    one_segment_per_class,
    overlay,
    panel,
)

_SHOWN = 5  # classes of a classification


@dataclass(frozen=True)
class About:
    """What all results of a model share.

    Attributes:
        task: "segmentation" or "classification".
        model: what was loaded.
        method: whose answers are given; ``methods`` are all that run.
        categories: name, whether it is a thing, and colour of each class.
        settings: digest of the methods' recipes, the protocol and the calibration.
    """

    task: str
    model: str
    method: str
    methods: tuple[str, ...]
    categories: tuple[Category, ...]
    settings: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)


@dataclass(eq=False, kw_only=True)
class Result(ABC):
    """One method's answer for one image: `SegmentationResult` or `ClassificationResult`.

    Attributes:
        file: what the image is called in files of results.
        image: (H, W, 3) uint8 RGB, upright.
        method: whose answer it is.
        about: model, methods and classes.
        stats: milliseconds of this image's share of the work (``teacher_ms``, ``fit_ms``,
            ``query_ms``, ``head_ms``; of a classification ``views_ms``, ``teacher_ms``,
            ``method_ms``), ``damage``, how far alignment had to move the image's tokens, and
            ``fallback``, 1 where the student failed and the teacher answered.
        compared: by method, in the order of ``compare``, this result among them.
    """

    file: str
    image: Pixels
    method: str
    about: About
    stats: Mapping[str, float] = field(default_factory=dict)
    compared: Mapping[str, Result] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """C names by class id."""
        return self.about.classes

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write pictures, maps and JSON into a folder, beside those of other images of the same
        model; returns the files of this image.

        Of a segmentation: ``NAME_overlay.png`` (with a legend), ``NAME_labels.png`` (class id of
        each pixel, grey), ``NAME_panoptic.png`` (segment id R + 256 G + 65536 B, 0 = none) with
        ``panoptic.json`` and ``instances.json`` in COCO's formats, where the model has them; with
        several methods ``NAME_compared.png``. Of a classification: ``NAME_overlay.png``, the image
        under its likeliest classes. Of every image a record in ``results.json``.

        Raises:
            InputError: a file cannot be written.
        """
        from lqn_seg.api.archive import Archive

        archive = Archive(Path(folder), self.about)
        written = archive.add(self)
        archive.write()
        return written

    def show(self) -> None:
        """Open `picture` in the system's image viewer; a notebook shows a result by itself."""
        Image.fromarray(self.picture).show(self.file)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.picture)

    def alone(self) -> Self:
        """The same answer without the compared ones."""
        return replace(self, compared={})

    @property
    @abstractmethod
    def picture(self) -> Pixels:
        """The answer drawn, with names of classes; several methods side by side. (h, w, 3) uint8,
        larger than the image."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(eq=False, kw_only=True, repr=False)
class SegmentationResult(Result):
    """What is where in an image.

    Attributes:
        semantic: (H, W) int32, the class id of each pixel.
        confidence: (H, W) float32 in 0..1, the winning class's share of the pixel's semantic
            scores, which are summed over the mask queries. Calibrate it on labelled images with
            ``MODEL.LQN.TEMPERATURE`` (1.0: as the model says).
        panoptic: ids (H, W) int32, 0 = no segment, and ``segments``, a dictionary for each id:
            ``id``, ``category_id`` (class id), ``class``, ``isthing``, ``score`` (class
            probability), ``area`` (pixels). None of a model that makes semantic maps alone.
        instances: ``pred_masks`` (N, H, W) bool, ``scores`` (N,), descending, ``pred_classes``
            (N,), as tensors on the CPU. They may overlap; N counts weak ones too. Or None.
    """

    semantic: NDArray[np.int32]
    confidence: NDArray[np.float32]
    panoptic: Segmentation | None
    instances: Instances | None

    @property
    def segmentation(self) -> Segmentation:
        """What is drawn: the panoptic segments, or else one segment per class."""
        return self.panoptic or one_segment_per_class(self.semantic + 1)

    @property
    def overlay(self) -> Pixels:
        """(H, W, 3) uint8, the image with its segments in colour."""
        return overlay(self.image, self.segmentation, self.about.categories)

    @property
    def picture(self) -> Pixels:
        if len(self.compared) < 2:
            legend = legend_entries([self.segmentation], self.about.categories)
            height, width = self.image.shape[:2]
            grown = cell_size(height, width)  # of a small image
            size = grown if grown[0] > height else (height, width)
            drawn = overlay(self.image, self.segmentation, self.about.categories, size)
            return panel([Row([Cell(drawn)])], legend)
        answers = {n: r.segmentation for n, r in self.compared.items() if isinstance(r, type(self))}
        row = comparison_row(self.image, None, answers, self.about.categories)
        legend = legend_entries([*answers.values()], self.about.categories)
        # Semantic maps have no instances that could differ.
        legend += DIFFERENCE_LEGEND if self.panoptic else DIFFERENCE_LEGEND[::2]
        return panel([row], legend)

    def __str__(self) -> str:
        segments = self.segmentation.segments
        count = Counter(self.classes[s["category_id"]] for s in segments if s["isthing"])
        parts = [f"{n} {name}" for name, n in count.most_common()]
        parts += [self.classes[s["category_id"]] for s in segments if not s["isthing"]]
        return f"{self.file} by {self.method}: {', '.join(parts) or 'no segment'}"

    __repr__ = __str__


@dataclass(eq=False, kw_only=True, repr=False)
class ClassificationResult(Result):
    """Which of the classes an image shows.

    Attributes:
        probabilities: (C,) float32, adding up to 1: the softmax of the scaled cosines of image and
            texts.
    """

    probabilities: NDArray[np.float32]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, highest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[k], float(self.probabilities[k])) for k in order]

    @property
    def confidence(self) -> float:
        """Probability of the likeliest class."""
        return float(self.probabilities.max())

    @property
    def picture(self) -> Pixels:
        answers: Sequence[Result] = [*self.compared.values()] or [self]
        return captioned(self.image, [str(answer).split(" by ", 1)[1] for answer in answers])

    def __str__(self) -> str:
        best = ", ".join(f"{name} {100 * p:.1f}%" for name, p in self.top(_SHOWN))
        return f"{self.file} by {self.method}: {best}"

    __repr__ = __str__

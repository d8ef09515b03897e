"""Images in a teacher, and students of all its layers that can be asked about any of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from lqn_seg.adapt.timing import Clock
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.kernel import share
from lqn_seg.core.lqn import FittedStudents, StudentFitter
from lqn_seg.core.random import RandomKey, image_key
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.file_names import file_name
from lqn_seg.data.images import find_images, read_image, read_record
from lqn_seg.data.metadata import Record
from lqn_seg.engine.evaluate import Condition
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import PaddedWindow, layout_of
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Hook, Teacher, normalise


@dataclass(frozen=True)
class Source:
    """An image to look at.

    Attributes:
        name: for headings.
        pixels: (h, w, 3) uint8 RGB.
        record: of the data set it is from, with its ground truth; None for a user's own.
        condition: what was done to it.
        file_name: begins the names of its figures; no other image of the request has it.
        origin: the whole path that it was read from.
    """

    name: str
    pixels: NDArray[np.uint8]
    record: Record | None = None
    condition: Condition = field(default_factory=Condition)
    file_name: str = "image"
    origin: str = ""

    def under(self, condition: Condition, seed: int = 0) -> Source:
        """The same image, damaged."""
        return replace(self, pixels=condition.apply(self.pixels, seed), condition=condition)

    @property
    def tensor(self) -> Tensor:
        """(3, h, w) uint8."""
        return torch.from_numpy(self.pixels.copy()).movedim(2, 0).contiguous()

    @property
    def heading(self) -> str:
        """Name and condition, for people."""
        return f"{self.name}, {self.condition.words}"


def image_files(inputs: Sequence[str]) -> list[Path]:
    """The images named, and those in the folders named, sorted within each folder.

    Raises:
        InputError: a path does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = find_images(path).images
            if not inside:
                raise InputError(f"--input: the folder {path} holds no image")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"--input: there is no file or folder {path}")
    return files


def readers(cfg: CfgNode, inputs: Sequence[str], count: int = 1) -> list[Callable[[], Source]]:
    """What reads the user's images, or else the first of the configuration's data set.

    Raises:
        InputError: a path does not exist, or there is no data set to take an image from.
    """
    if inputs:
        files = list(dict.fromkeys(map(Path.resolve, image_files(inputs))))
        return [partial(own_image, file, name) for file, name in _figure_names(files).items()]
    if not cfg.DATASETS.TEST:
        raise InputError("--input is needed: the configuration names no DATASETS.TEST")
    records = get_dataset(cfg.DATASETS.TEST[0]).records(strict=False)[: max(count, 1)]
    return [partial(scene, record) for record in records]


def own_image(file: Path, figure: str) -> Source:
    """A user's image; `figure` begins the names of its figures."""
    return Source(file.stem, read_image(file), file_name=figure, origin=str(file))


def _figure_names(files: Sequence[Path]) -> dict[Path, str]:
    """What a user's files are called in the names of figures: two of one name by their paths."""
    alike = Counter(file.stem.casefold() for file in files)
    return {
        file: file_name(file.stem, str(file) if alike[file.stem.casefold()] > 1 else "")
        for file in files
    }


def scene(record: Record) -> Source:
    """A data set's image."""
    key, path = record["image_id"], record["file_name"]
    return Source(
        f"scene {key}",
        read_record(record),
        record,
        file_name=f"scene-{file_name(key)}",
        origin=f"{Path(path).resolve()} {key}",
    )


class Probe:
    """B images in one teacher.

    Args:
        teacher: any.
        images: (3, h, w) uint8 each; of an image that needs several windows, the first.
        inference: how images meet the teacher, as `SegmentationConfig.inference`.
        seed: of the students.
        hook: what is done to the teacher's tokens on their way.

    Attributes:
        windows: (B, 3, *S) pixels in 0..1, as the teacher sees them.
        inside: (rows, columns) of each window that are image, the rest is padding.
        field: (B, L, H, W, D).
    """

    @torch.no_grad()
    def __init__(
        self,
        teacher: Teacher,
        images: Sequence[Tensor],
        inference: str = "pad",
        seed: int = 0,
        hook: Hook | None = None,
    ) -> None:
        self.teacher = teacher
        crops: list[Tensor] = []
        self.keys: list[RandomKey] = []
        self.inside: list[tuple[int, int]] = []
        for image in images:
            layout = layout_of(image, teacher, inference)
            crops.append(layout.crops(image)[0])
            self.keys.append(image_key(seed, image, 0))
            whole = teacher.image_size
            self.inside.append(layout.inside if isinstance(layout, PaddedWindow) else whole)
        self.windows = torch.stack(crops).to(teacher.device).float() / 255
        self.normalised = normalise(self.windows, teacher.pixel_mean, teacher.pixel_std)
        self.field, _ = teacher.encode(self.normalised, hook)

    @property
    def depth(self) -> int:
        """L."""
        return self.field.shape[1]

    def fit(self, method: LQNConfig, other: Tensor | None = None) -> FittedStudents:
        """Fresh students of all layers, by a fitter of their own.

        Args:
            other: (B, l, H, W, D') field to fit in place of the teacher's.
        """
        tokens = self.field if other is None else other
        method = replace(method, fit=replace(method.fit, layers=None))
        layers, rows, columns, features = tokens.shape[1:]
        fitter = StudentFitter(method, (layers, rows, columns), features, tokens.device)
        side = method.student.input_size
        small = F.interpolate(self.windows, (side, side), mode="bilinear", antialias=True)
        clock = Clock(tokens.device)
        students = fitter.fit(normalise(small, IMAGENET_MEAN, IMAGENET_STD), tokens, self.keys)
        self.fit_ms = clock.lap()
        return students

    def at(self, layer: float) -> Tensor:
        """(B, H, W, D) teacher's tokens; between two layers, what is linear between them.

        Raises:
            InputError: the layer is not in 1..L.
        """
        if not 1 <= layer <= self.depth:
            raise InputError(f"the layer must be in 1..{self.depth}, not {layer:g}")
        below = min(int(layer), self.depth - 1) if self.depth > 1 else 1
        above = min(below + 1, self.depth)
        return torch.lerp(self.field[:, below - 1], self.field[:, above - 1], layer - below)

    def errors(self, students: FittedStudents) -> list[float]:
        """Error over variance by layer, over all images together."""
        layers = range(1, self.depth + 1)
        return [share(students.query_layer(k) - self.at(k), self.at(k)) for k in layers]

    def shown(self, index: int = 0) -> tuple[int, int]:
        """Rows and columns of the grid of one window that are image."""
        size, grid = self.teacher.image_size, self.teacher.grid
        h, w = (math.ceil(i * g / s) for i, g, s in zip(self.inside[index], grid, size))
        return h, w

    def visible(self, tokens: Tensor, index: int = 0) -> NDArray[np.float32]:
        """(B, H, W, D) to one window's (h, w, D) without the rows and columns that are padding."""
        h, w = self.shown(index)
        return tokens[index, :h, :w].float().cpu().numpy()

    def picture(self, index: int = 0) -> NDArray[np.uint8]:
        """The image as the teacher sees it, without padding."""
        rows, columns = self.inside[index]
        return to_pixels(self.windows[index, :, :rows, :columns])

    def pixel_field(self) -> Tensor:
        """(B, 1, H, W, 3 p q) the windows' pixels in 0..1, a patch of p x q for each position."""
        rows, columns = self.teacher.grid
        patches = self.windows.unflatten(2, (rows, -1)).unflatten(4, (columns, -1))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3)[:, None]

    def picture_of(self, answer: Tensor, index: int = 0) -> NDArray[np.uint8]:
        """(B, H, W, 3 p q) tokens of `pixel_field` as a picture."""
        patch = [s // g for s, g in zip(self.teacher.image_size, self.teacher.grid)]
        pixels = answer[index].unflatten(-1, (3, *patch)).permute(2, 0, 3, 1, 4)
        rows, columns = self.inside[index]
        return to_pixels(pixels.flatten(3).flatten(1, 2)[:, :rows, :columns])


def student_method(name: str, method: object) -> LQNConfig:
    """A method's recipe if it has a student of all layers.

    Raises:
        InputError: it has none, or makes no step.
    """
    if not isinstance(method, LQNConfig) or method.fit.variant not in ("lqn", "lqn-src"):
        raise InputError(f"--methods: {name} has no student of all layers to look at")
    if not method.fit.steps:
        raise InputError(f"--methods: {name} makes no step, so there is no curve")
    return method


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, h, w) in 0..1 to uint8 (h, w, 3)."""
    return (255 * image.clamp(0, 1)).round().to(torch.uint8).movedim(0, 2).cpu().numpy()

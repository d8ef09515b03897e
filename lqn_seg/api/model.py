"""Models to call on images: a frozen teacher, its head or texts, and test-time methods."""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from lqn_seg.adapt.calibration import QUANTILE, save_calibration
from lqn_seg.adapt.views import centre_view
from lqn_seg.api.pixels import ImageLike, Picture, Pixels, is_many, read_picture
from lqn_seg.api.result import About, ClassificationResult, Result, SegmentationResult
from lqn_seg.classification.classifier import Classifier
from lqn_seg.engine.build import describe_calibration, describe_teacher
from lqn_seg.engine.calibrate import BATCH, calibrate_on, calibration_records
from lqn_seg.engine.evaluate import calibration_hash
from lqn_seg.engine.usable import spread
from lqn_seg.errors import InputError
from lqn_seg.evaluation.semantic import confidence_of
from lqn_seg.segmentation.postprocess import Instances
from lqn_seg.segmentation.segmenter import Prediction, Segmenter
from lqn_seg.segmentation.windows import windows_of
from lqn_seg.visualization.panels import Segmentation

Size = tuple[int, int]


class Model(ABC):
    """A frozen teacher with test-time methods, from `lqn_seg.load`. Call it on images.

    Nothing is kept from one image to the next, and an image's result does not depend on those
    beside it.

    Attributes:
        about: what was loaded, methods and classes.
    """

    def __init__(self, cfg: CfgNode, runner: Segmenter | Classifier, about: About) -> None:
        self.cfg, self.runner = cfg, runner
        self.about = replace(about, settings=settings_hash(runner))
        self._calibration = describe_calibration(cfg, runner.calibration)

    @overload
    def __call__(self, images: ImageLike) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Result]: ...
    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Result | list[Result]:
        """The result for an image, or those for a list of images, in their order.

        Args:
            images: a path, a PIL image (both are turned upright by their EXIF), or a (H, W, 3)
                uint8 RGB array or tensor; or a list of any of them, of any sizes.

        Returns:
            a `SegmentationResult` or a `ClassificationResult` for each.

        Raises:
            InputError: an image cannot be read, or has another type or shape.
        """
        if not is_many(images):
            return next(self.results([read_picture(images)]))  # type: ignore[arg-type]
        return list(self.results([read_picture(image, k) for k, image in enumerate(images)]))  # type: ignore[arg-type]

    def results(self, pictures: Sequence[Picture]) -> Iterator[Result]:
        """The result for each picture; ``MODEL.LQN.BATCH`` of them are worked on at once."""
        size = self.runner.config.batch
        for first in range(0, len(pictures), size):
            chunk = pictures[first : first + size]
            for picture, answers in zip(chunk, self._predict(chunk)):
                by_method = {
                    name: self._result(picture, name, answer) for name, answer in answers.items()
                }
                for result in by_method.values():
                    result.compared = by_method
                yield by_method[self.method]

    def calibrate(
        self,
        images: str | os.PathLike[str],
        save: str | os.PathLike[str] = "",
        most: int = 0,
    ) -> Model:
        """Learn what the teacher's tokens look like on clean images; `lqn` and `restore` pull the
        tokens of damaged ones towards that. 128 images of the kind that will come were measured.

        Args:
            images: a folder, searched below, of pictures without labels. What cannot be read is
                named and left out.
            save: a file to write, for ``load(..., calibration=...)``; a
                ``calibration.safetensors`` beside local weights is found by itself.
            most: use so many of the images, spread over all by name; 0 is all.

        Returns:
            the model itself.

        Raises:
            InputError: fewer than two images can be read, or the file cannot be written.
        """
        records = spread(calibration_records(Path(images)), most)
        found, made = calibrate_on(self.runner.teacher, records, self._windows, BATCH, QUANTILE)
        if save:
            about = made.about(self.cfg.MODEL.LQN.TEACHER.WEIGHTS, Path(images).name, QUANTILE)
            try:
                save_calibration(Path(save), found, about)
            except OSError as error:
                raise InputError(f"cannot write {save} ({error})") from error
        self.runner.calibration = found
        self.about = replace(self.about, settings=settings_hash(self.runner))
        self._calibration = f"calibration: {made.images} images of {images}"
        return self

    @property
    def method(self) -> str:
        """Whose answer a call gives."""
        return self.about.method

    @property
    def classes(self) -> tuple[str, ...]:
        """C names by class id."""
        return self.about.classes

    @property
    def is_calibrated(self) -> bool:
        """Whether it is known what the teacher's tokens look like on clean images."""
        return self.runner.calibration is not None

    def __repr__(self) -> str:
        return (
            f"{describe_teacher(self.cfg, self.runner.teacher)}\n{self._calibration}\n"
            f"{len(self.classes)} classes; methods: {', '.join(self.about.methods)}"
        )

    @abstractmethod
    def _predict(self, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """Answers by method, one dict per picture."""

    @abstractmethod
    def _result(self, picture: Picture, method: str, answer: Any) -> Result:
        """An answer on the CPU, at the picture's size."""

    def _common(self, picture: Picture, method: str, answer: Any) -> dict[str, Any]:
        """What every kind of result holds."""
        image = {"file": picture.file, "image": picture.pixels}
        return {**image, "method": method, "about": self.about, "stats": answer.stats}

    @abstractmethod
    def _windows(self, pixels: Pixels) -> Tensor:
        """The (N, 3, h, w) uint8 teacher inputs of an image (H, W, 3)."""


class SegmentationModel(Model):
    """`Model` that answers with `SegmentationResult`.

    Args:
        max_side: images with a longer side, in pixels, are segmented at this size, and the maps
            enlarged by nearest neighbour.
    """

    runner: Segmenter

    def __init__(self, cfg: CfgNode, runner: Segmenter, about: About, max_side: int) -> None:
        super().__init__(cfg, runner, about)
        self.max_side = max_side

    def _predict(self, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        images = [_tensor(picture.pixels) for picture in pictures]
        return self.runner(images, [self._size(picture.pixels) for picture in pictures])

    def _size(self, pixels: Pixels) -> Size:
        height, width = pixels.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _result(self, picture: Picture, method: str, answer: Prediction) -> SegmentationResult:
        size = picture.pixels.shape[0], picture.pixels.shape[1]
        semantic, confidence = confidence_of(
            answer.output["sem_seg"], self.runner.config.temperature
        )
        panoptic, instances = answer.output.get("panoptic_seg"), answer.output.get("instances")
        return SegmentationResult(
            **self._common(picture, method, answer),
            semantic=_enlarged(semantic, size).astype(np.int32),
            confidence=_enlarged(confidence, size),
            panoptic=self._panoptic(panoptic, size) if panoptic else None,
            instances=None if instances is None else _instances(instances, size),
        )

    def _panoptic(
        self, answer: tuple[Tensor, Sequence[dict[str, Any]]], size: Size
    ) -> Segmentation:
        ids, segments = answer
        enlarged = _enlarged(ids, size)
        areas = np.bincount(enlarged.ravel(), minlength=len(segments) + 1)
        about = [
            {**s, "class": self.classes[s["category_id"]], "area": int(areas[s["id"]])}
            for s in segments
        ]
        return Segmentation(enlarged, about)

    def _windows(self, pixels: Pixels) -> Tensor:
        return windows_of(pixels, self.runner.teacher, self.runner.config.inference)


class ClassificationModel(Model):
    """`Model` that answers with `ClassificationResult`."""

    runner: Classifier

    def _predict(self, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        return self.runner([picture.pixels for picture in pictures])

    def _result(self, picture: Picture, method: str, answer: Any) -> ClassificationResult:
        return ClassificationResult(
            **self._common(picture, method, answer),
            probabilities=answer.probabilities.numpy(),
        )

    def _windows(self, pixels: Pixels) -> Tensor:
        return centre_view(pixels, self.runner.teacher)[None]


def settings_hash(runner: Segmenter | Classifier) -> str:
    """What, beside the teacher, two runs must share for their results to belong together."""
    known = repr((runner.methods, runner.config, calibration_hash(runner.calibration)))
    return f"{zlib.crc32(known.encode()):08x}"


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy()).movedim(2, 0).contiguous()


def _enlarged(values: Tensor, size: Size) -> NDArray[Any]:
    """(..., h, w) on the CPU as (..., H, W), by nearest neighbour."""
    values = values.cpu()
    if tuple(values.shape[-2:]) != size:
        stacked = values.reshape(1, -1, *values.shape[-2:])
        kind = values.dtype
        larger = F.interpolate(stacked.double(), size, mode="nearest-exact").to(kind)
        values = larger.reshape(*values.shape[:-2], *size)
    return values.numpy()


def _instances(found: Instances, size: Size) -> Instances:
    masks = torch.from_numpy(_enlarged(found.pred_masks, size))
    return Instances(size, masks, found.scores.cpu(), found.pred_classes.cpu())

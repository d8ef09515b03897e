"""What the evaluators share: Detectron2's protocol on top of one statistic per image.

A statistic is JSON-able and stands for its image alone, so a run can be cut anywhere, stored,
resumed, split over processes and merged: images are keyed by their id, and adding an image again
replaces it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError

Statistics = dict[str, Any]


class DatasetMetadata(Protocol):
    """What an evaluator asks of a data set; `lqn_seg.data.catalog.Metadata` is one."""

    @property
    def name(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def thing_ids(self) -> frozenset[int]: ...
    @property
    def evaluator_type(self) -> str: ...
    @property
    def ignore_label(self) -> int: ...
    @property
    def dataset_id_to_contiguous_id(self) -> dict[int, int]: ...
    def read_panoptic(self, record: Mapping[str, Any]) -> NDArray[np.int32]: ...
    def read_semantic(self, record: Mapping[str, Any]) -> NDArray[np.int32]: ...
    def read_instances(self, record: Mapping[str, Any]) -> list[dict[str, Any]]: ...


class ImageEvaluator(ABC):
    """Base of the evaluators.

    Args:
        metadata: the data set's table and its readers of ground truth.
        records: the data set's records. Needed only where the inputs handed to `process` lack the
            ground-truth fields (Detectron2's `DatasetMapper` removes `sem_seg_file_name` and
            `annotations` at test time); they are then looked up by `image_id`.
    """

    task: str  # key of the results, as Detectron2 names it

    def __init__(
        self, metadata: DatasetMetadata, records: Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        self.metadata = metadata
        self.images: dict[int | str, Statistics] = {}
        self._records = {record["image_id"]: record for record in records or ()}

    def reset(self) -> None:
        """Forget all images."""
        self.images.clear()

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Score a batch: `inputs` are records, `outputs` what the model returned for them."""
        for record, output in zip(inputs, outputs, strict=True):
            self.add(record["image_id"], self.statistics(record, output))

    def add(self, image_id: int | str, statistics: Statistics) -> None:
        """Take in one image's statistics; an image that was there is replaced."""
        self.images[image_id] = statistics

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Reduce to the metrics of the data set, in the range 0 .. 100, NaN where undefined.

        The result does not depend on the order in which images came.
        """
        # Numbers as numbers: where scores tie, AP depends on the order, and this is COCO's.
        ids = sorted(self.images, key=lambda i: (isinstance(i, str), i))
        ordered = [self.images[image_id] for image_id in ids]
        return {self.task: self.summarize(ordered)}

    @abstractmethod
    def statistics(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Statistics:
        """One image's contribution: JSON-able, pure."""

    @abstractmethod
    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """Metrics of a list of images; the same image may occur more than once."""

    def _record(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**self._records.get(record.get("image_id"), {}), **record}


def output_field(record: Mapping[str, Any], output: Mapping[str, Any], key: str) -> Any:
    """`output[key]`, or one sentence that says which image has none."""
    if output.get(key) is None:
        raise InputError(f"the model's output for image {record.get('image_id')} has no {key!r}")
    return output[key]


def to_numpy(array: Any) -> NDArray[Any]:
    """A tensor (on any device) or an array, as an array."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


def check_shape(
    record: Mapping[str, Any], what: str, predicted: tuple[int, ...], truth: tuple[int, ...]
) -> None:
    """Prediction and ground truth must have the same height and width."""
    if predicted != truth:
        raise InputError(
            f"{what} of image {record.get('image_id')} is {' x '.join(map(str, predicted))} but "
            f"its ground truth is {' x '.join(map(str, truth))} (height x width)"
        )

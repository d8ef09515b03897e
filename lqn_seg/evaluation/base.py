"""What the evaluators share: Detectron2's protocol on top of one statistic per image.

A statistic is JSON-able and stands for its image alone, so a run can be cut anywhere, stored,
resumed, split over processes and merged.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lqn_seg.errors import InputError

Statistics = dict[str, Any]


class DatasetMetadata(Protocol):
    """What an evaluator asks of a data set, as `lqn_seg.data.catalog.Metadata`."""

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
    def read_panoptic(self, record: Mapping[str, Any]) -> NDArray[np.int32]: ...
    def read_semantic(self, record: Mapping[str, Any]) -> NDArray[np.int32]: ...
    def read_instances(self, record: Mapping[str, Any]) -> list[dict[str, Any]]: ...


class ImageEvaluator(ABC):
    """Base of the evaluators. `records` of the data set are needed only where the inputs of
    `process` lack ground-truth fields (Detectron2's `DatasetMapper` removes some at test time);
    they are looked up by `image_id`."""

    task: str  # key of the results, as Detectron2 names it

    def __init__(
        self, metadata: DatasetMetadata, records: Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        self.metadata, self.classes = metadata, metadata.class_names
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
        """Metrics of the data set, 0 .. 100, NaN where undefined, whatever the order of images."""
        # Numbers as numbers: where scores tie, AP depends on the order, and this is COCO's.
        ids = sorted(self.images, key=lambda i: (isinstance(i, str), i))
        return {self.task: self.summarize([self.images[image_id] for image_id in ids])}

    def statistics(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Statistics:
        """One image's contribution: JSON-able, pure; InputError as `prepare` and `score`."""
        if known := self._records.get(record.get("image_id")):  # else the same for all evaluators
            record = {**known, **record}
        return self.score(self.prepare(record), output)

    @abstractmethod
    def prepare(self, record: Mapping[str, Any]) -> Any:
        """An image's ground truth, decoded once for all outputs that are scored against it;
        InputError where it is missing, damaged, or does not fit the record."""

    @abstractmethod
    def score(self, truth: Any, output: Mapping[str, Any]) -> Statistics:
        """`statistics` of an output against what `prepare` made of the image's record; InputError
        where the output lacks this task's field, or has another size or other classes."""

    @abstractmethod
    def summarize(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """Metrics of a list of images; the same image may occur more than once."""


def output_field(image_id: Any, output: Mapping[str, Any], key: str) -> Any:
    """`output[key]`, or one sentence that says which image has none."""
    if output.get(key) is None:
        raise InputError(f"the model's output for image {image_id} has no {key!r}")
    return output[key]


def to_numpy(array: Any) -> NDArray[Any]:
    """A tensor (on any device) or an array, as an array."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


def check_shape(
    image_id: Any, what: str, predicted: tuple[int, ...], truth: tuple[int, ...]
) -> None:
    """Prediction and ground truth must have the same height and width."""
    if predicted != truth:
        raise InputError(
            f"{what} of image {image_id} is {' x '.join(map(str, predicted))} but "
            f"its ground truth is {' x '.join(map(str, truth))} (height x width)"
        )


def sparse(matrix: NDArray[np.integer]) -> list[list[int]]:
    """The cells of a matrix that are not 0, as [row, column, value]."""
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns].astype(np.int64)], -1).tolist()

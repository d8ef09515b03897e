"""What a study keeps of its results: on the disk, however many images there are; in memory is what
is asked for."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.evaluation.semantic import SemanticEvaluator

Counting = PanopticEvaluator | SemanticEvaluator  # whose metric is of sums over images
Array = NDArray[np.float64]
_PIECE = 16  # images whose statistics are in memory as they were stored


class Shelf:
    """Values in a file without a name, which goes when this process ends."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (the shelf's)

    def put(self, value: Any) -> Callable[[], Any]:
        """Store a value; what is returned reads it again."""
        data = pickle.dumps(value)
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        return partial(self._get, offset, len(data))

    def _get(self, offset: int, size: int) -> Any:
        self._file.seek(offset)
        return pickle.loads(self._file.read(size))


class Lines:
    """One method's images under one condition, in pieces on a shelf.

    Args:
        stacks: by metric, an array (images, ...) for each piece, of whose sums the metric is.
        stats: for each piece its images' `Prediction.stats`.
        images: that count, from the first on; None is all.
    """

    def __init__(
        self,
        stacks: Mapping[str, Sequence[Callable[[], Array]]],
        stats: Sequence[Callable[[], list[dict[str, float]]]],
        images: int | None = None,
    ) -> None:
        self._stacks, self._stats, self._images = stacks, stats, images

    @property
    def stacks(self) -> Mapping[str, Array]:
        """What each metric sums up, read when it is asked for."""
        return _Stacks(self._stacks, self._images)

    @property
    def stats(self) -> list[dict[str, float]]:
        return list(chain.from_iterable(piece() for piece in self._stats))[: self._images]

    def first(self, images: int) -> Lines:
        return Lines(self._stacks, self._stats, images)


class _Stacks(Mapping[str, Array]):
    def __init__(
        self, pieces: Mapping[str, Sequence[Callable[[], Array]]], images: int | None
    ) -> None:
        self._pieces, self._images = pieces, images

    def __getitem__(self, metric: str) -> Array:
        return np.concatenate([piece() for piece in self._pieces[metric]])[: self._images]

    def __iter__(self) -> Any:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def shelve(
    images: Iterable[Mapping[str, Mapping[str, Any]]],
    methods: Sequence[str],
    evaluators: Mapping[str, Counting],
    left_out: Sequence[int],
    shelf: Shelf,
) -> dict[str, Lines]:
    """Each method's lines of the images under one condition.

    Args:
        images: by method, what is stored of each image.
        evaluators: by metric.
        left_out: classes that do not count.
    """
    stacks: dict[str, dict[str, list[Any]]] = {m: {k: [] for k in evaluators} for m in methods}
    stats: dict[str, list[Any]] = {method: [] for method in methods}
    left = iter(images)
    while piece := list(islice(left, _PIECE)):
        for method in methods:
            stats[method].append(shelf.put([image[method]["lqn"] for image in piece]))
            for metric, evaluator in evaluators.items():
                stack = evaluator.stack([image[method][evaluator.task] for image in piece])
                stack[:, left_out] = 0  # as if they did not occur, which no mean counts
                stacks[method][metric].append(shelf.put(stack))
    return {method: Lines(stacks[method], stats[method]) for method in methods}

"""Evaluate methods side by side: clean and corrupted images, one teacher pass per image.

What is kept of an image under a condition: each method's statistics for every metric, its costs and
a hash of its masks. All numbers are made from that, so a run that was killed goes on where it
stopped, images can be shared out over processes, and intervals and means need no second run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from fvcore.common.config import CfgNode

from lqn_seg import __version__
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.config.nodes import methods
from lqn_seg.core.alignment import Calibration
from lqn_seg.data.catalog import Dataset, Metadata, Record
from lqn_seg.data.corruptions import corrupt
from lqn_seg.data.images import read_record, untold_turn
from lqn_seg.data.input_hash import input_hash
from lqn_seg.engine import launch
from lqn_seg.engine.ahead import ReadAhead
from lqn_seg.engine.build import build_segmenter
from lqn_seg.engine.launch import keep_memory
from lqn_seg.engine.store import ShardedRun, say
from lqn_seg.engine.usable import name_problems
from lqn_seg.errors import InputError
from lqn_seg.evaluation.base import ImageEvaluator
from lqn_seg.evaluation.cityscapes import semantic_evaluator
from lqn_seg.evaluation.instance import InstanceEvaluator
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.segmentation.postprocess import mask_hash
from lqn_seg.segmentation.segmenter import Prediction, Segmenter
from lqn_seg.teachers.base import Teacher

CLEAN = "clean"
ImageLine = dict[str, Any]


class Model(Protocol):
    """What runs the methods: a segmenter, a classifier."""

    @property
    def teacher(self) -> Teacher[Any]: ...
    @property
    def calibration(self) -> Calibration | None: ...
    @property
    def config(self) -> Any: ...
    @property
    def precisions(self) -> dict[str, str]: ...
    @property
    def ineffective(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Condition:
    """A corruption at a severity, or the clean images."""

    corruption: str = CLEAN
    severity: int = 0

    def __str__(self) -> str:
        return self.corruption if self.corruption == CLEAN else f"{self.corruption}-{self.severity}"

    @property
    def words(self) -> str:
        """For people: "gaussian noise-3"."""
        return str(self).replace("_", " ")

    def apply(self, image: Any, seed: int) -> Any:
        """(H, W, 3) uint8 to the same, damaged."""
        if self.corruption == CLEAN:
            return image
        return corrupt(image, self.corruption, self.severity, seed)


def conditions(cfg: CfgNode) -> list[Condition]:
    """Clean first, then the corruptions of ``MODEL.LQN.EVAL`` at their severity."""
    evaluation = cfg.MODEL.LQN.EVAL
    return [Condition(), *(Condition(c, evaluation.SEVERITY) for c in evaluation.CORRUPTIONS)]


def build_evaluators(cfg: CfgNode, metadata: Metadata) -> dict[str, ImageEvaluator]:
    """Evaluators by task, for the outputs that the configuration turns on."""
    test = cfg.MODEL.MASK_FORMER.TEST
    chosen: list[ImageEvaluator] = []
    if test.PANOPTIC_ON:
        chosen.append(PanopticEvaluator(metadata))
    if test.INSTANCE_ON:
        chosen.append(InstanceEvaluator(metadata))
    if test.SEMANTIC_ON:
        chosen.append(semantic_evaluator(metadata))
    if not chosen:
        raise InputError("MODEL.MASK_FORMER.TEST turns every output off: there is nothing to score")
    return {evaluator.task: evaluator for evaluator in chosen}


class DatasetRun(ABC):
    """Methods side by side on one data set's images: resumable, in any number of processes.

    Subclasses say what the methods answer (`_predict`) and what else two runs must have in common
    for their lines to belong together (`_fingerprint`).

    Args:
        cfg: the configuration.
        dataset: images and ground truth.
        records: the images that count.
        model: runs the methods; frozen.
        evaluators: by task.
        chosen: conditions in place of the configuration's.
        folder: receives the results.
        resume: go on from what is in the folder. An image whose files or annotation have changed
            since is evaluated again; where it lies is not asked.
        strict: stop at the first image that cannot be read or scored, which is otherwise named,
            counted and left out under all conditions.

    Raises:
        InputError: there is no image, or the folder holds a run of another configuration and
            ``resume`` was asked for.
    """

    def __init__(
        self,
        cfg: CfgNode,
        dataset: Dataset,
        records: list[Record],
        model: Model,
        evaluators: Mapping[str, ImageEvaluator],
        chosen: Sequence[Condition] | None,
        folder: Path,
        resume: bool,
        strict: bool,
    ) -> None:
        self.cfg, self.dataset, self.records, self.model = cfg, dataset, records, model
        self.evaluators, self.folder = evaluators, folder
        listed = dataset.records(strict=False)
        self.total = len(listed)
        if not records:
            if launch.is_main():
                name_problems(dataset.problems)
            raise InputError(f"no image can be evaluated: {dataset.problems[0]}")
        self.conditions = conditions(cfg) if chosen is None else list(chosen)
        self._by_name = {str(condition): condition for condition in self.conditions}
        names = list(self._by_name)
        fingerprint = self._common_fingerprint(listed) | self._fingerprint()
        self.shards = ShardedRun(
            folder, fingerprint, names, resume, strict, self._input_hash, may_change=("records",)
        )
        if resume:
            self.shards.forget_changed(records)
        self.fingerprint = fingerprint
        self._ahead: ReadAhead[Any] = ReadAhead()

    def _common_fingerprint(self, listed: list[Record]) -> dict[str, Any]:
        metadata = self.dataset.metadata
        return {
            "dataset": metadata.name,
            "classes": _digest(repr((metadata.categories, metadata.label_table))),
            "records": _digest(json.dumps(listed, default=str)),
            "device": self.model.teacher.device.type,
            "threads": self.cfg.MODEL.LQN.EVAL.THREADS,
            "torch": torch.__version__,
            "calibration": calibration_hash(self.model.calibration),
            "precision": self.model.precisions,
            "teacher": weights_hash(self.model.teacher.model),
            "teacher input": repr(self.model.teacher.preprocessing),
            "version": __version__,
        }

    def _input_hash(self, record: Record) -> str:
        """What tells a record from the same one with another image, label or annotation."""
        return input_hash(record, self.dataset.metadata, InstanceEvaluator.task in self.evaluators)

    @abstractmethod
    def _fingerprint(self) -> dict[str, Any]:
        """What has to be equal besides."""

    @abstractmethod
    def _predict(self, condition: Condition, records: Sequence[Record]) -> Iterable[ImageLine]:
        """``{"methods": name -> line}`` for each record, in their order."""

    @abstractmethod
    def image(self, condition: Condition, record: Record) -> Any:
        """A record's pixels under a condition, uint8, as the model takes them."""

    def images(self, condition: Condition, records: Sequence[Record]) -> list[Any]:
        """`image` of each record, in their order; what was announced has been read meanwhile."""
        return [self._ahead.take(*self._call(condition, record)) for record in records]

    @property
    def resumable(self) -> bool:
        """Whether the results on disk can be gone on from: not where methods learn on the way."""
        return True

    @property
    def reads_ahead(self) -> bool:
        """Whether images are read while others are worked on: not on a CPU, which would be busy
        with both, and the methods' times would say so."""
        return self.model.teacher.device.type != "cpu"

    def _announce(self, name: str, records: Sequence[Record]) -> None:
        self._ahead.begin(dict(self._call(self._by_name[name], record) for record in records))

    def _call(self, condition: Condition, record: Record) -> tuple[Hashable, Callable[[], Any]]:
        """How a record's image is read, and what tells it from others: ids alone may not."""
        key = (condition, record["image_id"], record["file_name"])
        return key, partial(self.image, condition, record)

    @property
    def is_subset(self) -> bool:
        return len(self.records) < self.total

    def run(self, progress: bool = True) -> None:
        """Predict and score what is not on disk yet, each process its share of it."""
        keep_memory()
        with fixed_threads(self.cfg.MODEL.LQN.EVAL.THREADS):
            self.shards.execute(
                self.records,
                self.model.config.batch,
                lambda name, records: self._predict(self._by_name[name], records),
                progress,
                self._announce if self.reads_ahead else None,
            )
        if launch.is_main() and not self.scored:
            raise InputError(f"no image could be evaluated: {next(iter(self.failures.values()))}")

    def progress(self) -> str:
        """How much of the work is on disk, in words."""
        total = len(self.conditions) * len(self.records)
        left = sum(len(chunk) for _, chunk in self.shards.left(self.records, len(self.records)))
        return f"{total - left} of {total} images done (each condition counts)"

    @property
    def failures(self) -> dict[tuple[str, int | str], str]:
        """Why an image has no result, by condition and image id."""
        chosen = {record["image_id"] for record in self.records}
        return {
            (name, key): reason
            for name, kept in self.shards.kept.items()
            for key, reason in kept.failures.items()
            if key in chosen
        }

    @property
    def scored(self) -> list[Record]:
        """The records that all numbers are made from: those that failed under no condition."""
        failed = {key for _, key in self.failures}
        return [record for record in self.records if record["image_id"] not in failed]

    def lines(self, condition: Condition | str, method: str) -> list[dict[str, Any]]:
        """One method's line for every scored image, in the data set's order."""
        stored = self.shards.kept[str(condition)].results
        return [stored[record["image_id"]]["methods"][method] for record in self.scored]

    def fitted(self, method: str) -> int:
        """To how many images a student was fitted and heard, each condition counting."""
        lines = [line for condition in self.conditions for line in self.lines(condition, method)]
        return sum(line["lqn"].get("blend", 0) > 0 for line in lines)

    def metrics(self, condition: Condition | str, method: str) -> dict[str, dict[str, float]]:
        """All metrics of a method under a condition, by task, 0..100; ``lqn`` holds the means."""
        lines = self.lines(condition, method)
        result = {
            task: evaluator.summarize([line[task] for line in lines])
            for task, evaluator in self.evaluators.items()
        }
        result["lqn"] = mean_stats([line["lqn"] for line in lines])
        return result


class Evaluation(DatasetRun):
    """One run of segmentation: a data set, conditions and methods.

    Args:
        cfg: the configuration; ``OUTPUT_DIR/inference`` receives the results.
        dataset: images and ground truth.
        resume, chosen, strict: see `DatasetRun`.

    Raises:
        InputError: see `DatasetRun`; or the teacher or its files do not fit.
    """

    def __init__(
        self,
        cfg: CfgNode,
        dataset: Dataset,
        resume: bool = False,
        chosen: Sequence[Condition] | None = None,
        strict: bool = False,
    ) -> None:
        if cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON:
            dataset = dataset.with_instances()  # what is wrong there is said before the first image
        dataset = dataset.listed()
        records = dataset.records(strict)[: cfg.MODEL.LQN.EVAL.MAX_IMAGES or None]
        metadata = dataset.metadata
        self.segmenter = build_segmenter(
            cfg, metadata.thing_ids, metadata.num_classes, class_names=metadata.class_names
        )
        evaluators = build_evaluators(cfg, metadata)
        folder = Path(cfg.OUTPUT_DIR) / "inference"
        self._named_turn = False
        super().__init__(
            cfg, dataset, records, self.segmenter, evaluators, chosen, folder, resume, strict
        )

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "methods": {name: repr(method) for name, method in methods(self.cfg).items()},
            "segmentation": repr(self.segmenter.config),
            "comparators": {
                name: weights_hash(other.model)
                for name, other in self.segmenter.comparators.items()
            },
        }

    def _predict(self, condition: Condition, records: Sequence[Record]) -> Iterable[ImageLine]:
        images = self.images(condition, records)
        sizes = [(int(record["height"]), int(record["width"])) for record in records]
        for record, by_method in zip(records, self.segmenter(images, sizes)):
            yield {
                "methods": {
                    name: self._method_line(record, prediction)
                    for name, prediction in by_method.items()
                },
            }

    def image(self, condition: Condition, record: Record) -> torch.Tensor:
        """(3, h, w) uint8 RGB image of a record under a condition."""
        pixels = read_record(record)
        if not self._named_turn and (turn := untold_turn(record["file_name"])):
            self._named_turn = True
            say(f"note: {turn}; other such images are not named")
        pixels = condition.apply(pixels, self.segmenter.config.seed)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def _method_line(self, record: Record, prediction: Prediction) -> dict[str, Any]:
        scored = {
            task: evaluator.statistics(record, prediction.output)
            for task, evaluator in self.evaluators.items()
        }
        return {**scored, "lqn": prediction.stats, "mask_hash": mask_hash(prediction.output)}


def mean_stats(stats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each statistic over the images; ``fallback``, where there is one, is their number."""
    totals = {key: sum(s[key] for s in stats) for key in stats[0]}
    return {k: total if k == "fallback" else total / len(stats) for k, total in totals.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_hash(model: torch.nn.Module, digits: int = 16) -> str:
    """`tensors_hash` of all weights."""
    return tensors_hash(model.state_dict(), digits)


def tensors_hash(tensors: Mapping[str, torch.Tensor], digits: int = 16) -> str:
    """SHA-256 over names and values, its first hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        # As bytes: NumPy has no bfloat16.
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:digits]


def calibration_hash(calibration: Calibration | None, digits: int = 16) -> str:
    """SHA-256 over a calibration's numbers, its first hex digits; empty where there is none."""
    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if dataclasses.is_dataclass(value):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            for key in sorted(value):
                add(f"{name}.{key}", value[key])
            return
        digest.update(name.encode())
        is_tensor = isinstance(value, torch.Tensor)
        digest.update(value.cpu().numpy().tobytes() if is_tensor else repr(value).encode())

    add("", calibration)
    return "" if calibration is None else digest.hexdigest()[:digits]


__all__ = [
    "CLEAN",
    "Condition",
    "DatasetRun",
    "Evaluation",
    "Segmenter",
    "calibration_hash",
    "conditions",
    "mean_stats",
    "tensors_hash",
    "weights_hash",
]

"""Evaluate methods side by side: each image is read once, for all conditions and methods.

All numbers are made from what `DatasetRun.run` stores of an image under a condition: each method's
statistics for every metric, its times and a hash of its masks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from lqn_seg import __version__
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.config.nodes import methods
from lqn_seg.core.alignment import Calibration
from lqn_seg.data.catalog import Dataset, Metadata, Record
from lqn_seg.data.corruptions import corrupt
from lqn_seg.data.images import read_bytes, untold_turn
from lqn_seg.data.input_hash import input_hash
from lqn_seg.data.labelled_images import read_labelled_image
from lqn_seg.engine import launch
from lqn_seg.engine.build import build_segmenter, describe_class_map
from lqn_seg.engine.shard import WHOLE, Shard
from lqn_seg.engine.store import Batch, ResultStore, say
from lqn_seg.engine.stored import STAMP, Key, Result
from lqn_seg.engine.usable import name_problems
from lqn_seg.errors import InputError
from lqn_seg.evaluation import (
    ConfidenceEvaluator,
    InstanceEvaluator,
    PanopticEvaluator,
    TrimapEvaluator,
    semantic_evaluator,
)
from lqn_seg.evaluation.base import ImageEvaluator
from lqn_seg.segmentation.postprocess import mask_hash
from lqn_seg.segmentation.segmenter import Prediction, Segmenter
from lqn_seg.teachers.base import Teacher

if TYPE_CHECKING:  # open_clip takes a second
    from lqn_seg.classification.classifier import Classifier

CLEAN = "clean"
Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
_QUIET = 30.0  # seconds between two lines of progress in a file


@dataclass(frozen=True)
class Condition:
    """A corruption at a severity, or the clean images; its `str` names files of results."""

    corruption: str = CLEAN
    severity: int = 0

    def __str__(self) -> str:
        return self.corruption if self.corruption == CLEAN else f"{self.corruption}-{self.severity}"

    @property
    def words(self) -> str:
        return str(self).replace("_", " ")

    def apply(self, image: Pixels, seed: int) -> Pixels:
        if self.corruption == CLEAN:
            return image
        return corrupt(image, self.corruption, self.severity, seed)


def configured_conditions(cfg: CfgNode) -> list[Condition]:
    """Clean first, then the corruptions of ``MODEL.LQN.EVAL`` at their severity."""
    evaluation = cfg.MODEL.LQN.EVAL
    return [Condition(), *(Condition(c, evaluation.SEVERITY) for c in evaluation.CORRUPTIONS)]


def build_evaluators(cfg: CfgNode, metadata: Metadata) -> dict[str, ImageEvaluator]:
    test = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[ImageEvaluator] = []
    evaluators += [PanopticEvaluator(metadata)] if test.PANOPTIC_ON else []
    evaluators += [InstanceEvaluator(metadata)] if test.INSTANCE_ON else []
    if test.SEMANTIC_ON:
        whole = semantic_evaluator(metadata, cfg.MODEL.LQN.TEMPERATURE)
        more = (make(metadata, beside=whole) for make in (TrimapEvaluator, ConfidenceEvaluator))
        evaluators += [whole, *more]
    if not evaluators:
        raise InputError(
            "MODEL.MASK_FORMER.TEST switches every output off, so there is nothing to score"
        )
    return {evaluator.task: evaluator for evaluator in evaluators}


@dataclass
class Sample:
    """An image, read once for all methods and conditions.

    Attributes:
        images: (H, W, 3) uint8 by the conditions that lack a result of it.
        stamp: hash of its files and its annotation.
        truth: by task, as `ImageEvaluator.prepare` makes it.
        error: why it cannot be read.
    """

    record: Record
    images: dict[str, Any]
    stamp: str = ""
    truth: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: Exception | None = None


class DatasetRun(ABC):
    """Methods side by side on one data set's images: resumable, in any number of processes.

    Args:
        records: the images that count.
        model: runs the methods; frozen.
        folder: receives the results.
        fingerprint: what else two runs must have in common for their results to belong together.
        conditions: in place of the configuration's.
        resume: continue from what is in the folder. An image whose files or annotation have changed
            since is evaluated again.
        strict: stop at the first image that cannot be read or scored, which is otherwise named,
            counted and left out under all conditions.
        shard: the part of the images that this job evaluates; other jobs see to the others.

    Attributes:
        resumable: not with a method that learns on the way: it sees all images of a condition
            before the next one's.
    """

    def __init__(
        self,
        cfg: CfgNode,
        dataset: Dataset,
        records: list[Record],
        model: Segmenter | Classifier,
        evaluators: Mapping[str, ImageEvaluator],
        folder: Path,
        fingerprint: Mapping[str, Any],
        conditions: Sequence[Condition] | None = None,
        resume: bool = False,
        strict: bool = False,
        shard: Shard = WHOLE,
    ) -> None:
        self.cfg, self.dataset, self.records, self.model = cfg, dataset, records, model
        self.evaluators, self.folder, self.strict = evaluators, folder, strict
        self.conditions = list(configured_conditions(cfg) if conditions is None else conditions)
        listed = dataset.records(strict=False)
        self.total = len(listed)
        if not records:
            if launch.is_main():
                name_problems(dataset.problems)
            raise InputError(f"no image can be evaluated: {dataset.problems[0]}")
        self._is_noted = False
        self.resumable = not model.history
        self.mine = shard.of(records, model.config.batch)
        self.fingerprint = {**self._common_fingerprint(listed), **fingerprint}
        names = [str(condition) for condition in self.conditions]
        how = resume, strict, ("records",), shard.name
        self.store = ResultStore(folder, self.fingerprint, names, *how)
        if resume or shard.name:
            self.forget_changed()

    def forget_changed(self) -> None:
        """Let no result count of an image whose files or annotation have changed since."""
        self.store.forget_changed(self.mine, self._stamp)

    def _common_fingerprint(self, listed: list[Record]) -> dict[str, Any]:
        metadata, teacher = self.dataset.metadata, self.model.teacher
        return {
            "dataset": metadata.name,
            "classes": _digest(repr((metadata.categories, metadata.label_table))),
            "records": _digest(json.dumps(listed, default=str)),
            "device": teacher.device.type,
            "threads": self.cfg.MODEL.LQN.EVAL.THREADS,
            "torch": torch.__version__,
            "calibration": calibration_hash(self.model.calibration),
            "precision": self.model.precisions,
            "teacher": weights_hash(teacher.model),
            "teacher input": repr(teacher.preprocessing),
            "version": __version__,
        }

    @abstractmethod
    def predict(
        self, condition: Condition, samples: Sequence[Sample]
    ) -> Iterable[Mapping[str, Any]]:
        """What each method predicts of each sample's image under a condition, in their order."""

    @abstractmethod
    def score(self, sample: Sample, prediction: Any) -> Result:
        """One method's line: statistics by task, ``lqn``, the costs, and more."""

    def run(self, progress: bool = True) -> None:
        """Predict and score what is not on disk yet; each process does its part of it."""
        launch.keep_memory()
        batches = self.store.shard(self.mine, self.model.config.batch, apart=not self.resumable)
        # Each image is read and its truth decoded once, prefetched where that pays.
        how: dict[str, Any] = {"collate_fn": self._read_batch, "num_workers": self.workers}
        loader: Iterable[list[Sample]] = DataLoader(batches, batch_size=None, **how)  # type: ignore[arg-type]
        threads, met = self.cfg.MODEL.LQN.EVAL.THREADS, None
        with fixed_threads(threads), _progress_bar(batches, progress) as bar:
            for samples in loader:
                for condition in self.conditions:
                    todo = [sample for sample in samples if str(condition) in sample.images]
                    if todo:
                        if condition != met:
                            self.model.reset()
                            met = condition
                        bar.set_description(f"{condition!s:<20}", refresh=False)
                        predictions = self._predictions(condition, todo)
                        lines = [self._line(condition, s, p) for s, p in zip(todo, predictions)]
                        self.store.append(str(condition), lines)
                        bar.update(len(todo))
        self.store.finish(self.mine)
        if launch.is_main() and not self.scored:
            raise InputError(f"no image could be evaluated: {next(iter(self.failures.values()))}")

    @property
    def workers(self) -> int:
        """Processes that prefetch images: none on a CPU, where they would slow the methods."""
        return int(self.model.teacher.device.type == "cuda")

    def _read_batch(self, batch: Batch) -> list[Sample]:
        return [self._read(record, names) for record, names in batch]

    def _read(self, record: Record, names: Sequence[str]) -> Sample:
        """A record's image under some conditions, and its truth; or why it cannot be read."""
        try:
            data = None if "row" in record else read_bytes(record["file_name"])
            pixels, seed = read_labelled_image(record, data), self.model.config.seed
            by_name = {str(condition): condition for condition in self.conditions}
            images = {name: by_name[name].apply(pixels, seed) for name in names}
            truth = {task: e.prepare(record) for task, e in self.evaluators.items()}
            turn = untold_turn(record["file_name"]) if "height" in record else ""
            if turn and not self._is_noted:
                self._is_noted = True
                say(f"note: {turn}; further such images are not listed")
            return Sample(record, images, self._stamp(record, data), truth)
        except Exception as error:
            return Sample(record, dict.fromkeys(names), error=error)

    def image(self, condition: Condition, record: Record) -> Any:
        """A record's image under a condition, as the model takes it."""
        return condition.apply(read_labelled_image(record), self.model.config.seed)

    def _stamp(self, record: Record, data: bytes | None = None) -> str:
        """What tells a record from the same one with another image, label or annotation."""
        instances = InstanceEvaluator.task in self.evaluators
        return input_hash(record, self.dataset.metadata, instances, data)

    def _predictions(self, condition: Condition, samples: Sequence[Sample]) -> list[Any]:
        """`predict`; where a sample has none, its error, which takes no other's prediction."""
        readable = [sample for sample in samples if sample.error is None]
        try:
            predictions = iter(list(self.predict(condition, readable)) if readable else [])
            return [sample.error or next(predictions) for sample in samples]
        except Exception as error:
            if self._is_fatal(error):
                raise
            if len(samples) == 1:
                return [error]
        return [p for sample in samples for p in self._predictions(condition, [sample])]

    def _line(self, condition: Condition, sample: Sample, prediction: Any) -> Result:
        """What is stored of a sample under a condition: a result, or why there is none."""
        key = sample.record["image_id"]
        try:
            if isinstance(prediction, Exception):
                raise prediction
            lines = {name: self.score(sample, each) for name, each in prediction.items()}
            return {"image_id": key, STAMP: sample.stamp, "methods": lines}
        except Exception as error:
            if self._is_fatal(error):
                raise
            reason = str(error)
            if not isinstance(error, InputError):  # not foreseen
                reason = f"{type(error).__name__}: {error}"
                traceback.print_exception(error)
            say(f"image {key} ({condition}) failed: {reason}")
            return {"image_id": key, "failed": reason}

    def _is_fatal(self, error: Exception) -> bool:
        """After an error inside a GPU's kernel every further call on it fails."""
        is_lost = isinstance(error, getattr(torch, "AcceleratorError", ()))
        return self.strict or (is_lost and not isinstance(error, torch.OutOfMemoryError))

    @property
    def is_subset(self) -> bool:
        return len(self.records) < self.total

    def progress(self) -> str:
        total = len(self.conditions) * len(self.records)
        left = self.store.left(self.records, len(self.records))
        count = sum(len(names) for batch in left for _, names in batch)
        return f"{total - count} of {total} images done (images x conditions)"

    @property
    def failures(self) -> dict[tuple[str, Key], str]:
        """Why an image has no result, by condition and image id."""
        keys = {record["image_id"] for record in self.records}
        return {
            (str(condition), key): reason
            for condition in self.conditions
            for key, reason in self.store.failures(str(condition)).items()
            if key in keys
        }

    @property
    def scored(self) -> list[Record]:
        """The records that all numbers are made from: those that failed under no condition."""
        failed = {key for _, key in self.failures}
        return [record for record in self.records if record["image_id"] not in failed]

    def lines(self, condition: Condition | str, method: str) -> Iterator[Result]:
        """One method's line for every scored image, as of `each`."""
        return (by_method[method] for by_method in self.each(condition))

    def each(self, condition: Condition | str) -> Iterator[dict[str, Result]]:
        """For every scored image, in the data set's order, each method's line; one image is in
        memory at a time."""
        stored = self.store.results(str(condition))
        for record in self.scored:
            yield stored[record["image_id"]]["methods"]

    def fitted(self, method: str) -> int:
        """To how many images a student was fitted and mixed in, each condition counting."""
        return sum(
            line["lqn"].get("mixing_weight", 0) > 0
            for condition in self.conditions
            for line in self.lines(condition, method)
        )

    def metrics(self, condition: Condition | str, method: str) -> dict[str, dict[str, float]]:
        """All metrics of a method under a condition, by task, 0..100; ``lqn`` holds the means."""
        lines = list(self.lines(condition, method))  # AP is of all images' instances together
        result = {
            task: evaluator.summarize([line[task] for line in lines])
            for task, evaluator in self.evaluators.items()
        }
        return result | {"lqn": mean_stats(line["lqn"] for line in lines)}


class Evaluation(DatasetRun):
    """One run of segmentation: a data set, conditions and methods. ``OUTPUT_DIR/inference``
    receives the results; the other arguments are `DatasetRun`'s.

    Args:
        teacher: the configuration's, where it is loaded already.

    Attributes:
        watch: is shown each image's predictions before they are scored and forgotten.
    """

    watch: Callable[[Condition, Record, Mapping[str, Prediction]], None] | None = None

    def __init__(
        self,
        cfg: CfgNode,
        dataset: Dataset,
        resume: bool = False,
        conditions: Sequence[Condition] | None = None,
        strict: bool = False,
        shard: Shard = WHOLE,
        teacher: Teacher[Any] | None = None,
    ) -> None:
        if cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON:
            dataset = dataset.with_instances()  # what is wrong there is said before the first image
        dataset = dataset.listed()
        records = dataset.records(strict)[: cfg.MODEL.LQN.EVAL.MAX_IMAGES or None]
        metadata = dataset.metadata
        about = metadata.thing_ids, metadata.num_classes, None, metadata.class_names
        self.segmenter = build_segmenter(cfg, *about, teacher)
        adapters = self.segmenter.adapters.items()
        check_history([n for n, adapter in adapters if adapter.history], resume, shard)
        if note := describe_class_map(self.segmenter, metadata):
            dataset = dataclasses.replace(dataset, notes=(*dataset.notes, note))
        evaluators = build_evaluators(cfg, metadata)
        folder = Path(cfg.OUTPUT_DIR) / "inference"
        others = self.segmenter.baselines
        fingerprint = {
            "methods": {name: repr(method) for name, method in methods(cfg).items()},
            "segmentation": repr(self.segmenter.config),
            "class map": self.segmenter.class_map,
            "baselines": {name: weights_hash(other.model) for name, other in others.items()},
        }
        super().__init__(
            *(cfg, dataset, records, self.segmenter, evaluators, folder, fingerprint),
            *(conditions, resume, strict, shard),
        )

    def image(self, condition: Condition, record: Record) -> torch.Tensor:
        return _tensor(super().image(condition, record))

    def predict(
        self, condition: Condition, samples: Sequence[Sample]
    ) -> list[dict[str, Prediction]]:
        images = [_tensor(sample.images[str(condition)]) for sample in samples]
        sizes = [(int(s.record["height"]), int(s.record["width"])) for s in samples]
        predictions = self.segmenter(images, sizes)
        if self.watch:
            for sample, by_method in zip(samples, predictions):
                self.watch(condition, sample.record, by_method)
        return predictions

    def score(self, sample: Sample, prediction: Prediction) -> Result:
        scores = {
            task: evaluator.score(sample.truth[task], prediction.output)
            for task, evaluator in self.evaluators.items()
        }
        return {**scores, "lqn": prediction.stats, "mask_hash": mask_hash(prediction.output)}


def check_history(names: Collection[str], resume: bool, shard: Shard = WHOLE) -> None:
    """Refuse to interrupt or split what methods of these names learn from image to image."""
    if names and (resume or shard.name or launch.size() > 1):
        verb = "learns" if len(names) == 1 else "learn"
        raise InputError(
            f"{', '.join(names)} {verb} from earlier images, so one process must see all of them: "
            "run it in one process (--num-gpus 1), without --resume and without --shard"
        )


def _tensor(image: Pixels) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def _progress_bar(batches: Sequence[Batch], progress: bool) -> Any:
    """Images done, their rate and the time that is left; of the main process alone."""
    return tqdm(
        total=sum(len(names) for batch in batches for _, names in batch),
        unit="image",
        disable=not (progress and launch.is_main()),
        smoothing=0.05,
        postfix=f"in process 1 of {launch.size()}" if launch.size() > 1 else None,
        mininterval=0.1 if sys.stderr.isatty() else _QUIET,
        dynamic_ncols=True,
    )


def mean_stats(stats: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each statistic over the images; ``fallback``, where there is one, is their number."""
    totals: dict[str, float] = {}
    count = 0
    for one in stats:
        totals = {key: totals.get(key, 0) + one[key] for key in totals or one}
        count += 1
    return {k: total if k == "fallback" else total / count for k, total in totals.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_hash(model: torch.nn.Module, digits: int = 16) -> str:
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
            value = vars(value)
        if isinstance(value, Mapping):
            for key in sorted(value):
                add(f"{name}.{key}", value[key])
            return
        if value is None:  # nothing, as in calibrations that know no style
            return
        digest.update(name.encode())
        is_tensor = isinstance(value, torch.Tensor)
        digest.update(value.cpu().numpy().tobytes() if is_tensor else repr(value).encode())

    add("", calibration)
    return "" if calibration is None else digest.hexdigest()[:digits]

"""Evaluate classification methods side by side: data sets x corruptions, one teacher pass an image.

What is kept of an image is a plain dictionary that stands for that image alone (`ImageLine`): each
method's statistics and times. All numbers are made from those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from lqn_seg.classification.classifier import Classifier, ClassifierConfig
from lqn_seg.classification.lqn import Adaptation
from lqn_seg.classification.methods import CONTROLS
from lqn_seg.classification.prompts import cache_folder, templates, text_features
from lqn_seg.classification.views import centre_view
from lqn_seg.core.gauge import Calibration
from lqn_seg.data.catalog import Dataset, Record, get_dataset
from lqn_seg.data.labelled_images import EVALUATOR_TYPE, read_labelled_image
from lqn_seg.engine.build import build_calibration, find_local
from lqn_seg.engine.classification_config import adaptation
from lqn_seg.engine.inference import Condition, ImageLine, conditions
from lqn_seg.errors import InputError
from lqn_seg.evaluation.classification import ClassificationEvaluator
from lqn_seg.evaluation.cost import Cost, measure
from lqn_seg.segmentation.calibration import FILE_NAME, QUANTILE, calibrate, save_calibration
from lqn_seg.teachers.clip import ClipTeacher, load_clip

_CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Stream:
    """One data set under one condition: what a row of figures is about."""

    dataset: str
    condition: Condition
    alone: bool

    def __str__(self) -> str:
        return str(self.condition) if self.alone else f"{self.dataset} {self.condition}"


class ClassificationRun:
    """Data sets, conditions and methods of a configuration.

    Args:
        cfg: see `lqn_seg.engine.classification_config`.

    Raises:
        InputError: a data set, the teacher or its calibration is missing or does not fit.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        if not cfg.DATASETS.TEST:
            raise InputError("DATASETS.TEST must name at least one data set of labelled images")
        self.datasets = {name: _labelled(name) for name in cfg.DATASETS.TEST}
        self.records = {name: self._records(d) for name, d in self.datasets.items()}
        self.evaluators = {
            name: ClassificationEvaluator(d.metadata) for name, d in self.datasets.items()
        }
        alone = len(self.datasets) == 1
        self.streams = [
            Stream(name, condition, alone)
            for name in self.datasets
            for condition in conditions(cfg)
        ]
        self.teacher = build_clip(cfg)
        self.calibration: Calibration | None = build_calibration(cfg, self.teacher)
        # Zero-shot is what everything is held against; the controls bound what a student can reach.
        names = dict.fromkeys(("zero-shot", *CONTROLS, *cfg.CLASSIFICATION.METHODS))
        self.methods: dict[str, Adaptation | None] = {
            name: None if name in CONTROLS else adaptation(cfg, name) for name in names
        }
        self.lines: dict[str, list[ImageLine]] = {}
        self._classifiers: dict[str, Classifier] = {}

    def _records(self, dataset: Dataset) -> list[Record]:
        """The images of this run: a subset is spread over the classes, which lie in order; of those
        this shard's."""
        records, limit = dataset.records(), self.cfg.MODEL.LQN.EVAL.MAX_IMAGES
        if limit and limit < len(records):
            records = [records[k * len(records) // limit] for k in range(limit)]
        first, step = self.cfg.CLASSIFICATION.SHARD
        return records[first::step]

    def classifier(self, dataset: str) -> Classifier:
        """All methods on a data set's classes."""
        if dataset not in self._classifiers:
            self._classifiers[dataset] = self._build(
                dataset, self.methods, self.cfg.MODEL.LQN.BATCH
            )
        return self._classifiers[dataset]

    def _build(self, dataset: str, methods: dict[str, Adaptation | None], batch: int) -> Classifier:
        own = self.cfg.CLASSIFICATION
        config = ClassifierConfig(own.VIEWS, max(self.cfg.SEED, 0), batch)
        names = self.datasets[dataset].metadata.class_names
        texts = {
            "text": self._text(dataset, own.PROMPTS),
            "zero-shot": self._text(dataset, "single"),
        }
        if "ensemble" in methods:
            texts["ensemble"] = self._text(dataset, "ensemble")
        return Classifier(self.teacher, names, texts, methods, config, self.calibration)

    def _text(self, dataset: str, prompts: str) -> Tensor:
        cache = self.cfg.CLASSIFICATION.CACHE or cache_folder()
        names = self.datasets[dataset].metadata.class_names
        return text_features(self.teacher, names, templates(prompts, dataset), cache)

    def run(self, progress: bool = True) -> None:
        """Predict and score everything."""
        count = sum(len(self.records[stream.dataset]) for stream in self.streams)
        with tqdm(total=count, unit="image", disable=not progress, smoothing=0.05) as bar:
            for stream in self.streams:
                bar.set_description(f"{stream!s:<20}")
                self.lines[str(stream)] = []
                for line in self.predict(stream, self.records[stream.dataset]):
                    self.lines[str(stream)].append(line)
                    bar.update()

    def predict(self, stream: Stream, records: Sequence[Record]) -> Iterator[ImageLine]:
        """One line per image: its id, and each method's statistics and times."""
        classifier, evaluator = self.classifier(stream.dataset), self.evaluators[stream.dataset]
        classifier.reset()
        batch = classifier.config.batch
        for start in range(0, len(records), batch):
            chunk = records[start : start + batch]
            images = [self.image(stream.condition, record) for record in chunk]
            for record, by_method in zip(chunk, classifier(images)):
                yield {
                    "image_id": record["image_id"],
                    "methods": {
                        name: {
                            evaluator.task: evaluator.statistics(
                                record, {"probabilities": prediction.probabilities}
                            ),
                            "lqn": prediction.stats,
                        }
                        for name, prediction in by_method.items()
                    },
                }

    def image(self, condition: Condition, record: Record) -> Any:
        """(H, W, 3) uint8 RGB image of a record under a condition."""
        return condition.apply(read_labelled_image(record), max(self.cfg.SEED, 0))

    def costs(self) -> dict[str, tuple[Cost, float]]:
        """What each method costs on one image on its own, and its milliseconds without views.

        A student that the gauge might not ask for is asked for: the most there is.
        """
        dataset = next(iter(self.datasets))
        image = self.image(self.streams[-1].condition, self.records[dataset][0])
        found = {}
        for name, recipe in self.methods.items():
            if recipe is not None:
                free = replace(recipe.recipe, adapt=replace(recipe.recipe.adapt, gauged=False))
                recipe = replace(recipe, recipe=free)
            alone = self._build(dataset, {name: recipe}, 1)
            alone([image])  # storage and tables that outlive an image are not the image's cost
            alone.reset()
            stats = alone([image])[0][name].stats
            alone.reset()
            cost = measure(lambda alone=alone: alone([image]))  # type: ignore[misc]
            found[name] = cost, stats["teacher_ms"] + stats["method_ms"]
        return found


def build_clip(cfg: CfgNode) -> ClipTeacher:
    """The frozen CLIP of a configuration, on its device.

    Raises:
        InputError: the teacher is no CLIP, or its files are missing or do not fit.
    """
    teacher = cfg.MODEL.LQN.TEACHER
    if teacher.NAME != "clip":
        raise InputError(f"MODEL.LQN.TEACHER.NAME must be clip, not {teacher.NAME!r}")
    precision = cfg.CLASSIFICATION.TEACHER_PRECISION
    return load_clip(find_local(teacher.WEIGHTS), teacher.CONFIG, cfg.MODEL.DEVICE, precision)


def _labelled(name: str) -> Dataset:
    dataset = get_dataset(name)
    if dataset.metadata.evaluator_type != EVALUATOR_TYPE:
        raise InputError(f"DATASETS.TEST: {name} has no label per image, it is for segmentation")
    return dataset


def calibrate_clip(cfg: CfgNode, dataset: str, most: int = 0) -> Path:
    """Calibrate a configuration's teacher on a data set's clean images; labels are not read.

    Args:
        most: use so many images, spread over the data set; 0 is all.

    Returns:
        The file, beside the teacher's local weights, where every run finds it.

    Raises:
        InputError: the weights are not in a local folder, or the data set is missing.
    """
    folder = Path(find_local(cfg.MODEL.LQN.TEACHER.WEIGHTS))
    if not cfg.MODEL.LQN.TEACHER.WEIGHTS or not folder.is_dir():
        raise InputError("the teacher's weights must be in a local folder to be calibrated there")
    teacher, records = build_clip(cfg), _labelled(dataset).records()
    if most and most < len(records):
        records = [records[k * len(records) // most] for k in range(most)]

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(records), _CALIBRATION_BATCH):
            chunk = records[start : start + _CALIBRATION_BATCH]
            views = [centre_view(read_labelled_image(record), teacher) for record in chunk]
            yield torch.stack(views).to(teacher.device).float() / 255

    found = calibrate(teacher, batches, QUANTILE)
    about = {"images": len(records), "from": dataset, "quantile": QUANTILE}
    save_calibration(folder / FILE_NAME, found, about)
    return folder / FILE_NAME

"""Evaluate classification methods side by side: data sets x corruptions, one teacher pass an image.

What is kept of an image under a condition: each method's statistics and times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from lqn_seg.adapt.calibration import FILE_NAME, QUANTILE, save_calibration
from lqn_seg.adapt.classification_methods import CONTROLS, Adaptation
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.adapt.views import centre_view
from lqn_seg.classification.classifier import Classifier, ClassifierConfig
from lqn_seg.classification.prompts import cache_folder, templates, text_features
from lqn_seg.config.methods import adaptation
from lqn_seg.core.alignment import Calibration
from lqn_seg.data.catalog import Dataset, Record, get_dataset
from lqn_seg.data.file_names import file_names
from lqn_seg.data.labelled_images import EVALUATOR_TYPE, read_labelled_image
from lqn_seg.engine import launch
from lqn_seg.engine.build import build_calibration, build_teacher, describe_teacher, find_local
from lqn_seg.engine.calibrate import calibrate_on, calibration_records
from lqn_seg.engine.evaluate import Condition, DatasetRun, ImageLine, tensors_hash
from lqn_seg.engine.store import make_writable
from lqn_seg.errors import InputError
from lqn_seg.evaluation.classification import ClassificationEvaluator
from lqn_seg.lab.cost.cost import Cost, measure
from lqn_seg.teachers.clip import ClipTeacher

_CALIBRATION_BATCH = 32
_LEARNING = {"tda"}  # methods that know the images before


class Classification(DatasetRun):
    """All methods on one data set.

    Args:
        cfg: of `load_classification_cfg`.
        dataset: images with one label each.
        teacher: frozen.
        calibration: the teacher's clean ranges.
        methods: as `Classifier` takes them.
        folder, resume, strict: see `DatasetRun`.

    Raises:
        InputError: see `DatasetRun`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        dataset: Dataset,
        teacher: ClipTeacher,
        calibration: Calibration | None,
        methods: Mapping[str, Adaptation | None],
        folder: Path,
        resume: bool = False,
        strict: bool = False,
    ) -> None:
        self._teacher, self._calibration = teacher, calibration
        self._condition: Condition | None = None
        self.evaluator = ClassificationEvaluator(dataset.metadata)
        self.text = self._text(cfg, dataset, "ensemble" in methods)
        self.classifier = self._build(cfg, methods, cfg.MODEL.LQN.BATCH, self._calibration)
        evaluators = {self.evaluator.task: self.evaluator}
        dataset = dataset.listed()
        # A subset is spread over the classes, which lie in order.
        records = _spread(dataset.records(strict), cfg.MODEL.LQN.EVAL.MAX_IMAGES)
        super().__init__(
            cfg, dataset, records, self.classifier, evaluators, None, folder, resume, strict
        )

    @property
    def resumable(self) -> bool:
        """Whether the results on disk can be gone on from: tda would not know what it has seen."""
        return not _LEARNING & set(self.classifier.methods)

    def _text(self, cfg: CfgNode, dataset: Dataset, ensemble: bool) -> dict[str, Tensor]:
        """Class features by name, as `Classifier` takes them."""
        cache, names = cache_folder(), dataset.metadata.class_names
        wanted = {"text": cfg.CLASSIFICATION.PROMPTS, "zero-shot": "single"}
        wanted |= {"ensemble": "ensemble"} if ensemble else {}
        return {
            key: text_features(
                self._teacher, names, templates(prompts, dataset.metadata.name), cache
            )
            for key, prompts in wanted.items()
        }

    def _build(
        self,
        cfg: CfgNode,
        methods: Mapping[str, Adaptation | None],
        batch: int,
        calibration: Calibration | None,
    ) -> Classifier:
        threads = cfg.MODEL.LQN.EVAL.THREADS
        config = ClassifierConfig(cfg.CLASSIFICATION.VIEWS, max(cfg.SEED, 0), batch, threads)
        names = self.evaluator.classes
        return Classifier(self._teacher, names, self.text, methods, config, calibration)

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "methods": {name: repr(recipe) for name, recipe in self.classifier.methods.items()},
            "classification": repr(self.classifier.config),
            "teacher precision": self._teacher.precision,
            "text": tensors_hash(self.text),
        }

    def _predict(self, condition: Condition, records: Sequence[Record]) -> Iterator[ImageLine]:
        if condition != self._condition:
            self.classifier.reset()
            self._condition = condition
        images = self.images(condition, records)
        for record, by_method in zip(records, self.classifier(images)):
            yield {
                "methods": {
                    name: {
                        self.evaluator.task: self.evaluator.statistics(
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

    def cost(self, name: str) -> tuple[Cost, float]:
        """What a method costs on one image on its own, and its milliseconds without views.

        A student that the gauge asked for in any image is asked for: the most that was paid.

        Raises:
            UncountedOperatorError: an operator that multiplies matrices has no rule.
        """
        image = self.image(self.conditions[-1], self.scored[0])
        alarmed = self._calibration.alarmed() if self._calibration is not None else None
        calibration = alarmed if self.fitted(name) else self._calibration
        alone = self._build(self.cfg, {name: self.classifier.methods[name]}, 1, calibration)
        alone([image])  # storage and tables that outlive an image are not the image's cost
        alone.reset()
        stats = alone([image])[0][name].stats
        alone.reset()
        return measure(lambda: alone([image])), stats["teacher_ms"] + stats["method_ms"]


def classifications(
    cfg: CfgNode, resume: bool = False, strict: bool = False
) -> dict[str, Classification]:
    """A run for each data set of a configuration, with one teacher, by the data set's name.

    Results lie in ``OUTPUT_DIR/inference``, in a folder for each data set where there are several.

    Raises:
        InputError: a data set, the teacher or its calibration is missing or does not fit, or tda is
            to see a part of the images.
    """
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST must name at least one data set of labelled images")
    datasets = [_labelled(name) for name in dict.fromkeys(cfg.DATASETS.TEST)]
    if _LEARNING & set(cfg.CLASSIFICATION.METHODS) and (resume or launch.size() > 1):
        raise InputError(
            "tda learns from the images before, so one process must see them all: run it with "
            "--num-gpus 1 and without --resume"
        )
    with fixed_threads(cfg.MODEL.LQN.EVAL.THREADS):
        teacher = build_clip(cfg)
        calibration = build_calibration(cfg, teacher)
        # Zero-shot is what everything is held against; the controls bound what students can reach.
        names = dict.fromkeys(("zero-shot", *CONTROLS, *cfg.CLASSIFICATION.METHODS))
        methods = {name: None if name in CONTROLS else adaptation(cfg, name) for name in names}
        folder = Path(cfg.OUTPUT_DIR) / "inference"
        within = file_names(d.metadata.name for d in datasets).values()
        folders = [folder / name for name in within] if len(datasets) > 1 else [folder]
        return {
            dataset.metadata.name: Classification(
                cfg, dataset, teacher, calibration, methods, place, resume, strict
            )
            for dataset, place in zip(datasets, folders)
        }


def _spread(records: list[Record], most: int) -> list[Record]:
    """So many of the records (0 is all), at equal distances."""
    if not 0 < most < len(records):
        return records
    return [records[k * len(records) // most] for k in range(most)]


def build_clip(cfg: CfgNode) -> ClipTeacher:
    """The frozen CLIP of a configuration, on its device.

    Raises:
        InputError: the teacher is no CLIP, or its files are missing or do not fit.
    """
    name = cfg.MODEL.LQN.TEACHER.NAME
    if name != "clip":
        raise InputError(f"MODEL.LQN.TEACHER.NAME must be clip, not {name!r}")
    teacher = build_teacher(cfg)
    assert isinstance(teacher, ClipTeacher)
    return teacher


def _labelled(name: str) -> Dataset:
    dataset = get_dataset(name)
    if dataset.metadata.evaluator_type != EVALUATOR_TYPE:
        raise InputError(f"DATASETS.TEST: {name} has no label per image, it is for segmentation")
    return dataset


def calibrate_clip(cfg: CfgNode, dataset: str, most: int = 0, strict: bool = False) -> Path:
    """Calibrate a configuration's teacher on a data set's clean images; labels are not read.

    Args:
        most: use so many images, spread over the data set; 0 is all.
        strict: stop at the first image that cannot be read, which is otherwise named and left out.

    Returns:
        The file, beside the teacher's local weights, where every run finds it.

    Raises:
        InputError: the weights are not in a local folder, or the data set is missing.
    """
    folder = Path(find_local(cfg.MODEL.LQN.TEACHER.WEIGHTS))
    if not cfg.MODEL.LQN.TEACHER.WEIGHTS or not folder.is_dir():
        raise InputError("the teacher's weights must be in a local folder to be calibrated there")
    make_writable(folder)
    records = _spread(calibration_records(_labelled(dataset), strict), most)
    teacher = build_clip(cfg)

    def windows(record: Record) -> Tensor:
        return centre_view(read_labelled_image(record), teacher)[None]

    print(describe_teacher(cfg, teacher), flush=True)
    found, count = calibrate_on(teacher, records, windows, _CALIBRATION_BATCH, QUANTILE, strict)
    about = {"images": count, "from": dataset, "quantile": QUANTILE}
    save_calibration(folder / FILE_NAME, found, about)
    return folder / FILE_NAME

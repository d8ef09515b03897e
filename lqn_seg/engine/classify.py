"""Evaluate classification methods side by side: data sets x corruptions, one teacher pass an
image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode
from torch import Tensor

from lqn_seg.adapt.calibration import FILE_NAME, QUANTILE, save_calibration
from lqn_seg.adapt.classification_methods import CONTROLS, Adaptation
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.adapt.views import centre_view
from lqn_seg.classification.classifier import Classifier, ClassifierConfig, Prediction
from lqn_seg.classification.prompts import cache_folder, templates, text_features
from lqn_seg.config.methods import adaptation
from lqn_seg.core.alignment import Calibration
from lqn_seg.data.catalog import Dataset, get_dataset
from lqn_seg.data.corruptions import Pixels
from lqn_seg.data.file_names import file_names
from lqn_seg.data.labelled_images import EVALUATOR_TYPE
from lqn_seg.data.shipped import find_local
from lqn_seg.engine.build import build_calibration, build_teacher, describe_teacher
from lqn_seg.engine.calibrate import calibrate_on, calibration_records
from lqn_seg.engine.evaluate import Condition, DatasetRun, Sample, check_history, tensors_hash
from lqn_seg.engine.store import make_writable
from lqn_seg.engine.stored import Result
from lqn_seg.engine.usable import spread
from lqn_seg.errors import InputError
from lqn_seg.evaluation.classification import ClassificationEvaluator
from lqn_seg.teachers.clip import ClipTeacher

_CALIBRATION_BATCH = 32
_LEARNING = {"tda"}  # methods that know the images before


class Classification(DatasetRun):
    """All methods on one data set: `recipes`, as `Classifier` takes them; the rest is
    `DatasetRun`'s."""

    def __init__(
        self,
        cfg: CfgNode,
        dataset: Dataset,
        teacher: ClipTeacher,
        calibration: Calibration | None,
        recipes: Mapping[str, Adaptation | None],
        folder: Path,
        resume: bool = False,
        strict: bool = False,
    ) -> None:
        self.evaluator = ClassificationEvaluator(dataset.metadata)
        parts = cfg, teacher, calibration, self.evaluator.classes, recipes
        self.classifier = classifier = build_classifier(*parts, dataset.metadata.name)
        evaluators = {self.evaluator.task: self.evaluator}
        fingerprint = {
            "methods": {name: repr(recipe) for name, recipe in recipes.items()},
            "classification": repr(classifier.config),
            "teacher precision": teacher.precision,
            "text": tensors_hash(classifier.text),
        }
        dataset = dataset.listed()
        # A subset is spread over the classes, which lie in order.
        records = spread(dataset.records(strict), cfg.MODEL.LQN.EVAL.MAX_IMAGES)
        super().__init__(
            *(cfg, dataset, records, self.classifier, evaluators, folder, fingerprint),
            resume=resume,
            strict=strict,
        )

    def predict(
        self, condition: Condition, samples: Sequence[Sample]
    ) -> list[dict[str, Prediction]]:
        return self.classifier([sample.images[str(condition)] for sample in samples])

    def score(self, sample: Sample, prediction: Prediction) -> Result:
        task, output = self.evaluator.task, {"probabilities": prediction.probabilities}
        return {task: self.evaluator.score(sample.truth[task], output), "lqn": prediction.stats}


def build_classifier(
    cfg: CfgNode,
    teacher: ClipTeacher,
    calibration: Calibration | None,
    class_names: Sequence[str],
    recipes: Mapping[str, Adaptation | None],
    dataset: str = "",
) -> Classifier:
    """The methods of a configuration on one teacher; class features of texts are cached on disk.

    Args:
        class_names: in the order of the labels.
        dataset: name of the data set, some of which have prompts of their own.
    """
    prompts = {"text": cfg.CLASSIFICATION.PROMPTS, "zero-shot": "single"}
    prompts |= {"ensemble": "ensemble"} if "ensemble" in recipes else {}
    text = {
        key: text_features(teacher, class_names, templates(wanted, dataset), cache_folder())
        for key, wanted in prompts.items()
    }
    config = ClassifierConfig(
        *(cfg.CLASSIFICATION.VIEWS, max(cfg.SEED, 0)),
        *(cfg.MODEL.LQN.BATCH, cfg.MODEL.LQN.EVAL.THREADS),
    )
    return Classifier(teacher, class_names, text, recipes, config, calibration)


def classifications(
    cfg: CfgNode, resume: bool = False, strict: bool = False
) -> dict[str, Classification]:
    """A run for each data set of a configuration, with one teacher, by the data set's name. Results
    lie in ``OUTPUT_DIR/inference``, in a folder for each data set where there are several."""
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST must name at least one data set of labelled images")
    datasets = [_labelled(name) for name in dict.fromkeys(cfg.DATASETS.TEST)]
    check_history([m for m in cfg.CLASSIFICATION.METHODS if m in _LEARNING], resume)
    with fixed_threads(cfg.MODEL.LQN.EVAL.THREADS):
        teacher = build_clip(cfg)
        calibration = build_calibration(cfg, teacher)
        # Zero-shot is what everything is held against; the controls bound what students can reach.
        names = dict.fromkeys(("zero-shot", *CONTROLS, *cfg.CLASSIFICATION.METHODS))
        recipes = {name: None if name in CONTROLS else adaptation(cfg, name) for name in names}
        folder = Path(cfg.OUTPUT_DIR) / "inference"
        below = file_names(d.metadata.name for d in datasets).values()
        folders = [folder / name for name in below] if len(datasets) > 1 else [folder]
        return {
            dataset.metadata.name: Classification(
                cfg, dataset, teacher, calibration, recipes, one, resume, strict
            )
            for dataset, one in zip(datasets, folders)
        }


def build_clip(cfg: CfgNode) -> ClipTeacher:
    """The frozen CLIP of a configuration; an `InputError` if its teacher is another one."""
    name = cfg.MODEL.LQN.TEACHER.NAME
    if name != "clip":
        raise InputError(f"MODEL.LQN.TEACHER.NAME must be clip, not {name!r}")
    teacher = build_teacher(cfg)
    assert isinstance(teacher, ClipTeacher)
    return teacher


def _labelled(name: str) -> Dataset:
    dataset = get_dataset(name)
    if dataset.metadata.evaluator_type != EVALUATOR_TYPE:
        raise InputError(
            f"DATASETS.TEST: {name} has no image labels; it is a segmentation data set"
        )
    return dataset


def calibrate_clip(cfg: CfgNode, dataset: str, most: int = 0, strict: bool = False) -> Path:
    """Calibrate a configuration's teacher on `most` (0 is all) clean images, spread over a data
    set; returns the file, beside its weights, which must be in a local folder. `strict` stops at
    the first image that cannot be read, which is otherwise named and left out."""
    folder = Path(find_local(cfg.MODEL.LQN.TEACHER.WEIGHTS))
    if not cfg.MODEL.LQN.TEACHER.WEIGHTS or not folder.is_dir():
        raise InputError("the teacher's weights must be in a local folder to be calibrated there")
    make_writable(folder)
    records = spread(calibration_records(_labelled(dataset), strict), most)
    teacher = build_clip(cfg)

    def windows(pixels: Pixels) -> Tensor:
        return centre_view(pixels, teacher)[None]

    print(describe_teacher(cfg, teacher), flush=True)
    ranges, made = calibrate_on(teacher, records, windows, _CALIBRATION_BATCH, QUANTILE, strict)
    save_calibration(folder / FILE_NAME, ranges, made.about(str(folder), dataset, QUANTILE))
    return folder / FILE_NAME

"""What figures and explorer share: a configuration's teacher, its methods, images to look at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lqn_seg.adapt.ineffective import UNTRAINED, shown
from lqn_seg.adapt.methods import Method
from lqn_seg.config.nodes import load_any_cfg, method_config, segmentation_config
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.config import LQNConfig
from lqn_seg.data.catalog import Category, Metadata, get_dataset
from lqn_seg.data.file_names import file_name
from lqn_seg.data.images import find_images, read_image, read_record
from lqn_seg.data.metadata import Record
from lqn_seg.engine.build import (
    build_calibration,
    build_segmenter,
    build_teacher,
    describe_calibration,
    describe_class_map,
    describe_teacher,
)
from lqn_seg.engine.evaluate import CLEAN, Condition, build_evaluators
from lqn_seg.engine.probe import UNLIKE, Probe, is_unlike, known_classes, student_recipe
from lqn_seg.engine.store import say, write_atomically
from lqn_seg.errors import InputError
from lqn_seg.segmentation.segmenter import Prediction, Segmenter
from lqn_seg.teachers.base import Teacher
from lqn_seg.visualization.panels import Segmentation, one_segment_per_class

# Steps after which a fit is looked at, as fractions of all steps.
_STOPS = (0, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1)
ORIGINS = "origins.json"  # in the output folder: which path each name stands for


@dataclass(frozen=True)
class Source:
    """An image to look at: (h, w, 3) uint8 RGB pixels, and what figures say of it.

    Attributes:
        name, file_name: for headings, and for the names of its figures.
        origin: the whole path that it was read from.
        record: of the data set it is from, with its ground truth; None for a user's own.
    """

    name: str
    pixels: NDArray[np.uint8]
    file_name: str
    origin: str = ""
    record: Record | None = None
    condition: Condition = field(default_factory=Condition)

    @classmethod
    def of_record(cls, record: Record) -> Source:
        key, path = record["image_id"], Path(record["file_name"]).resolve()
        file = f"scene-{file_name(key)}"
        return cls(f"scene {key}", read_record(record), file, f"{path} {key}", record)

    def under(self, condition: Condition, seed: int) -> Source:
        return replace(self, pixels=condition.apply(self.pixels, seed), condition=condition)

    @property
    def tensor(self) -> Tensor:
        return torch.from_numpy(self.pixels.copy()).movedim(2, 0).contiguous()

    @property
    def heading(self) -> str:
        return f"{self.name}, {self.condition.words}"

    @property
    def unlike(self) -> str:
        """That the teacher was calibrated on nothing like it, in words."""
        return f"{self.heading.removesuffix(f', {CLEAN}')}: {UNLIKE}"


def readers(cfg: CfgNode, inputs: Sequence[str], count: int = 1) -> list[Callable[[], Source]]:
    """What reads the images in `inputs`, files and folders of them, or else the first of the
    configuration's data set; an `InputError` where there is nothing to read."""
    if inputs:
        files = dict.fromkeys(file.resolve() for path in map(Path, inputs) for file in _files(path))
        return [partial(_read_file, file) for file in files]
    if not cfg.DATASETS.TEST:
        raise InputError("--input is required, because the configuration names no DATASETS.TEST")
    records = get_dataset(cfg.DATASETS.TEST[0]).records(strict=False)[: max(count, 1)]
    return [partial(Source.of_record, record) for record in records]


def _files(path: Path) -> Sequence[Path]:
    if not path.exists():
        raise InputError(f"--input: {path} does not exist")
    images = find_images(path).images if path.is_dir() else [path]
    if not images:
        raise InputError(f"--input: the folder {path} holds no image")
    return images


def _read_file(file: Path) -> Source:
    return Source(file.stem, read_image(file), file_name(file.stem), str(file))


@dataclass(eq=False)
class Studio:
    """A configuration's teacher and the images to look at; each is loaded when it is first needed.

    Args:
        config_file: YAML configuration.
        output: folder for figures.
        inputs: image files or folders; none: the first `count` of the configuration's data set.
        corruptions: what is done to every image, ``clean`` among them; none: the figure's default.
        severity: of the corruptions, 1..5.
        methods: names; none: the figure's default.
        overrides: of the configuration, keys and values in turn.

    Attributes:
        failed: images that could not be read; each was named.
    """

    config_file: str
    output: Path = Path()
    inputs: Sequence[str] = ()
    count: int = 1
    corruptions: Sequence[str] = ()
    severity: int = 3
    methods: Sequence[str] = ()
    overrides: Sequence[str] = ()
    device: str = ""

    def __post_init__(self) -> None:
        self.failed = 0
        # One image at a time: students beside it would be copies, and a user would wait for them.
        overrides = ["MODEL.LQN.BATCH", "1", *self.overrides]
        self.cfg = load_any_cfg(self.config_file, overrides, self.device)
        torch.set_num_threads(self.cfg.MODEL.LQN.EVAL.THREADS)
        self.config = segmentation_config(self.cfg)

    @cached_property
    def metadata(self) -> Metadata | None:
        """Of the configuration's data set; its table is known even where its files are not."""
        try:
            names = self.cfg.DATASETS.TEST
            return get_dataset(names[0]).metadata if names else None
        except InputError as error:
            print(
                f"class names are the teacher's, because the data set is missing: {error}",
                file=sys.stderr,
            )
            return None

    @cached_property
    def teacher(self) -> Teacher[Any]:
        """The teacher alone: one without a mask head will do."""
        teacher = build_teacher(self.cfg)
        print(describe_teacher(self.cfg, teacher), flush=True)
        return teacher

    @cached_property
    def calibration(self) -> Calibration | None:
        return build_calibration(self.cfg, self.teacher)

    @cached_property
    def segmenter(self) -> Segmenter:
        """Teacher and head, with no method yet."""
        return self.build({})

    def build(self, methods: dict[str, Method]) -> Segmenter:
        """Teacher, head and methods, other models among them; from now on the studio's."""
        table = self.metadata
        things, classes = (table.thing_ids, table.num_classes) if table else (frozenset(), None)
        names = table.class_names if table else ()
        self.segmenter = built = build_segmenter(self.cfg, things, classes, methods, names)
        self.teacher = built.teacher
        calibration = describe_calibration(self.cfg, built.calibration)
        print(describe_teacher(self.cfg, built.teacher), calibration, sep="\n", flush=True)
        for sentence in shown(built.ineffective.values()):
            print(f"warning: {sentence}", flush=True)
        if table and (note := describe_class_map(built, table)):
            print(f"note: {note}", flush=True)
        if self.inputs:  # a user's: anything may be on them
            print(self.known, flush=True)
        return built

    def segmenter_of(self, methods: dict[str, Method]) -> Segmenter:
        """The segmenter with other methods, on the same teacher."""
        base = self.segmenter
        parts = base.teacher, base.head, methods, base.thing_ids, base.config, base.calibration
        return Segmenter(*parts, class_map=base.class_map)

    @cached_property
    def categories(self) -> tuple[Category, ...]:
        """Of the data set, or else the teacher's own."""
        if self.metadata is not None:
            return self.metadata.categories
        names = self.segmenter.head.class_names
        return tuple(Category(index, name, False) for index, name in enumerate(names))

    @property
    def known(self) -> str:
        return known_classes([category.name for category in self.categories])

    def images(self) -> Iterator[Source]:
        """The images; one that cannot be read is named, and the others go on."""
        reads = readers(self.cfg, self.inputs, self.count)
        for read in tqdm(reads, unit="image", leave=False, disable=len(reads) < 2):
            try:
                yield read()
            except InputError as error:
                self.failed += 1
                say(f"error: {error}")

    def damaged(self, image: Source, default: Sequence[str] = (CLEAN,)) -> list[Source]:
        """An image under every corruption."""
        names = self.corruptions or default
        conditions = [Condition(n, self.severity) if n != CLEAN else Condition() for n in names]
        return [image.under(condition, self.config.seed) for condition in conditions]

    def sources(self) -> Iterator[Source]:
        """All images under every corruption, one image after the other."""
        for image in self.images():
            yield from self.damaged(image)

    def probe(self, source: Source) -> Probe:
        """One image in the teacher; its statistics are not aligned."""
        return Probe(self.teacher, [source.tensor], self.config.inference, self.config.seed)

    def recipes(self, default: Sequence[str], all_layers: bool = True) -> dict[str, LQNConfig]:
        """`student_recipe` of every method."""
        return {
            name: student_recipe(name, method_config(self.cfg, name), all_layers)
            for name in self.methods or default
        }

    def predict_after(self, image: Tensor, recipe: LQNConfig, steps: int) -> Prediction:
        """A method's prediction after so many steps: a fit of its own that ends there. Random
        numbers are counted by step, so it is the same fit, cut short (a test)."""
        cut = replace(recipe, fit=replace(recipe.fit, steps=steps))
        name = "cut" if steps else UNTRAINED  # which is not warned of
        (predictions,) = self.segmenter_of({name: cut})([image])
        return predictions[name]

    def unlike(self, source: Source) -> bool:
        """Whether the teacher was calibrated on nothing like an image; the console says so too."""
        inference = self.config.inference
        is_far = is_unlike(self.teacher, self.calibration, source.tensor, inference)
        if is_far:
            say(source.unlike)
        return is_far

    def truth(self, source: Source) -> Segmentation | None:
        """Ground truth to draw; None for a user's own image."""
        if source.record is None or self.metadata is None:
            return None
        if self.config.panoptic:
            ids = self.metadata.read_panoptic(source.record)
            return Segmentation(ids, source.record["segments_info"])
        labels = self.metadata.read_semantic(source.record)
        is_known = labels < self.metadata.num_classes
        return one_segment_per_class(np.where(is_known, labels + 1, 0).astype(np.int32))

    def score(self, source: Source, prediction: Prediction) -> float | None:
        """Headline metric of one image, 0..100; None without ground truth."""
        if source.record is None or self.metadata is None:
            return None
        task = "panoptic_seg" if self.config.panoptic else "sem_seg"
        evaluator = build_evaluators(self.cfg, self.metadata)[task]
        statistics = evaluator.statistics(source.record, prediction.output)
        return evaluator.summarize([statistics])[self.metric]

    @property
    def metric(self) -> str:
        return "PQ" if self.config.panoptic else "mIoU"

    def stem(self, kind: str, image: Source, *parts: object) -> Path:
        """A file in the output folder, without suffix, that no other image's figures take, not
        those of an earlier command either: ``origins.json`` says whose a name is."""
        path, name = self.output / ORIGINS, image.file_name
        origins = json.loads(path.read_text()) if path.is_file() else {}
        if origins.setdefault(name.casefold(), image.origin) != image.origin:
            name = file_name(name, image.origin)
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(origins, indent=1) + "\n")
        return self.output / "_".join([kind, name, *map(file_name, parts)])


def stops(steps: int) -> list[int]:
    """Steps of a fit after which to look, from 0 to all of them, closer at the start."""
    return sorted({round(part * steps) for part in _STOPS})

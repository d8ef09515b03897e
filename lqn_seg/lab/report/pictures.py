"""What methods made of images, side by side: the panels of an evaluation and of the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lqn_seg.data.catalog import Category, Record
from lqn_seg.data.file_names import file_names
from lqn_seg.engine.evaluate import CLEAN, Condition, Evaluation
from lqn_seg.engine.store import Key
from lqn_seg.engine.studio import Source, Studio
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.wording import number, title
from lqn_seg.segmentation.segmenter import Prediction, Segmenter
from lqn_seg.visualization.files import save_png
from lqn_seg.visualization.panels import (
    DIFFERENCE_LEGEND,
    Segmentation,
    captioned,
    comparison_row,
    legend_entries,
    one_segment_per_class,
    panel,
)


class Panels:
    """An evaluation's panels: a picture per image, a row per condition, with the truth, the
    methods, and where they differ.

    From `watch` on they show the evaluation's own predictions, of which no more are kept than
    ``EVAL.PANEL_IMAGES`` and ``.PANEL_METHODS`` name. What was predicted in an earlier run or by
    another process is predicted again.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.settings = evaluation, evaluation.cfg.MODEL.LQN.EVAL
        wanted = self.settings.PANEL_METHODS or ("teacher", "apm", "lqn")
        known = evaluation.segmenter.methods
        self.methods = [name for name in wanted if name in known]
        preferred = (CLEAN, "gaussian_noise", "fog")  # clean, and what looks least like it
        conditions = [c for c in evaluation.conditions if c.corruption in preferred]
        self.conditions = conditions if len(conditions) > 1 else evaluation.conditions[:3]
        self.kept: dict[tuple[Key, Condition], dict[str, Prediction]] = {}

    @property
    def asked(self) -> bool:
        """Not without panoptic output, nor without two methods to compare."""
        has_maps = "panoptic_seg" in self.evaluation.evaluators
        return has_maps and len(self.methods) > 1 and self.settings.PANEL_IMAGES > 0

    def watch(self) -> Panels:
        """Keep what the evaluation is about to predict, if panels are asked for."""
        first = self.evaluation.records[: self.settings.PANEL_IMAGES]
        keys = {record["image_id"] for record in first}

        def keep(condition: Condition, record: Record, made: Mapping[str, Prediction]) -> None:
            if record["image_id"] in keys and condition in self.conditions:
                maps = {name: made[name].output["panoptic_seg"] for name in self.methods}
                self.kept[record["image_id"], condition] = {
                    name: Prediction({"panoptic_seg": (ids.cpu(), segments)})
                    for name, (ids, segments) in maps.items()
                }

        self.evaluation.watch = keep if self.asked else None
        return self

    def draw(self, failed: list[str]) -> list[Path]:
        """The files; `failed` receives why one could not be drawn."""
        folder = Path(self.evaluation.cfg.OUTPUT_DIR) / "panels"
        names = file_names(record["image_id"] for record in self.evaluation.records)

        def draw(record: Record) -> list[Path]:
            path = folder / f"{names[str(record['image_id'])]}.png"
            return [save_png(self._panel(record), path)]

        paths: list[Path] = []
        for record in self.evaluation.scored[: self.settings.PANEL_IMAGES] if self.asked else ():
            complaint = f"the panel of image {record['image_id']} could not be drawn"
            paths += attempt(complaint, partial(draw, record), [], failed)
        return paths

    def _panel(self, record: Record) -> NDArray[np.uint8]:
        metadata = self.evaluation.dataset.metadata
        evaluator = self.evaluation.evaluators["panoptic_seg"]
        truth = Segmentation(metadata.read_panoptic(record), record["segments_info"])
        prepared = evaluator.prepare(record)

        def quality(prediction: Prediction) -> float:
            return evaluator.summarize([evaluator.score(prepared, prediction.output)])["PQ"]

        images = [self.evaluation.image(condition, record) for condition in self.conditions]
        rows = [
            Seen(image.permute(1, 2, 0).numpy(), predictions, truth, quality, condition.words)
            for condition, image, predictions in zip(
                self.conditions, images, self._predictions(record, images)
            )
        ]
        return comparison_panel(rows, metadata.categories, "PQ")

    def _predictions(
        self, record: Record, images: Sequence[Tensor]
    ) -> Sequence[Mapping[str, Prediction]]:
        keys = [(record["image_id"], condition) for condition in self.conditions]
        if all(key in self.kept for key in keys):
            return [self.kept[key] for key in keys]
        return self._segmenter(images)

    @cached_property
    def _segmenter(self) -> Segmenter:
        """The evaluation's, with the methods of the panels alone."""
        full = self.evaluation.segmenter
        methods = {name: full.methods[name] for name in self.methods}
        others = {name: model for name, model in full.baselines.items() if name in methods}
        parts = full.teacher, full.head, methods, full.thing_ids, full.config, full.calibration
        return Segmenter(*parts, others)


def compare(
    studio: Studio,
    images: Sequence[Source],
    predictions: Sequence[dict[str, Prediction]],
    unlike: Sequence[bool],
) -> NDArray[np.uint8]:
    """A panel, a row per image: ground truth if there is any, and the predictions by method.

    With ground truth the scores are written, and how far each is from the first method's; without,
    which classes the teacher knows. `unlike`: the teacher was calibrated on nothing like the image.
    """
    rows = [
        Seen(
            source.pixels,
            by_method,
            studio.truth(source),
            partial(studio.score, source),
            source.condition.words if source.record or len(images) > 1 else "",
        )
        for source, by_method in zip(images, predictions)
    ]
    drawn = comparison_panel(rows, studio.categories, studio.metric)
    is_users = any(source.record is None for source in images)
    warnings = [source.unlike for source, is_far in zip(images, unlike) if is_far]
    return captioned(drawn, [studio.known] if is_users else [], warnings)


@dataclass(frozen=True)
class Seen:
    """A row of a panel: an image, (h, w, 3) uint8, and what methods made of it."""

    pixels: np.ndarray
    predictions: Mapping[str, Prediction]
    truth: Segmentation | None
    score: Callable[[Prediction], float | None]
    label: str


def comparison_panel(
    seen: Sequence[Seen], categories: Sequence[Category], metric: str
) -> NDArray[np.uint8]:
    """A row per image: ground truth if there is any, the predictions, and where the last one
    differs from the first; scores are written, and how far each is from the first method's."""
    rows, drawn = [], []
    for image in seen:
        maps = {title(name): segmentation(p.output) for name, p in image.predictions.items()}
        scores = {title(name): image.score(p) for name, p in image.predictions.items()}
        texts, seen_as = _score_texts(scores, metric), (image.pixels, image.truth, maps)
        rows.append(comparison_row(*seen_as, categories, label=image.label, figures=texts))
        drawn += [*maps.values(), *([image.truth] if image.truth else [])]
    return panel(rows, [*legend_entries(drawn, categories), *DIFFERENCE_LEGEND])


def segmentation(output: dict[str, Any]) -> Segmentation:
    """A panoptic map to draw; semantic output becomes one segment per class."""
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        return Segmentation(ids.cpu().numpy(), segments)
    return one_segment_per_class((output["sem_seg"].argmax(0).cpu().numpy() + 1).astype(np.int32))


def _score_texts(scores: Mapping[str, float | None], metric: str) -> dict[str, str]:
    """ "PQ 61" for the first, "PQ 64 (+3)" for the others; nothing without ground truth."""
    first = next(iter(scores.values()))
    texts = {}
    for k, (name, score) in enumerate(scores.items()):
        if score is not None and first is not None:
            change = f" ({number(score - first, '+.0f')})" if k else ""
            texts[name] = f"{metric} {number(score, '.0f')}{change}"
    return texts

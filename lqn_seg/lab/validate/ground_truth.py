"""One image's ground truth of every kind: read, checked, damaged, as a model's output."""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.data.catalog import Metadata, Record
from lqn_seg.data.images import read_label_map, untold_turn
from lqn_seg.data.labelled_images import read_labelled_image
from lqn_seg.data.masks import decode
from lqn_seg.errors import InputError

IdMap = NDArray[np.int32]
Segments = Sequence[Mapping[str, Any]]
Instances = list[tuple[NDArray[np.bool_], int, float]]  # mask (H, W), contiguous class, score

MOST_DETECTIONS = 100  # of a class and image that COCO's AP takes


@dataclass
class GroundTruth:
    """What an image's files say, or a damaged copy of that; None is what a data set lacks."""

    image_id: int | str
    size: tuple[int, int]  # (height, width)
    segments: tuple[IdMap, Segments] | None = None  # id map (H, W) and segments_info
    instances: Instances | None = None  # without crowds
    labels: IdMap | None = None  # (H, W) contiguous ids or the ignore label
    notes: list[str] = field(default_factory=list)  # what is odd but harmless

    @property
    def beyond_ap(self) -> list[int]:
        """Classes with more instances than AP takes predictions, of a class and image."""
        counts = Counter(category for _, category, _ in self.instances or ())
        return [category for category, count in counts.items() if count > MOST_DETECTIONS]

    def output(self, classes: int) -> dict[str, Any]:
        """It as a model's output; ignored pixels are predicted as class 0."""
        output: dict[str, Any] = {}
        if self.segments is not None:
            output["panoptic_seg"] = self.segments
        if self.instances is not None:
            masks, categories, scores = zip(*self.instances) if self.instances else ((), (), ())
            output["instances"] = SimpleNamespace(
                pred_masks=np.array(masks, bool).reshape(-1, *self.size),
                pred_classes=np.array(categories, int),
                scores=np.array(scores, float),
            )
        if self.labels is not None:
            output["sem_seg"] = self.labels == np.arange(classes)[:, None, None]
        return output


def tasks_of(record: Record, metadata: Metadata) -> set[str]:
    """The tasks that a data set has ground truth for; `record` is one of its."""
    is_panoptic = "segments_info" in record
    tasks = {
        "panoptic_seg": is_panoptic,
        "segm": metadata.json_file or (metadata.thing_ids and is_panoptic),
        "sem_seg": is_panoptic or "sem_seg_file_name" in record,
    }
    return {task for task, is_there in tasks.items() if is_there}


def read_ground_truth(record: Record, metadata: Metadata) -> GroundTruth:
    """Read everything that belongs to an image; an InputError where it does not fit together."""
    height, width = read_labelled_image(record).shape[:2]
    truth, tasks = GroundTruth(record["image_id"], (height, width)), tasks_of(record, metadata)
    if "label" not in record:
        turn = untold_turn(record["file_name"])
        truth.notes += [turn] if turn else []
    if "panoptic_seg" in tasks:
        truth.segments = metadata.read_panoptic(record), record["segments_info"]
    if "segm" in tasks:
        with warnings.catch_warnings(action="error", category=UserWarning):
            try:
                annotations = metadata.read_instances(record)
            except UserWarning as warning:  # a mask without a pixel
                raise InputError(str(warning)) from None
        truth.instances = [
            (decode(annotation["segmentation"]), annotation["category_id"], 1.0)
            for annotation in annotations
            if not annotation["iscrowd"]
        ]
        truth.notes += [
            f"image {truth.image_id} has more than {MOST_DETECTIONS} instances of "
            f"{metadata.class_names[k]}, the most that AP takes, so it cannot reach 100"
            for k in truth.beyond_ap
        ]
    if "sem_seg" in tasks:
        truth.labels = metadata.read_semantic(record)
        # Cityscapes' `labelTrainIds` are not read, but should say what `labelIds` say.
        path = str(record.get("sem_seg_file_name", ""))
        other = Path(path.replace("_labelIds.", "_labelTrainIds."))
        if "_labelIds." in path and other.is_file():
            count = int((read_label_map(other) != truth.labels).sum())
            words = f"{other} (not read) disagrees with labelIds at {count} pixels"
            truth.notes += [words] if count else []
    return truth


def damage(truth: GroundTruth, metadata: Metadata) -> GroundTruth:
    """A copy, moved a little, some of it dropped, cut or relabelled, by the image's id alone."""
    rng = np.random.default_rng(zlib.crc32(str(truth.image_id).encode()))
    reach = max(1, min(truth.size) // 25)
    shift = tuple(rng.integers(-reach, reach + 1, 2).tolist())
    copy, classes = GroundTruth(truth.image_id, truth.size), metadata.num_classes
    if truth.segments is not None:
        ids, segments = truth.segments
        copy.segments = _damage_segments(np.roll(ids, shift, (0, 1)), segments, classes, rng)
    if truth.instances is not None:
        copy.instances = []
        for mask, category, _ in truth.instances:
            fate = rng.random()  # one in ten dropped, relabelled, predicted twice
            if 0.1 <= fate < 0.2:
                category = int(rng.choice(sorted(metadata.thing_ids)))
            for _ in range(0 if fate < 0.1 else 2 if 0.2 <= fate < 0.3 else 1):
                score = float(rng.random())
                copy.instances.append((np.roll(mask, shift, (0, 1)), category, score))
    if truth.labels is not None:
        labels = np.roll(truth.labels, shift, (0, 1))
        labels[labels == metadata.ignore_label] = rng.integers(classes)
        labels[: truth.size[0] // 2, : truth.size[1] // 3] = rng.integers(classes)
        copy.labels = labels
    return copy


def _damage_segments(
    ids: IdMap, segments: Segments, classes: int, rng: np.random.Generator
) -> tuple[IdMap, Segments]:
    """One in ten dropped, relabelled, halved; void and crowds are predicted too."""
    predicted = np.zeros_like(ids)
    infos: list[dict[str, int]] = []
    for segment in (*segments, {"id": 0, "category_id": int(rng.integers(classes))}):
        fate, category = rng.random(), int(segment["category_id"])
        mask = ids == segment["id"]
        if 0.1 <= fate < 0.2:
            category = int(rng.integers(classes))
        elif 0.2 <= fate < 0.3:
            mask[:, mask.shape[1] // 2 :] = False
        if fate >= 0.1 and mask.any():
            infos.append({"id": len(infos) + 1, "category_id": category})
            predicted[mask] = len(infos)
    return predicted, infos

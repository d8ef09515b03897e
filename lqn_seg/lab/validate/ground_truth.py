"""One image's ground truth of every kind: read, held together, damaged, as a model's output."""

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
    """What an image's files say, or a damaged copy of that.

    Attributes:
        image_id: of its record.
        size: (height, width).
        segments: id map (H, W) and segments_info, or None where the data set has none.
        instances: without crowds, or None.
        labels: (H, W) contiguous ids or the ignore label, or None.
        notes: what is odd but harmless.
    """

    image_id: int | str
    size: tuple[int, int]
    segments: tuple[IdMap, Segments] | None = None
    instances: Instances | None = None
    labels: IdMap | None = None
    notes: list[str] = field(default_factory=list)

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
            masks = [mask for mask, _, _ in self.instances]
            output["instances"] = SimpleNamespace(
                pred_masks=np.array(masks, bool).reshape(-1, *self.size),
                pred_classes=np.array([category for _, category, _ in self.instances], int),
                scores=np.array([score for _, _, score in self.instances], float),
            )
        if self.labels is not None:
            output["sem_seg"] = self.labels == np.arange(classes)[:, None, None]
        return output


def has_instances(record: Record, metadata: Metadata) -> bool:
    """Whether AP can be scored."""
    return bool(metadata.json_file or (metadata.thing_ids and "segments_info" in record))


def has_labels(record: Record) -> bool:
    """Whether mIoU can be scored."""
    return "segments_info" in record or "sem_seg_file_name" in record


def read_ground_truth(record: Record, metadata: Metadata) -> GroundTruth:
    """Read everything that belongs to an image and hold it together.

    Raises:
        InputError: a file is missing, damaged, of another size, or disagrees with the JSON.
    """
    height, width = read_labelled_image(record).shape[:2]
    truth = GroundTruth(record["image_id"], (height, width))
    if "label" not in record:
        turn = untold_turn(record["file_name"])
        truth.notes += [turn] if turn else []
    if "segments_info" in record:
        truth.segments = metadata.read_panoptic(record), record["segments_info"]
    if has_instances(record, metadata):
        truth.instances = []
        for annotation in _instances(record, metadata):
            if not annotation["iscrowd"]:
                mask = decode(annotation["segmentation"])
                truth.instances.append((mask, annotation["category_id"], 1.0))
        truth.notes += _beyond_ap_notes(truth, metadata)
    if has_labels(record):
        truth.labels = metadata.read_semantic(record)
        truth.notes += _train_id_notes(record, truth.labels)
    return truth


def _instances(record: Record, metadata: Metadata) -> list[dict[str, Any]]:
    """An image's instances; a mask without a pixel, which evaluation warns of, is an error here."""
    with warnings.catch_warnings(action="error", category=UserWarning):
        try:
            return metadata.read_instances(record)
        except UserWarning as warning:
            raise InputError(str(warning)) from None


def _beyond_ap_notes(truth: GroundTruth, metadata: Metadata) -> list[str]:
    return [
        f"image {truth.image_id} has more than {MOST_DETECTIONS} instances of "
        f"{metadata.class_names[category]}, and AP takes no more predictions: 100 cannot be reached"
        for category in truth.beyond_ap
    ]


def _train_id_notes(record: Record, labels: IdMap) -> list[str]:
    """Cityscapes' `labelTrainIds` are not read, but should say what `labelIds` say."""
    path = str(record.get("sem_seg_file_name", ""))
    other = Path(path.replace("_labelIds.", "_labelTrainIds."))
    if "_labelIds." not in path or not other.is_file():
        return []
    differing = int((read_label_map(other) != labels).sum())
    if not differing:
        return []
    return [f"{other} (not read) disagrees with labelIds at {differing} pixels"]


def damage(truth: GroundTruth, metadata: Metadata) -> GroundTruth:
    """A copy with everything moved a little, some of it dropped, cut or given another class.

    It depends on the image's id and ground truth alone.
    """
    rng = np.random.default_rng(zlib.crc32(str(truth.image_id).encode()))
    reach = max(1, min(truth.size) // 25)
    rows, columns = rng.integers(-reach, reach + 1, 2).tolist()
    copy = GroundTruth(truth.image_id, truth.size)
    classes = metadata.num_classes
    if truth.segments is not None:
        ids, segments = truth.segments
        copy.segments = _damage_segments(
            np.roll(ids, (rows, columns), (0, 1)), segments, classes, rng
        )
    if truth.instances is not None:
        things = sorted(metadata.thing_ids)
        moved = [(np.roll(m, (rows, columns), (0, 1)), c, s) for m, c, s in truth.instances]
        copy.instances = _damage_instances(moved, things, rng)
    if truth.labels is not None:
        labels = np.roll(truth.labels, (rows, columns), (0, 1))
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


def _damage_instances(
    instances: Instances, things: Sequence[int], rng: np.random.Generator
) -> Instances:
    """One in ten dropped, relabelled, found twice; scores at random."""
    found: Instances = []
    for mask, category, _ in instances:
        fate = rng.random()
        if 0.1 <= fate < 0.2:
            category = int(rng.choice(things))
        copies = 0 if fate < 0.1 else 2 if 0.2 <= fate < 0.3 else 1
        found += [(mask, category, float(rng.random())) for _ in range(copies)]
    return found

"""Training data for EoMT: images and the masks of their segments, varied at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lqn_seg.data.augmentation import (
    UNLABELLED,
    AugmentationConfig,
    Indices,
    Pixels,
    jitter_colors,
    random_crop,
)
from lqn_seg.data.catalog import Dataset
from lqn_seg.data.images import read_record, untold_turn
from lqn_seg.data.metadata import Record
from lqn_seg.engine.store import say
from lqn_seg.engine.usable import usable_records
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Preprocessing

MOST_LEFT_OUT = 0.1  # of the images, before training stops
FEW = 10  # images that may be left out of any data set


class TrainingImages:
    """Images and segment masks of a data set, decoded once and kept as small integers.

    A panoptic data set has one mask per segment that is no crowd, a semantic one one mask per class
    in the image; pixels of its ignore label are in none. What cannot be listed or read, or does not
    fit its annotation, is named and left out: the next image takes its place.

    Attributes:
        records: of the images that could be listed.
        left_out: why an image is left out, by its place among them.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: tuple[int, int],
        augmentation: AugmentationConfig | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.metadata = dataset.metadata
        self.records = usable_records(dataset)
        self.size = size
        self.augmentation = augmentation or AugmentationConfig()
        self.preprocessing = preprocessing or Preprocessing()
        self.left_out: dict[int, str] = {}
        self._named_turn = False
        self._decoded: dict[int, tuple[Pixels, Indices, list[int]]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[Pixels, Indices, list[int]]:
        """Image (h, w, 3) uint8, segment indices (h, w), and each segment's class.

        Segment k has the index k + 1; ``UNLABELLED`` is where there is none.

        Raises:
            InputError: a file is damaged or does not fit its annotation, or the image is not of the
                teacher's size and no crop is asked for.
        """
        image, index_map, categories = self._decode(index)
        if image.shape[:2] != self.size and not self.augmentation.crop:
            raise InputError(
                f"{self.records[index]['file_name']} is {image.shape[0]}x{image.shape[1]} pixels; "
                f"the teacher is trained at {self.size[0]}x{self.size[1]} (MODEL.LQN.TRAIN."
                "AUGMENTATION crop takes images of any size)"
            )
        return image, index_map, categories

    def readable(self, index: int) -> int:
        """``index``, or where that image has to be left out the next one that need not be.

        Raises:
            InputError: more than `MOST_LEFT_OUT` of the images would be.
        """
        for other in (k % len(self) for k in range(index, index + len(self))):
            if other in self.left_out:
                continue
            try:
                self._decode(other)
            except InputError as error:
                self._leave_out(other, error)
            else:
                return other
        raise InputError(f"no image can be trained on: {next(iter(self.left_out.values()))}")

    def _leave_out(self, index: int, error: InputError) -> None:
        say(f"left out: image {self.records[index]['image_id']}: {error}")
        self.left_out[index] = str(error)
        if len(self.left_out) > max(MOST_LEFT_OUT * len(self), FEW):
            raise InputError(
                f"{len(self.left_out)} of {len(self)} images of {self.metadata.name} cannot be "
                f"trained on, more than {MOST_LEFT_OUT:.0%}; the first: "
                f"{next(iter(self.left_out.values()))}"
            )

    def _decode(self, index: int) -> tuple[Pixels, Indices, list[int]]:
        if index not in self._decoded:
            record = self.records[index]
            self._decoded[index] = read_record(record), *self._segments(record)
            if not self._named_turn and (turn := untold_turn(record["file_name"])):
                self._named_turn = True
                say(f"note: {turn}; other such images are not named")
        return self._decoded[index]

    def _segments(self, record: Record) -> tuple[Indices, list[int]]:
        """Segment indices (h, w) from 1 on, and the segments' classes."""
        if "segments_info" in record:
            ids = self.metadata.read_panoptic(record)
            listed = [info for info in record["segments_info"] if not info.get("iscrowd", 0)]
            segments = [(info["id"], info["category_id"]) for info in listed]
        else:
            ids = self.metadata.read_semantic(record)
            present = set(np.unique(ids).tolist()) - {self.metadata.ignore_label}
            segments = [(label, label) for label in sorted(present)]
        index_map = np.full(ids.shape, UNLABELLED, np.min_scalar_type(len(segments)))
        for number, (segment, _) in enumerate(segments, start=1):
            index_map[ids == segment] = number
        return index_map, [category for _, category in segments]

    def batch(
        self, indices: Sequence[int], flips: Sequence[bool], seed: Sequence[int] = ()
    ) -> dict[str, Any]:
        """``pixel_values`` (B, 3, h, w), and lists of masks (N, h, w) and classes (N,).

        Args:
            indices: which images.
            flips: which of them to mirror.
            seed: crop and colours of image k are drawn from (*seed, k) alone.
        """
        wanted = self.preprocessing
        mean, std = np.array(wanted.mean, np.float32), np.array(wanted.std, np.float32)
        pixels, masks, classes = [], [], []
        for place, (index, flip) in enumerate(zip(indices, flips)):
            image, index_map, categories = self.read(self.readable(index))
            if flip:
                image, index_map = image[:, ::-1], index_map[:, ::-1]
            rng = np.random.default_rng([*seed, place])
            if self.augmentation.crop:
                scale = self.augmentation.scale
                image, index_map = random_crop(image, index_map, self.size[0], scale, rng)
            image = jitter_colors(image, self.augmentation, rng)
            pixels.append(((image.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))
            drawn = np.setdiff1d(index_map, [UNLABELLED])
            masks.append(torch.from_numpy(index_map == drawn[:, None, None]).float())
            classes.append(torch.tensor([categories[number - 1] for number in drawn]).long())
        return {
            "pixel_values": torch.from_numpy(np.stack(pixels)),
            "mask_labels": masks,
            "class_labels": classes,
        }


def pixel_labels(masks: Sequence[Tensor], classes: Sequence[Tensor]) -> Tensor:
    """Class of every pixel, from the masks of a batch.

    Args:
        masks: per image (N, h, w), 1 inside and 0 outside; no two overlap.
        classes: per image (N,).

    Returns:
        (B, h, w) int64, -1 where no mask is.
    """
    # A sum of products, not an argmax and a look-up: several times faster on a CPU. (Not an einsum
    # either: autocast would run it in bfloat16, which cannot tell 256 from 257.)
    labels = [(m * (c.to(m) + 1)[:, None, None]).sum(0) for m, c in zip(masks, classes)]
    return torch.stack(labels).long() - 1

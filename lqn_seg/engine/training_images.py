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
    Pixels,
    jitter_colors,
    random_crop,
)
from lqn_seg.data.catalog import Dataset
from lqn_seg.data.images import read_image
from lqn_seg.data.metadata import Record
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Preprocessing


class TrainingImages:
    """Images and segment masks of a data set, decoded once and kept as uint8.

    A panoptic data set has one mask per segment, a semantic one one mask per class in the image;
    pixels of its ignore label are in none.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: tuple[int, int],
        augmentation: AugmentationConfig | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.metadata = dataset.metadata
        self.records = dataset.records()
        self.size = size
        self.augmentation = augmentation or AugmentationConfig()
        self.preprocessing = preprocessing or Preprocessing()
        self._decoded: dict[int, tuple[Pixels, Pixels, list[int]]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[Pixels, Pixels, list[int]]:
        """Image (h, w, 3) uint8, segment indices (h, w) uint8, and each segment's class.

        Raises:
            InputError: a file is damaged, or the image is not of the teacher's size and no crop is
                asked for.
        """
        if index not in self._decoded:
            record = self.records[index]
            image = read_image(record["file_name"])
            if image.shape[:2] != self.size and not self.augmentation.crop:
                raise InputError(
                    f"{record['file_name']} is {image.shape[0]}x{image.shape[1]} pixels; the "
                    f"teacher is trained at {self.size[0]}x{self.size[1]} (MODEL.LQN.TRAIN.CROP "
                    "True takes images of any size)"
                )
            self._decoded[index] = image, *self._segments(record)
        return self._decoded[index]

    def _segments(self, record: Record) -> tuple[Pixels, list[int]]:
        """Segment indices (h, w) uint8, ``UNLABELLED`` where there is none, and their classes."""
        if "segments_info" in record:
            ids = self.metadata.read_panoptic(record)
            segments = [(info["id"], info["category_id"]) for info in record["segments_info"]]
        else:
            ids = self.metadata.read_semantic(record)
            present = set(np.unique(ids).tolist()) - {self.metadata.ignore_label}
            segments = [(label, label) for label in sorted(present)]
        index_map = np.full(ids.shape, UNLABELLED, np.uint8)
        for position, (segment, _) in enumerate(segments):
            index_map[ids == segment] = position
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
            image, index_map, categories = self.read(index)
            if flip:
                image, index_map = image[:, ::-1], index_map[:, ::-1]
            rng = np.random.default_rng([*seed, place])
            if self.augmentation.crop:
                scale = self.augmentation.scale
                image, index_map = random_crop(image, index_map, self.size[0], scale, rng)
            image = jitter_colors(image, self.augmentation, rng)
            pixels.append(((image.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))
            drawn = np.flatnonzero(np.bincount(index_map.ravel(), minlength=256)[:UNLABELLED])
            masks.append(torch.from_numpy(index_map == drawn[:, None, None]).float())
            classes.append(torch.tensor([categories[position] for position in drawn]).long())
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

"""Training data for EoMT: images and the masks of their segments, varied at random."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.data.catalog import Dataset
from lqn_seg.data.images import read_record, untold_turn
from lqn_seg.data.metadata import Record
from lqn_seg.engine.store import say
from lqn_seg.engine.usable import usable_records
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Preprocessing, normalise

MOST_LEFT_OUT = 0.1  # of the images, before training stops
UNLABELLED = 0  # in an index map
COLOURS = ("brightness", "contrast", "saturation", "hue")
FEW = 10  # images that may be left out of any data set
# Image (h, w, 3), segment indices (h, w) from 1 on, and each segment's class.
Decoded = tuple[NDArray[np.uint8], NDArray[np.integer], list[int]]


def batch_indices(seed: int, iteration: int, size: int, total: int) -> list[int]:
    """Images of one iteration: consecutive slices of one shuffle per epoch."""
    positions = [divmod(p, total) for p in range(iteration * size, (iteration + 1) * size)]
    shuffles = {
        epoch: np.random.default_rng([seed, 0, epoch]).permutation(total)
        for epoch in {epoch for epoch, _ in positions}
    }
    return [int(shuffles[epoch][offset]) for epoch, offset in positions]


class TrainingImages:
    """Images and segment masks of a data set, decoded once and kept as small integers.

    A panoptic data set has one mask per segment that is no crowd, a semantic one one mask per class
    in the image; pixels of its ignore label are in none. What cannot be listed or read, or does not
    fit its annotation, is named, kept in ``left_out`` and replaced by the next image.
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
        self._decoded: dict[int, Decoded] = {}

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: Sequence[int], seed: Sequence[int] = ()) -> dict[str, Any]:
        """``pixel_values`` (B, 3, h, w), and lists of masks (N, h, w) and classes (N,). Image k is
        varied by what is drawn from (*seed, k) alone."""
        pixels, masks, classes = [], [], []
        for place, index in enumerate(indices):
            image, index_map, categories = self._read(index)
            key = (*seed, place)
            varied, labels = augment(image, index_map, self.augmentation, self.size[0], key)
            numbers = labels.unique()
            numbers = numbers[numbers != UNLABELLED]
            pixels.append(varied)
            masks.append((labels == numbers[:, None, None]).float())
            classes.append(torch.tensor([categories[n - 1] for n in numbers.tolist()]).long())
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return {
            "pixel_values": normalise(torch.stack(pixels).float() / 255, mean, std),
            "mask_labels": masks,
            "class_labels": classes,
        }

    def _read(self, index: int) -> Decoded:
        """Of an image, or where it has to be left out of the next one that need not be."""
        for other in (k % len(self) for k in range(index, index + len(self))):
            if other in self.left_out:
                continue
            try:
                decoded = self._decode(other)
            except InputError as error:
                self._leave_out(other, error)
                continue
            height, width = decoded[0].shape[:2]
            if (height, width) != self.size and not self.augmentation.crop:
                raise InputError(
                    f"{self.records[other]['file_name']} is {height}x{width} pixels; the teacher "
                    f"trains at {self.size[0]}x{self.size[1]} (MODEL.LQN.TRAIN.AUGMENTATION "
                    "crop takes images of any size)"
                )
            return decoded
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

    def _decode(self, index: int) -> Decoded:
        if index not in self._decoded:
            record = self.records[index]
            self._decoded[index] = read_record(record), *self._segments(record)
            if not self._named_turn and (turn := untold_turn(record["file_name"])):
                self._named_turn = True
                say(f"note: {turn}; further such images are not listed")
        return self._decoded[index]

    def _segments(self, record: Record) -> tuple[NDArray[np.integer], list[int]]:
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


def augment(
    image: NDArray[np.uint8],
    index_map: NDArray[np.integer],
    config: AugmentationConfig,
    side: int,
    seed: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """(H, W, 3) RGB and (H, W) index map varied alike to (3, h, w) uint8 and (h, w) int32, by
    ``seed`` alone. An image smaller than the crop's ``side`` lies at random inside it, on black."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).movedim(2, 0)
    labels = torch.from_numpy(index_map.astype(np.int32))[None]
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(config.flip), *colour_jitter(config)]
    with torch.random.fork_rng(devices=[]):
        key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(key)
        if config.crop:
            factor = torch.empty(()).uniform_(*config.scale).item()
            pixels = v2.functional.resize(pixels, [max(round(factor * side), 1)])
            # Not as a Mask: torchvision would take the nearest pixel's corner, not its centre.
            exact = InterpolationMode.NEAREST_EXACT
            labels = v2.functional.resize(labels, list(pixels.shape[1:]), exact)
            steps.insert(0, v2.RandomCrop(side, pad_if_needed=True))
        varied = v2.Compose(steps)(tv_tensors.Image(pixels), tv_tensors.Mask(labels))
    return varied[0].as_subclass(Tensor), varied[1][0].as_subclass(Tensor)


def colour_jitter(config: AugmentationConfig) -> list[v2.Transform]:
    """Random colours of an augmentation, as torchvision's transforms."""
    strengths = {name: getattr(config, name) for name in COLOURS}
    if not any(strengths.values()):
        return []
    if config.each == 1:
        return [v2.ColorJitter(**strengths)]
    brightness, contrast, saturation, hue = (
        v2.RandomApply([v2.ColorJitter(**{name: strengths[name]})], config.each) for name in COLOURS
    )
    return [brightness, v2.RandomOrder([contrast, v2.Compose([saturation, hue])])]

"""What the rest of the package knows about a data set: its table of categories and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.data.coco_json import Category, Instances, read_instances
from lqn_seg.data.images import read_id_map, read_label_map
from lqn_seg.data.masks import encode
from lqn_seg.errors import InputError

Record = dict[str, Any]


@dataclass(frozen=True)
class Metadata:
    """Facts about a data set. A contiguous id is an index into `categories`.

    Attributes:
        name: the data set's name.
        categories: the table; things and stuff may be mixed.
        evaluator_type: the word of Detectron2 or Mask2Former for how it is evaluated:
            "coco_panoptic_seg", "ade20k_panoptic_seg", "coco", "sem_seg" or "cityscapes_sem_seg".
        ignore_label: the semantic label of pixels that do not count; 65535 in place of one that is
            a category's.
        label_table: what label k of a semantic file means, a contiguous id or `ignore_label`; None
            where the files hold contiguous ids.
        image_root, panoptic_root, panoptic_json, sem_seg_root: where the files lie, if there.
        json_file: COCO instances file that AP is scored against; None: the panoptic maps.
    """

    name: str
    categories: tuple[Category, ...]
    evaluator_type: str
    ignore_label: int = 255
    label_table: tuple[int, ...] | None = None
    image_root: str | None = None
    panoptic_root: str | None = None
    panoptic_json: str | None = None
    sem_seg_root: str | None = None
    json_file: str | None = None

    def __post_init__(self) -> None:
        if 0 <= self.ignore_label < self.num_classes:  # 255, of more than 255 categories
            object.__setattr__(self, "ignore_label", 65535)

    @property
    def num_classes(self) -> int:
        """Number of categories, things and stuff together."""
        return len(self.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by contiguous id."""
        return tuple(category.name for category in self.categories)

    @cached_property
    def thing_ids(self) -> frozenset[int]:
        """Contiguous ids of the things."""
        return frozenset(i for i, category in enumerate(self.categories) if category.isthing)

    @cached_property
    def stuff_ids(self) -> frozenset[int]:
        """Contiguous ids of the stuff."""
        return frozenset(range(self.num_classes)) - self.thing_ids

    @cached_property
    def dataset_id_to_contiguous_id(self) -> dict[int, int]:
        """The data set's own category id -> index into `categories`."""
        return {category.id: i for i, category in enumerate(self.categories)}

    # The next four have Detectron2's names and its layout: both lists of names are indexed by
    # contiguous id, so both are the full table; its semantic evaluator needs every id in the
    # "stuff" mapping (as Mask2Former registers its data sets).
    @property
    def thing_classes(self) -> tuple[str, ...]:
        """All names by contiguous id, or () where the data set has no things (Detectron2)."""
        return self.class_names if self.thing_ids else ()

    @property
    def stuff_classes(self) -> tuple[str, ...]:
        """All names by contiguous id (Detectron2)."""
        return self.class_names

    @property
    def thing_dataset_id_to_contiguous_id(self) -> dict[int, int]:
        """Own id -> contiguous id, things only (Detectron2)."""
        return {k: v for k, v in self.dataset_id_to_contiguous_id.items() if v in self.thing_ids}

    @property
    def stuff_dataset_id_to_contiguous_id(self) -> dict[int, int]:
        """Own id -> contiguous id, every category (Detectron2)."""
        return dict(self.dataset_id_to_contiguous_id)

    def read_panoptic(self, record: Mapping[str, Any]) -> NDArray[np.int32]:
        """Read a record's ground-truth id map and hold it against `segments_info`.

        Returns:
            (H, W) int32 segment ids, 0 = void.

        Raises:
            InputError: the record has no `pan_seg_file_name` or `segments_info`, the file cannot be
                read, its size is not the record's, or its ids or their areas are not those of
                `segments_info`.
        """
        path = _field(record, "pan_seg_file_name")
        ids = read_id_map(path)
        _check_size(ids, record, path)
        listed = {int(s["id"]): s for s in _field(record, "segments_info")}
        values, counts = np.unique(ids, return_counts=True)
        drawn = {k: n for k, n in zip(values.tolist(), counts.tolist(), strict=True) if k}
        if extra := drawn.keys() - listed.keys():
            raise InputError(
                f"panoptic map {path} holds segment id {min(extra)}, which the field "
                f"segments_info of image {record.get('image_id')} does not list"
            )
        if missing := listed.keys() - drawn.keys():
            raise InputError(
                f"the field segments_info of image {record.get('image_id')} lists segment id "
                f"{min(missing)}, which has no pixel in panoptic map {path}"
            )
        for key, pixels in drawn.items():  # PQ believes the area, as panopticapi does
            if listed[key].get("area", pixels) != pixels:
                raise InputError(
                    f"segment {key} of image {record.get('image_id')} has {pixels} pixels in "
                    f"{path}, segments_info says area {listed[key]['area']}"
                )
        return ids

    def read_semantic(self, record: Mapping[str, Any]) -> NDArray[np.int32]:
        """Read a record's semantic ground truth: from its label map, or else its panoptic map.

        This is the one place where raw labels become contiguous ids (`label_table`). From a
        panoptic map every pixel gets its segment's category, crowds too, and void is ignored, as in
        the scripts of Detectron2 and Mask2Former that make label maps from panoptic ones.

        Returns:
            (H, W) int32, contiguous ids or `ignore_label`.

        Raises:
            InputError: as `read_panoptic`, or a label lies outside the table.
        """
        if "sem_seg_file_name" not in record:
            return self._semantic_from_panoptic(record)
        path = record["sem_seg_file_name"]
        labels = read_label_map(path)
        _check_size(labels, record, path)
        known = (labels >= 0) & (labels < len(self.label_table or self.categories))
        if self.label_table is None:
            known |= labels == self.ignore_label
        if not known.all():
            ignored = f" (and not the ignore label {self.ignore_label})"
            raise InputError(
                f"label map {path} holds label {int(labels[~known][0])}, outside the "
                f"{self.num_classes} classes of {self.name}{'' if self.label_table else ignored}"
            )
        if self.label_table is None:
            return labels
        return np.array(self.label_table, np.int32)[labels]

    def _semantic_from_panoptic(self, record: Mapping[str, Any]) -> NDArray[np.int32]:
        ids = self.read_panoptic(record)
        labels = np.full(ids.shape, self.ignore_label, dtype=np.int32)
        for segment in record["segments_info"]:
            labels[ids == segment["id"]] = segment["category_id"]
        return labels

    def read_instances(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Read a record's instances: from `json_file`, or else the things of its panoptic map.

        Returns:
            COCO annotations: "category_id" (contiguous), "segmentation" (compressed RLE), "area"
            (pixels), "bbox" (x, y, width, height) and "iscrowd" of each.

        Raises:
            InputError: `json_file` is malformed or does not list the image, or as `read_panoptic`.
        """
        if self.json_file is not None:
            size = int(_field(record, "height")), int(_field(record, "width"))
            return self.instances.of_image(record["image_id"], *size)
        things = [s for s in _field(record, "segments_info") if s["category_id"] in self.thing_ids]
        ids = self.read_panoptic(record) if things else None
        return [
            {
                "category_id": int(segment["category_id"]),
                "iscrowd": int(segment.get("iscrowd", 0)),
                **encode(ids == segment["id"]),
            }
            for segment in things
        ]

    @cached_property
    def instances(self) -> Instances:
        """What `json_file` says; read when it is first asked for.

        Raises:
            InputError: it is malformed, or its categories are not those of the table.
        """
        return read_instances(self.json_file or "", self.categories, self.name)


@dataclass(frozen=True)
class Listing:
    """What a look at the files found.

    Attributes:
        records: of the images that can be used, as far as a look can tell.
        problems: sentences that name what is left out.
        notes: sentences on what is odd but harmless.
    """

    records: list[Record]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A data set: its facts and a way to list its images.

    `records()` gives Detectron2's dictionaries, one per image, in a fixed order: `file_name`,
    `image_id`, `height`, `width`, and `pan_seg_file_name` + `segments_info` (category ids
    contiguous) or `sem_seg_file_name`.

    Attributes:
        metadata: its facts.
        load: makes the list.
        problems: a sentence for every entry that is no image and cannot be listed (an annotation
            of an image that is not there); those that show only when files are looked at are there
            after `listed`.
        notes: sentences on what is odd but harmless.
    """

    metadata: Metadata
    load: Callable[[], list[Record] | Listing]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def listed(self) -> Dataset:
        """The data set with its files looked at, once: all `problems` and `notes` are known.

        Raises:
            InputError: there is nothing to list.
        """
        found = self.load()
        if not isinstance(found, Listing):
            found = Listing(found)
        return replace(
            self,
            load=lambda: [dict(record) for record in found.records],
            problems=(*self.problems, *found.problems),
            notes=(*self.notes, *found.notes),
        )

    def records(self, strict: bool = True) -> list[Record]:
        """List the images; the dictionaries are the caller's to change.

        Args:
            strict: whether `problems` are an error; if not, what they name is left out, and the
                caller reports them (of a data set that is `listed`).

        Raises:
            InputError: the first of the problems, or a file is missing or malformed.
        """
        if strict and self.problems:
            raise InputError(self.problems[0])
        found = self.load()
        if not isinstance(found, Listing):
            return found
        if strict and found.problems:
            raise InputError(found.problems[0])
        return found.records

    def with_instances(self) -> Dataset:
        """The data set with its `json_file` read and checked; what is wrong there is a problem too.

        Raises:
            InputError: as `Metadata.instances`.
        """
        more = self.metadata.instances.problems if self.metadata.json_file else ()
        return replace(self, problems=tuple(dict.fromkeys((*self.problems, *more))))


def _field(record: Mapping[str, Any], key: str) -> Any:
    if key not in record:
        raise InputError(
            f"the record of image {record.get('image_id')} has no field {key}, which its "
            "evaluation needs"
        )
    return record[key]


def _check_size(label: NDArray[np.int32], record: Mapping[str, Any], path: Any) -> None:
    height, width = record.get("height", label.shape[0]), record.get("width", label.shape[1])
    if label.shape != (height, width):
        raise InputError(
            f"{path} is {label.shape[0]} x {label.shape[1]} (height x width) but the fields "
            f"height and width of image {record.get('image_id')} say {height} x {width}"
        )

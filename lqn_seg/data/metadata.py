"""What the rest of the package knows about a data set: its table of categories and its files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lqn_seg.data.images import read_id_map, read_label_map
from lqn_seg.data.instances import Instances, read_instances
from lqn_seg.data.masks import encode
from lqn_seg.data.schema import Category
from lqn_seg.errors import InputError

Record = dict[str, Any]


@dataclass(frozen=True)
class Metadata:
    """Facts about a data set. A contiguous id is an index into `categories`.

    Attributes:
        evaluator_type: the word of Detectron2 or Mask2Former for how it is evaluated:
            "coco_panoptic_seg", "ade20k_panoptic_seg", "coco", "sem_seg" or "cityscapes_sem_seg";
            or "classification".
        ignore_label: the semantic label of pixels that do not count; 65535 in place of one that is
            a category's.
        label_table: what label k of a semantic file means, a contiguous id or `ignore_label`; None
            where the files hold contiguous ids.
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
        return len(self.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @cached_property
    def thing_ids(self) -> frozenset[int]:
        return frozenset(i for i, category in enumerate(self.categories) if category.isthing)

    @cached_property
    def dataset_id_to_contiguous_id(self) -> dict[int, int]:
        return {category.id: i for i, category in enumerate(self.categories)}

    def read_panoptic(self, record: Mapping[str, Any]) -> NDArray[np.int32]:
        """Read a record's (H, W) segment ids, 0 = void; InputError where the file cannot be read or
        its size, ids or their areas are not those of the record and its `segments_info`."""
        path, image_id = _field(record, "pan_seg_file_name"), record.get("image_id")
        ids = read_id_map(path)
        _check_size(ids, record, path)
        listed = {int(s["id"]): s for s in _field(record, "segments_info")}
        values, counts = np.unique(ids, return_counts=True)
        drawn = {k: n for k, n in zip(values.tolist(), counts.tolist()) if k}
        field = f"the field segments_info of image {image_id}"
        if extra := drawn.keys() - listed.keys():
            raise InputError(
                f"panoptic map {path} holds segment id {min(extra)}, which {field} does not list"
            )
        if missing := listed.keys() - drawn.keys():
            missed = f"segment id {min(missing)}, which has no pixel in {path}"
            raise InputError(f"{field} lists {missed}")
        for key, pixels in drawn.items():  # PQ believes the area, as panopticapi does
            if (area := listed[key].get("area", pixels)) != pixels:
                areas = f"{pixels} pixels in {path}, but segments_info says area {area}"
                raise InputError(f"segment {key} of image {image_id} has {areas}")
        return ids

    def read_semantic(self, record: Mapping[str, Any]) -> NDArray[np.int32]:
        """Read a record's (H, W) labels, contiguous ids or `ignore_label`, from its label map.

        Without one, every pixel of the panoptic map gets its segment's category, crowds too, and
        void is ignored, as in the scripts of Detectron2 and Mask2Former. InputError as in
        `read_panoptic`, or where a label lies outside the table.
        """
        if "sem_seg_file_name" not in record:
            ids = self.read_panoptic(record)
            labels = np.full(ids.shape, self.ignore_label, dtype=np.int32)
            for segment in record["segments_info"]:
                labels[ids == segment["id"]] = segment["category_id"]
            return labels
        path, table = record["sem_seg_file_name"], self.label_table
        labels = read_label_map(path)
        _check_size(labels, record, path)
        known = (labels >= 0) & (labels < len(table or self.categories))
        if table is None:
            known |= labels == self.ignore_label
        if not known.all():
            ignored = "" if table else f" (and not the ignore label {self.ignore_label})"
            raise InputError(
                f"label map {path} holds label {int(labels[~known][0])}, outside the "
                f"{self.num_classes} classes of {self.name}{ignored}"
            )
        return labels if table is None else np.array(table, np.int32)[labels]

    def read_instances(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Read a record's instances from `json_file`, or else the things of its panoptic map;
        `Instances.of_image` has their form and errors."""
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
        """What `json_file` says, read at the first use; InputError as in `read_instances`."""
        return read_instances(self.json_file or "", self.categories, self.name)


def class_table(name: str, classes: Sequence[str]) -> tuple[Category, ...]:
    """The categories of data set `name`, without instances, from class names by label; InputError
    where there is none, or one is blank."""
    if isinstance(classes, str) or not classes:
        raise InputError(f"data set {name}: classes must be a list of at least one class name")
    if blank := [label for label in classes if not label.strip()]:
        raise InputError(f"data set {name}: the class name {blank[0]!r} is blank")
    return tuple(Category(i, label, False) for i, label in enumerate(classes))


@dataclass(frozen=True)
class Listing:
    """What a look at the files tells."""

    records: list[Record]  # of the images that can be used
    problems: Sequence[str] = ()  # sentences that name what is left out
    notes: Sequence[str] = ()  # sentences on what is odd but harmless


@dataclass(frozen=True)
class Dataset:
    """A data set: its facts and a way to list its images.

    `records()` gives Detectron2's dictionaries, one per image, in a fixed order: `file_name`,
    `image_id`, `height`, `width`, and `pan_seg_file_name` + `segments_info` (category ids
    contiguous) or `sem_seg_file_name`.

    `problems` are sentences that name what cannot be used, `notes` what is odd but harmless; those
    that `load` gives are among them after `listed`.
    """

    metadata: Metadata
    load: Callable[[], Listing]  # looks at the files
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def listed(self) -> "Dataset":
        """The data set with its files looked at, once: all `problems` and `notes` are known."""
        listing = self.load()
        return Dataset(
            self.metadata,
            lambda: Listing([dict(record) for record in listing.records]),
            (*self.problems, *listing.problems),
            (*self.notes, *listing.notes),
        )

    def records(self, strict: bool = True) -> list[Record]:
        """List the images; the dictionaries are the caller's to change. The first of the problems
        is an InputError where `strict`; otherwise what they name is left out."""
        listing = self.load()
        if strict and (problems := [*self.problems, *listing.problems]):
            raise InputError(problems[0])
        return listing.records

    def with_instances(self) -> "Dataset":
        """The data set with its `json_file` read; annotations of no image are problems too."""
        more = self.metadata.instances.problems if self.metadata.json_file else ()
        return replace(self, problems=tuple(dict.fromkeys((*self.problems, *more))))


def _field(record: Mapping[str, Any], key: str) -> Any:
    if key not in record:
        image_id = record.get("image_id")
        raise InputError(f"the record of image {image_id} has no field {key}, which is needed")
    return record[key]


def _check_size(label: NDArray[np.int32], record: Mapping[str, Any], path: Any) -> None:
    height, width = record.get("height", label.shape[0]), record.get("width", label.shape[1])
    if label.shape != (height, width):
        raise InputError(
            f"{path} is {label.shape[0]} x {label.shape[1]} (height x width) but the fields "
            f"height and width of image {record.get('image_id')} say {height} x {width}"
        )

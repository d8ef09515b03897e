"""Our data sets in Detectron2's catalogs, complete enough for its models and evaluators."""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from iopath.common.file_io import get_cache_dir

from lqn_seg.data.catalog import Metadata, Record, dataset_names, get_dataset
from lqn_seg.data.derived import complete_records
from lqn_seg.errors import InputError

_SAME_IN_BOTH = (
    *("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"),
    *("image_root", "panoptic_root", "panoptic_json", "evaluator_type", "ignore_label"),
)
_registered: set[str] = set()


def register_datasets() -> None:
    """Put our data sets for segmentation into Detectron2's catalog, where no name is taken."""
    for name in dataset_names(labelled=False):
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, functools.partial(load_records, name))
            _registered.add(name)
        if name in _registered:
            with contextlib.suppress(InputError):  # not there yet; said when it is used
                set_metadata(get_dataset(name).metadata)


def class_table(cfg: CfgNode) -> tuple[frozenset[int], int]:
    """Contiguous ids of the things, and the number of classes, of DATASETS.TEST[0].

    Raises:
        InputError: there is none, or it is unknown or lacks its files.
    """
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST is empty; its first data set says what the classes are")
    name = cfg.DATASETS.TEST[0]
    if name in _registered or name not in DatasetCatalog:
        metadata = get_dataset(name).metadata
        return metadata.thing_ids, metadata.num_classes
    theirs = MetadataCatalog.get(name)
    things = theirs.get("thing_dataset_id_to_contiguous_id", {})
    return frozenset(things.values()), len(theirs.get("stuff_classes") or theirs.thing_classes)


def set_metadata(metadata: Metadata) -> None:
    """Fill Detectron2's entry; one that was made for other files of the same name is replaced.

    ``stuff_classes`` are all names by contiguous id, as for Mask2Former. ``thing_classes`` are the
    things alone where they come first, for COCOEvaluator takes nothing else, and otherwise all
    names, for the visualiser looks names up by contiguous id.
    """
    things_first = metadata.thing_ids == frozenset(range(len(metadata.thing_ids)))
    count = len(metadata.thing_ids) if things_first else metadata.num_classes
    entries: dict[str, Any] = {key: getattr(metadata, key) for key in _SAME_IN_BOTH}
    names, colors = list(metadata.class_names), [c.color for c in metadata.categories]
    entries |= {"thing_classes": names[:count], "stuff_classes": names, "label_divisor": 1000}
    if metadata.json_file:  # Detectron2's COCOEvaluator takes None for a file name
        entries["json_file"] = metadata.json_file
    if all(colors):
        entries |= {"thing_colors": colors[:count], "stuff_colors": colors}
    json = metadata.panoptic_json
    if MetadataCatalog.get(metadata.name).get("panoptic_json", json) != json:
        MetadataCatalog.pop(metadata.name)
    MetadataCatalog.get(metadata.name).set(**entries)


def load_records(name: str) -> list[Record]:
    """`complete_records`, once a process; label maps go to Detectron2's cache ($FVCORE_CACHE)."""
    metadata = get_dataset(name).metadata
    set_metadata(metadata)
    return [dict(record) for record in _load(name, metadata.panoptic_json)]


@functools.cache
def _load(name: str, panoptic_json: str | None) -> list[Record]:
    where = zlib.crc32(os.fsencode(os.path.abspath(panoptic_json or name)))
    folder = os.path.join(get_cache_dir(), "lqn_seg", f"{name}-{where:08x}")
    records = complete_records(get_dataset(name), folder)
    for annotation in (thing for record in records for thing in record["annotations"]):
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
    return records

"""Facts and records of a data set as Detectron2 wants them."""

import functools
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.file_names import file_name
from lqn_seg.data.images import write_label_map
from lqn_seg.data.metadata import Dataset, Metadata, Record
from lqn_seg.errors import InputError


def detectron2_facts(metadata: Metadata) -> dict[str, Any]:
    """The facts of a data set by Detectron2's names, for its ``MetadataCatalog``.

    ``stuff_classes`` are all names by contiguous id, and the "stuff" mapping has every id, as for
    Mask2Former. ``thing_classes`` are the things alone where they come first, for COCOEvaluator
    takes nothing else, and otherwise all names, for the visualiser looks names up by contiguous id.
    """
    keys = ("image_root", "panoptic_root", "panoptic_json", "evaluator_type", "ignore_label")
    facts: dict[str, Any] = {key: getattr(metadata, key) for key in keys}
    table, things = metadata.dataset_id_to_contiguous_id, metadata.thing_ids
    count = len(things) if things == set(range(len(things))) else metadata.num_classes
    names, colors = list(metadata.class_names), [c.color for c in metadata.categories]
    facts |= {
        "thing_dataset_id_to_contiguous_id": {k: v for k, v in table.items() if v in things},
        "stuff_dataset_id_to_contiguous_id": dict(table),
        "thing_classes": names[:count],
        "stuff_classes": names,
        "label_divisor": 1000,
    }
    if metadata.json_file:  # Detectron2's COCOEvaluator takes None for a file name
        facts["json_file"] = metadata.json_file
    if all(colors):
        facts |= {"thing_colors": colors[:count], "stuff_colors": colors}
    return facts


def complete_records(dataset: Dataset, folder: str | os.PathLike[str]) -> list[Record]:
    """A data set's records with ``annotations`` and ``sem_seg_file_name``, where it has them. Label
    maps are written to `folder` (contiguous ids); a label that needs over 8 bits is an InputError.
    """
    metadata, records = dataset.metadata, dataset.with_instances().records()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for record in records:
        # No empty list where there are no things at all: Detectron2's loaders would leave out every
        # image, as one without objects.
        if metadata.thing_ids and (metadata.json_file or "segments_info" in record):
            record["annotations"] = metadata.read_instances(record)
        if "segments_info" in record or "sem_seg_file_name" in record:
            if max(metadata.num_classes, metadata.ignore_label) > 255:
                raise InputError(
                    f"data set {metadata.name} has {metadata.num_classes} classes and the ignore "
                    f"label {metadata.ignore_label}; Detectron2 reads 8-bit label maps, 0 .. 255"
                )
            path = Path(folder, f"{file_name(record['image_id'])}.png")
            write_label_map(path, metadata.read_semantic(record))
            record["sem_seg_file_name"] = str(path)
    return records


def cached_records(name: str, metadata: Metadata, cache: str) -> list[Record]:
    """`complete_records` of a known data set, once a process and whereabouts of its files; label
    maps go to a folder of the data set's below `cache`."""
    files = (metadata.image_root, metadata.sem_seg_root, metadata.panoptic_json)
    return [dict(record) for record in _cached_records(name, files, cache)]


@functools.cache
def _cached_records(name: str, files: tuple[str | None, ...], cache: str) -> list[Record]:
    where = zlib.crc32(os.fsencode(repr([file and os.path.abspath(file) for file in files])))
    return complete_records(get_dataset(name), Path(cache, "lqn_seg", f"{name}-{where:08x}"))


def write_label_maps(dataset: Dataset, target: Callable[[Record], str | Path]) -> int:
    """Write every image's label map (contiguous ids) to its target; returns their number."""
    records = dataset.records()
    for record in tqdm(records, desc=dataset.metadata.name, unit="image"):
        write_label_map(target(record), dataset.metadata.read_semantic(record))
    return len(records)

"""What Detectron2 wants of a record and the data set holds otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from lqn_seg.data.images import write_label_map
from lqn_seg.data.metadata import Dataset, Record


def complete_records(dataset: Dataset, folder: str | os.PathLike[str]) -> list[Record]:
    """A data set's records with ``annotations`` and ``sem_seg_file_name``, where it has them.

    Args:
        dataset: what to complete.
        folder: where the label maps are written (contiguous ids, 8 bits); several processes may
            write them at once.

    Raises:
        InputError: a file of the data set is missing or malformed.
    """
    metadata, records = dataset.metadata, dataset.with_instances().records()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for record in records:
        has_instances = metadata.json_file or "segments_info" in record
        record["annotations"] = metadata.read_instances(record) if has_instances else []
        if "segments_info" in record or "sem_seg_file_name" in record:
            path = Path(folder, f"{record['image_id']}.png")
            write_label_map(path, metadata.read_semantic(record))
            record["sem_seg_file_name"] = str(path)
    return records

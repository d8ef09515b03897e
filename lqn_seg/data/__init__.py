"""Framework-free readers, category tables and corruptions."""

from lqn_seg.data.catalog import (
    Category,
    Dataset,
    Metadata,
    dataset_names,
    get_dataset,
    register_coco_panoptic,
)
from lqn_seg.data.corruptions import CORRUPTIONS, corrupt
from lqn_seg.data.images import read_id_map, read_image, read_label_map, write_id_map

__all__ = [
    "CORRUPTIONS",
    "Category",
    "Dataset",
    "Metadata",
    "corrupt",
    "dataset_names",
    "get_dataset",
    "read_id_map",
    "read_image",
    "read_label_map",
    "register_coco_panoptic",
    "write_id_map",
]

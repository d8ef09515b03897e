"""Our data sets in Detectron2's catalogs, complete enough for its models and evaluators."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2 import data
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from iopath.common.file_io import get_cache_dir

from lqn_seg.data.catalog import Record, dataset_names, get_dataset
from lqn_seg.data.derived import cached_records, detectron2_facts
from lqn_seg.errors import InputError

_registered: set[str] = set()


class LazyMetadata(data.Metadata):
    """Detectron2's entry of one of our data sets, filled when it is first asked for something.
    Until its files are there an attribute is missing, and the error says which file is."""

    def __getattr__(self, key: str) -> Any:
        if "evaluator_type" not in vars(self) and not key.startswith("__"):
            try:
                facts = detectron2_facts(get_dataset(self.name).metadata)
            except InputError as error:
                raise AttributeError(str(error)) from None
            self.__dict__.update({**facts, **vars(self)})
        return getattr(self, key) if key in vars(self) else super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        self.get("evaluator_type")
        return super().as_dict()


def register_datasets() -> None:
    """Put our data sets for segmentation into Detectron2's catalogs, where no name is taken."""
    for name in dataset_names(labelled=False):
        if name not in DatasetCatalog:
            DatasetCatalog[name] = partial(load_records, name)
            _registered.add(name)
            MetadataCatalog[name] = LazyMetadata(**vars(MetadataCatalog.get(name)))


def yield_name(name: str, func: Callable[[], list[Record]]) -> None:
    """`DatasetCatalog.register`, but whoever comes later has a name that is ours: Mask2Former
    registers ADE20K's when it is imported, and would stop at a name that is taken."""
    if name in _registered:
        _registered.discard(name)
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    type(DatasetCatalog).register(DatasetCatalog, name, func)


def class_table(datasets: Sequence[str]) -> tuple[frozenset[int], Sequence[str]]:
    """Contiguous ids of the things, and the names of all classes, of the first data set."""
    if not datasets:
        raise InputError("DATASETS.TEST is empty; its first data set says what the classes are")
    name = datasets[0]
    if name in _registered or name not in DatasetCatalog:
        metadata = get_dataset(name).metadata
        return metadata.thing_ids, metadata.class_names
    theirs = MetadataCatalog.get(name)
    things = theirs.get("thing_dataset_id_to_contiguous_id", {})
    return frozenset(things.values()), theirs.get("stuff_classes") or theirs.thing_classes


def load_records(name: str) -> list[Record]:
    """`cached_records`; label maps go to Detectron2's cache ($FVCORE_CACHE)."""
    metadata = get_dataset(name).metadata
    known, facts = vars(MetadataCatalog.get(name)), detectron2_facts(metadata)
    if any(known.get(key, value) != value for key, value in facts.items()):
        MetadataCatalog[name] = LazyMetadata(name=name)  # it was of other files of the same name
    records = cached_records(name, metadata, get_cache_dir())
    for annotation in (thing for record in records for thing in record.get("annotations", ())):
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
    return records

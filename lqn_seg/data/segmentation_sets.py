"""The built-in data sets for segmentation: the demo, COCO, ADE20K and street scenes."""

from importlib.resources import files
from pathlib import Path

from lqn_seg.data.cityscapes_sets import CITYSCAPES_SETS
from lqn_seg.data.coco import load_coco_instances, load_coco_panoptic
from lqn_seg.data.label_folders import load_label_folders
from lqn_seg.data.metadata import Dataset
from lqn_seg.data.sources import SETS, sources


def _demo(split: str, name: str, root: Path) -> Dataset:
    folder = root / "demo"
    file = folder / "annotations" / f"panoptic_{split}.json"
    return load_coco_panoptic(name, folder / split, folder / f"panoptic_{split}", file)


def _coco_panoptic(split: str, name: str, root: Path) -> Dataset:
    coco, panoptic = root / "coco", f"panoptic_{split}2017"
    instances = coco / "annotations" / f"instances_{split}2017.json"
    return load_coco_panoptic(
        name,
        coco / f"{split}2017",
        coco / panoptic,
        coco / "annotations" / f"{panoptic}.json",
        json_file=instances if instances.is_file() else None,
    )


def _coco_instances(split: str, name: str, root: Path) -> Dataset:
    file = root / "coco" / "annotations" / f"instances_{split}2017.json"
    return load_coco_instances(name, root / "coco" / f"{split}2017", file)


# ADE20K's classes, kind and first name, in the order of objectInfo150.txt; raw label = index + 1.
# The instance category k = 1 .. 100 of annotations_instance/ is the k-th thing.
_LINES = (files("lqn_seg.data") / "ade20k.txt").read_text().splitlines()
_ADE20K = [line.split(" ", 1) for line in _LINES]
ADE20K_CLASSES = tuple(name for _, name in _ADE20K)
ADE20K_STUFF = frozenset(i for i, (kind, _) in enumerate(_ADE20K) if kind == "stuff")
ADE20K_RAW_LABELS = (255, *range(150))  # raw label 0 is "other"
ADE20K_SPLITS = SETS["segmentation"]["ade20k_sem_seg_<split>"]["splits"]
ADE20K_FOLDER = "ADEChallengeData2016"


def _ade20k_labels(split: str, folder: Path) -> tuple[Path, tuple[int, ...] | None]:
    """Folder of label maps (contiguous ids where Detectron2's script made them, else raw), and what
    their labels mean."""
    converted = folder / "annotations_detectron2" / ADE20K_SPLITS[split]
    if converted.is_dir():
        return converted, None
    return folder / "annotations" / ADE20K_SPLITS[split], ADE20K_RAW_LABELS


def _ade20k(split: str, name: str, root: Path) -> Dataset:
    folder = root / ADE20K_FOLDER
    label_dir, table = _ade20k_labels(split, folder)
    return load_label_folders(
        name, folder / "images" / ADE20K_SPLITS[split], label_dir, ADE20K_CLASSES, label_table=table
    )


def _ade20k_panoptic(split: str, name: str, root: Path) -> Dataset:
    """Mask2Former's layout. Semantic truth is the label maps, where they are: they differ from the
    panoptic ones at pixels that only the instance annotations cover."""
    folder = root / ADE20K_FOLDER
    label_dir, table = _ade20k_labels(split, folder)
    has_labels = label_dir.is_dir()
    return load_coco_panoptic(
        name,
        folder / "images" / ADE20K_SPLITS[split],
        folder / f"ade20k_panoptic_{split}",
        folder / f"ade20k_panoptic_{split}.json",
        evaluator_type="ade20k_panoptic_seg",
        label_dir=label_dir if has_labels else None,
        label_table=table if has_labels else None,
    )


CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)  # SegNet's selection
CAMVID_IGNORE = 11
# Split -> folder below images/ and labels/, and drives (prefixes of file names). CamVid is video:
# neighbouring frames are near duplicates, so it is split by drive. The usual validation frames come
# from 0016E5, as most training frames do; 0001TP, at dusk, is held back as the unseen drive.
CAMVID_SPLITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("train", ("0006R0", "0016E5")),
    "val": ("val", ()),
    "report": ("train", ("0001TP",)),
}


def _camvid(split: str, name: str, root: Path) -> Dataset:
    folder, drives = CAMVID_SPLITS[split]
    images, labels = (root / "camvid" / kind / folder for kind in ("images", "labels"))
    return load_label_folders(name, images, labels, CAMVID_CLASSES, CAMVID_IGNORE, drives)


IDD_LITE_CLASSES = (
    *("drivable", "non-drivable", "living things", "vehicles", "roadside objects"),
    *("far objects", "sky"),
)


def _idd_lite(split: str, name: str, root: Path) -> Dataset:
    images, labels = (root / "idd_lite" / kind / split for kind in ("images", "labels"))
    return load_label_folders(name, images, labels, IDD_LITE_CLASSES)


SEGMENTATION = sources(
    "segmentation",
    {
        "demo_panoptic_<split>": _demo,
        "coco_2017_<split>_panoptic": _coco_panoptic,
        "coco_2017_<split>": _coco_instances,
        "ade20k_sem_seg_<split>": _ade20k,
        "ade20k_panoptic_<split>": _ade20k_panoptic,
        **CITYSCAPES_SETS,
        "camvid_sem_seg_<split>": _camvid,
        "idd_lite_sem_seg_<split>": _idd_lite,
    },
)

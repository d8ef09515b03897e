"""The data sets with Cityscapes' 19 classes: Cityscapes itself, and streets at night, in bad
weather and all over the world. A teacher of Cityscapes is scored on all of them as it is.

Layouts are those that the authors unpack to, as public code reads them:

- Cityscapes: github.com/mcordts/cityscapesScripts;
- ACDC (acdc.vision.ee.ethz.ch): github.com/w1oves/Rein, configs/_base_/datasets/fog-acdc_*.py;
- Dark Zurich (trace.ethz.ch/publications/2019/GCMA_UIoU): github.com/open-mmlab/mmsegmentation,
  mmseg/datasets/dark_zurich.py and its PSPNet configuration;
- Foggy Cityscapes (people.ee.ethz.ch/~csakarid/SFSU_synthetic): names end in
  `_leftImg8bit_foggy_beta_0.02.png`; its "refined" part has 52 of the 500 validation frames;
- Rain Cityscapes (www.cityscapes-dataset.com; Hu et al., CVPR 2019): names end in
  `_leftImg8bit_rain_alpha_0.01_beta_0.005_dropsize_0.01_pattern_1.png`, many rains of one frame;
- BDD100K (doc.bdd100k.com): mmsegmentation, mmseg/datasets/bdd100k.py; masks hold train ids;
- WildDash 2 (wilddash.cc): github.com/ozendelait/wilddash_scripts; `labels/` hold label ids.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cityscapesscripts.helpers.labels import labels as CITYSCAPES_LABELS

from lqn_seg.data.images import is_junk, split_hidden
from lqn_seg.data.label_folders import list_pairs, load_label_folders
from lqn_seg.data.metadata import Category, Dataset, Listing, Metadata
from lqn_seg.data.sources import SETS
from lqn_seg.errors import InputError

_EVALUATED = [label for label in CITYSCAPES_LABELS if not label.ignoreInEval]  # by train id
CITYSCAPES_CLASSES = tuple(label.name for label in _EVALUATED)
CITYSCAPES_IGNORE = 255
# By label id 0 .. 33: the train id, a contiguous id or `CITYSCAPES_IGNORE`. ("license plate" has id
# -1 and is in no label map.)
CITYSCAPES_TRAIN_IDS = tuple(label.trainId for label in CITYSCAPES_LABELS if label.id >= 0)
# WildDash 2 goes on from there. Its ids 34 .. 80 by the class of Cityscapes that its authors'
# "unified label policy" (wilddash_scripts) counts them as; those that it calls void are left out.
_WILDDASH_CLASSES = {
    "road": (38, 41, 43, 61, 64, 70, 74, 75, 76, 79),  # markings, holes, tram tracks, lanes, ...
    "sidewalk": (52, 65, 77, 80),  # curbs, lanes for bicycles, ...
    "wall": (56,),  # other barriers
    "pole": (45, 46),  # frames of signs, of cables
    "terrain": (78,),
    "rider": (47, 48, 49),
    "car": (35,),  # vans
    "truck": (34,),  # pick-ups
    "motorcycle": (58,),  # autorickshaws
}
_COUNTS_AS = {k: name for name, ids in _WILDDASH_CLASSES.items() for k in ids}
WILDDASH_TRAIN_IDS = CITYSCAPES_TRAIN_IDS + tuple(
    CITYSCAPES_CLASSES.index(_COUNTS_AS[k]) if k in _COUNTS_AS else CITYSCAPES_IGNORE
    for k in range(len(CITYSCAPES_TRAIN_IDS), 81)
)
_LABEL_IDS = "_gtFine_labelIds.png"


def _load_frames(
    metadata: Metadata, marker: str, label_suffix: str, variants: str = "", whole: bool = True
) -> Dataset:
    """Frames in folders, one for each city or drive.

    The images are `<image_root>/<folder>/<frame><marker><variants>.png`, and their label map is
    `<sem_seg_root>/<folder>/<frame><label_suffix>`, which all variants of a frame share. An image's
    id is its file name without marker and suffix.

    Args:
        metadata: whose roots these are.
        variants: pattern of what tells the images of a frame apart; "" where there is but one.
        whole: every label map should have an image; one that has none is a problem.
    """
    name, pattern = metadata.name, f"*{marker}{variants}.png"
    image_dir, label_dir = Path(metadata.image_root or ""), Path(metadata.sem_seg_root or "")

    def listing() -> Listing:
        found = sorted(image_dir.glob(f"*/{pattern}"))
        files = split_hidden(path for path in found if not is_junk(path.parent))
        if not files.images:
            raise InputError(f"folder {image_dir} of {name} holds no <folder>/{pattern} file")
        pairs = []
        for image in files.images:
            frame, _, variant = image.stem.partition(marker)
            label = label_dir / image.parent.name / f"{frame}{label_suffix}"
            pairs.append((frame + variant, image, label))
        image_id, count = Counter(pair[0] for pair in pairs).most_common(1)[0]
        if count > 1:
            raise InputError(f"folder {image_dir} of {name} holds {count} images {image_id}")
        labels = {*label_dir.glob(f"*/*{label_suffix}")} if whole else set()
        problems = files.problems(f"folder {image_dir} of {name}")
        unpaired = labels - {label for _, _, label in pairs}
        return list_pairs(name, pairs, sorted(unpaired), problems)

    return Dataset(metadata, listing)


def _metadata(
    name: str,
    image_dir: Path,
    label_dir: Path,
    label_table: tuple[int, ...] | None = CITYSCAPES_TRAIN_IDS,
    evaluator_type: str = "sem_seg",
) -> Metadata:
    """The 19 evaluated classes. No instances are read, so there are no things."""
    return Metadata(
        name=name,
        categories=tuple(Category(k.trainId, k.name, False, k.color) for k in _EVALUATED),
        evaluator_type=evaluator_type,
        ignore_label=CITYSCAPES_IGNORE,
        label_table=label_table,
        image_root=str(image_dir),
        sem_seg_root=str(label_dir),
    )


def _cityscapes(split: str, name: str, root: Path) -> Dataset:
    images, labels = (root / "cityscapes" / kind / split for kind in ("leftImg8bit", "gtFine"))
    metadata = _metadata(name, images, labels, evaluator_type="cityscapes_sem_seg")
    return _load_frames(metadata, "_leftImg8bit", _LABEL_IDS)


def _foggy_cityscapes(split: str, name: str, root: Path) -> Dataset:
    """One density of fog (`beta`); the labels are Cityscapes' own."""
    (beta, *_), part = split.split("_"), _part("foggy_cityscapes_<split>", split)
    folder = root / "cityscapes"
    metadata = _metadata(name, folder / "leftImg8bit_foggy" / part, folder / "gtFine" / part)
    return _load_frames(metadata, f"_leftImg8bit_foggy_beta_{beta}", _LABEL_IDS, whole=False)


def _rain_cityscapes(split: str, name: str, root: Path) -> Dataset:
    """All rains of a frame; the labels are Cityscapes' own."""
    folder = root / "cityscapes"
    metadata = _metadata(name, folder / "leftImg8bit_rain" / split, folder / "gtFine" / split)
    variants = "_alpha_*_beta_*_dropsize_*_pattern_*"
    return _load_frames(metadata, "_leftImg8bit_rain", _LABEL_IDS, variants, whole=False)


def _acdc(split: str, name: str, root: Path) -> Dataset:
    return _zurich(name, root / "acdc", _part("acdc_<split>", split))


def _dark_zurich(split: str, name: str, root: Path) -> Dataset:
    return _zurich(name, root / "dark_zurich", f"{split}/night")


def _zurich(name: str, folder: Path, part: str) -> Dataset:
    """ETH Zurich's layout: `labelTrainIds`, or where there are none `labelIds`."""
    images, labels = folder / "rgb_anon" / part, folder / "gt" / part
    train_ids, label_ids = "_gt_labelTrainIds.png", "_gt_labelIds.png"
    if any(labels.glob(f"*/*{label_ids}")) and not any(labels.glob(f"*/*{train_ids}")):
        return _load_frames(_metadata(name, images, labels), "_rgb_anon", label_ids)
    return _load_frames(_metadata(name, images, labels, None), "_rgb_anon", train_ids)


def _part(pattern: str, split: str) -> str:
    """The folder of a split, as sets.json has it."""
    return SETS["segmentation"][pattern]["splits"][split]


def _flat(
    name: str, images: Path, labels: Path, label_table: tuple[int, ...] | None = None
) -> Dataset:
    return load_label_folders(
        *(name, images, labels, CITYSCAPES_CLASSES, CITYSCAPES_IGNORE), label_table=label_table
    )


def _bdd100k(split: str, name: str, root: Path) -> Dataset:
    folder = root / "bdd100k"
    images, labels = folder / "images" / "10k" / split, folder / "labels" / "sem_seg" / "masks"
    return _flat(name, images, labels / split)


def _wilddash(split: str, name: str, root: Path) -> Dataset:
    """All public frames, labelled by WildDash's ids; prepare_wilddash.py makes those label maps
    where there is panoptic.json alone."""
    folder = root / "wilddash"
    return _flat(name, folder / "images", folder / "labels", WILDDASH_TRAIN_IDS)


def _cityscapes256(split: str, name: str, root: Path) -> Dataset:
    """Frames squeezed to 256 x 256, with label maps of train ids."""
    images, labels = (root / "cityscapes256" / kind / split for kind in ("images", "labels"))
    return _flat(name, images, labels)


CITYSCAPES_SETS: dict[str, Callable[[str, str, Path], Dataset]] = {
    "cityscapes_fine_sem_seg_<split>": _cityscapes,
    "cityscapes256_sem_seg_<split>": _cityscapes256,
    "foggy_cityscapes_<split>": _foggy_cityscapes,
    "rain_cityscapes_sem_seg_<split>": _rain_cityscapes,
    "acdc_<split>": _acdc,
    "dark_zurich_sem_seg_<split>": _dark_zurich,
    "bdd100k_sem_seg_<split>": _bdd100k,
    "wilddash_sem_seg_<split>": _wilddash,
}

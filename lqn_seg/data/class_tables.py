"""What checkpoints do not say of their classes: which are things (have instances), of some the
names, and the colours of Cityscapes. Told by the names, or where there are none by their number."""

import re
from collections.abc import Sequence

from cityscapesscripts.helpers.labels import labels as CITYSCAPES_LABELS
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from lqn_seg.data.class_maps import plain_name
from lqn_seg.data.metadata import Category
from lqn_seg.data.segmentation_sets import ADE20K_CLASSES, ADE20K_STUFF

_COCO_THINGS = tuple(
    name
    for name in MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if name not in ("__background__", "N/A")
)
# COCO panoptic's 53, in the order of their ids, which are beyond the things'.
_COCO_STUFF = (
    *("banner", "blanket", "bridge", "cardboard", "counter", "curtain", "door-stuff"),
    *("floor-wood", "flower", "fruit", "gravel", "house", "light", "mirror-stuff", "net"),
    *("pillow", "platform", "playingfield", "railroad", "river", "road", "roof", "sand", "sea"),
    *("shelf", "snow", "stairs", "tent", "towel", "wall-brick", "wall-stone", "wall-tile"),
    *("wall-wood", "water-other", "window-blind", "window-other", "tree-merged", "fence-merged"),
    *("ceiling-merged", "sky-other-merged", "cabinet-merged", "table-merged"),
    *("floor-other-merged", "pavement-merged", "mountain-merged", "grass-merged", "dirt-merged"),
    *("paper-merged", "food-other-merged", "building-other-merged", "rock-merged"),
    *("wall-other-merged", "rug-merged"),
)
_CITYSCAPES = [label for label in CITYSCAPES_LABELS if not label.ignoreInEval]  # by train id
_CITYSCAPES_COLORS = {label.name: label.color for label in _CITYSCAPES}
_DEMO_THINGS = ("disc", "ball", "ring", "square", "crate", "triangle", "star", "rod")
_DEMO_STUFF = ("sky", "grass", "water", "brick", "sand")
# All names by class, and those that are things.
_TABLES: tuple[tuple[tuple[str, ...], frozenset[str]], ...] = (
    ((*_COCO_THINGS, *_COCO_STUFF), frozenset(_COCO_THINGS)),
    (_COCO_THINGS, frozenset(_COCO_THINGS)),
    (ADE20K_CLASSES, frozenset(n for k, n in enumerate(ADE20K_CLASSES) if k not in ADE20K_STUFF)),
    (
        tuple(label.name for label in _CITYSCAPES),
        frozenset(label.name for label in _CITYSCAPES if label.hasInstances),
    ),
    ((*_DEMO_THINGS, *_DEMO_STUFF), frozenset(_DEMO_THINGS)),
)
_MOST = 0.9  # of a table's things, that a model must have
_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls a class without a name


def categories_of(
    class_names: Sequence[str], things: Sequence[str] | None = None
) -> tuple[Category, ...]:
    """A model's categories, by contiguous id.

    Args:
        class_names: the checkpoint's. Where it has none (LABEL_0, ...), those of the set with as
            many classes: COCO (133 panoptic, 80 instances), ADE20K (150) or Cityscapes (19).
        things: names of the classes that have instances; None: those of the set whose things are
            among the names, else none.
    """
    names, known = tuple(class_names), frozenset(things or ())
    if all(_UNNAMED.fullmatch(name) for name in names):
        names = next((table for table, _ in _TABLES if len(table) == len(names)), names)
    if things is None:
        given = {plain_name(name) for name in names}
        known = next((t for _, t in _TABLES if len(given & t) >= _MOST * len(t)), known)
    known = frozenset(map(plain_name, known))
    plain = [plain_name(name) for name in names]
    colors = _CITYSCAPES_COLORS if set(plain) == _CITYSCAPES_COLORS.keys() else {}
    return tuple(
        Category(i, name, key in known, colors.get(key))
        for i, (name, key) in enumerate(zip(names, plain))
    )

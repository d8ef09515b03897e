"""Which class of one street data set is which of another's: the one table of them.

A teacher of one set is scored on another where each of its classes is, or is part of, one of
theirs. Sets are told by their class names, so a teacher needs no more than those.
"""

from collections.abc import Sequence

# Cityscapes' 19, by train id: CamVid's 11 and IDD Lite's 7. IDD counts a rider among the living
# things and what is ridden among the vehicles; CamVid calls both together a bicyclist.
_CITYSCAPES = {
    "road": ("road", "drivable"),
    "sidewalk": ("pavement", "non-drivable"),
    "building": ("building", "far objects"),
    "wall": ("building", "roadside objects"),
    "fence": ("fence", "roadside objects"),
    "pole": ("pole", "roadside objects"),
    "traffic light": ("sign", "roadside objects"),
    "traffic sign": ("sign", "roadside objects"),
    "vegetation": ("tree", "far objects"),
    "terrain": ("tree", "non-drivable"),
    "sky": ("sky", "sky"),
    "person": ("pedestrian", "living things"),
    "rider": ("bicyclist", "living things"),
    "car": ("car", "vehicles"),
    "truck": ("car", "vehicles"),
    "bus": ("car", "vehicles"),
    "train": ("car", "vehicles"),
    "motorcycle": ("bicyclist", "vehicles"),
    "bicycle": ("bicyclist", "vehicles"),
}
_CAMVID = {  # its 11: IDD Lite's 7
    "sky": "sky",
    "building": "far objects",
    "pole": "roadside objects",
    "road": "drivable",
    "pavement": "non-drivable",
    "tree": "far objects",
    "sign": "roadside objects",
    "fence": "roadside objects",
    "car": "vehicles",
    "pedestrian": "living things",
    "bicyclist": "living things",
}
_MAPS = (
    {name: camvid for name, (camvid, _) in _CITYSCAPES.items()},
    {name: idd_lite for name, (_, idd_lite) in _CITYSCAPES.items()},
    _CAMVID,
)


def plain_name(name: object) -> str:
    """A class name as names are compared: "Traffic_Light " is "traffic light"."""
    return str(name).strip().casefold().replace("_", " ")


def class_map(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...] | None:
    """For each class of a teacher the one of a data set that it counts as, both by their names in
    order; None where there is no map between these two sets of classes."""
    theirs, ours = ([plain_name(name) for name in names] for names in (source, target))
    for table in _MAPS:
        if set(theirs) == set(table) and set(ours) == set(table.values()):
            return tuple(ours.index(table[name]) for name in theirs)
    return None

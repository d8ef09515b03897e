"""Class maps against the ids of the proposal that they were checked from, written out here."""

from __future__ import annotations

import pytest
from cityscapesscripts.helpers.labels import labels

from lqn_seg.data.class_maps import class_map
from lqn_seg.data.segmentation_sets import CAMVID_CLASSES, IDD_LITE_CLASSES

CITYSCAPES = tuple(label.name for label in labels if not label.ignoreInEval)
# Target id: Cityscapes' train ids.
TO_IDD_LITE = {0: [0], 1: [1, 9], 2: [11, 12], 3: range(13, 19), 4: range(3, 8), 5: [2, 8], 6: [10]}
TO_CAMVID = {
    **{0: [10], 1: [2, 3], 2: [5], 3: [0], 4: [1], 5: [8, 9], 6: [6, 7], 7: [4]},
    **{8: [13, 14, 15, 16], 9: [11], 10: [12, 17, 18]},
}


@pytest.mark.parametrize(
    "target, ids", [(IDD_LITE_CLASSES, TO_IDD_LITE), (CAMVID_CLASSES, TO_CAMVID)]
)
def test_cityscapes_classes_become_those_of(target, ids):
    expected = {source: k for k, sources in ids.items() for source in sources}
    found = class_map(CITYSCAPES, target)
    assert found == tuple(expected[k] for k in range(19))


def test_what_cityscapes_merges_for_camvid_is_merged_on_for_idd_lite():
    """By way of CamVid a class of Cityscapes lands where it lands directly, but for what CamVid
    calls by one name and IDD Lite by two."""
    camvid, idd = class_map(CITYSCAPES, CAMVID_CLASSES), class_map(CITYSCAPES, IDD_LITE_CLASSES)
    on = class_map(CAMVID_CLASSES, IDD_LITE_CLASSES)
    other = {CITYSCAPES[k] for k in range(19) if on[camvid[k]] != idd[k]}
    assert other == {"wall", "terrain", "motorcycle", "bicycle"}


def test_names_are_compared_as_they_are_meant():
    shouted = [name.upper().replace(" ", "_") for name in CITYSCAPES]
    assert class_map(shouted, IDD_LITE_CLASSES) == class_map(CITYSCAPES, IDD_LITE_CLASSES)


def test_the_order_of_a_teachers_classes_is_its_own():
    found = class_map(CITYSCAPES[::-1], IDD_LITE_CLASSES)
    assert found == class_map(CITYSCAPES, IDD_LITE_CLASSES)[::-1]


@pytest.mark.parametrize(
    "source, target",
    [
        (CITYSCAPES, CITYSCAPES),  # nothing to map
        (IDD_LITE_CLASSES, CITYSCAPES),  # classes cannot be split
        (CITYSCAPES[:18], IDD_LITE_CLASSES),
        ([f"LABEL_{k}" for k in range(19)], IDD_LITE_CLASSES),
        (CITYSCAPES, ()),
    ],
)
def test_other_sets_have_no_map(source, target):
    assert class_map(source, target) is None

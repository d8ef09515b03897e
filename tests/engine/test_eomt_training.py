"""Targets of a training: one mask a segment, in the window that the teacher sees."""

from __future__ import annotations

import pytest
import torch

from lqn_seg.engine.training.eomt_training import fit_targets, segment_targets
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import PaddedWindow

THINGS = frozenset({0, 1})
LABELS = torch.tensor([[3, 3, 0, 0], [3, 3, 1, 255]])  # a crowd of 1, and one instance of 0
DISC = LABELS == 0


def as_sets(masks, classes):
    return {(c, tuple(map(tuple, m.nonzero().tolist()))) for m, c in zip(masks, classes.tolist())}


def test_instances_are_segments_and_a_crowd_is_none():
    masks, classes = segment_targets(DISC[None], torch.tensor([0]), LABELS, THINGS, 255)
    assert as_sets(masks, classes) == as_sets(
        torch.stack([DISC, LABELS == 3]), torch.tensor([0, 3])
    )


def test_a_label_map_alone_has_a_segment_for_each_class():
    masks, classes = segment_targets(None, None, LABELS, THINGS, 255)
    assert classes.tolist() == [0, 1, 3] and all(
        torch.equal(mask, label == LABELS) for mask, label in zip(masks, classes.tolist())
    )


def test_two_instances_of_a_class_stay_two_and_empty_ones_go():
    two = torch.stack([DISC, LABELS == 1, torch.zeros_like(DISC)])
    masks, classes = segment_targets(two, torch.tensor([0, 0, 1]), None, THINGS, 255)
    assert classes.tolist() == [0, 0] and torch.equal(masks, two[:2])


def test_nothing_to_learn_from_has_the_images_size():
    masks, classes = segment_targets(None, None, torch.full((5, 7), 255), THINGS, 255)
    assert masks.shape == (0, 5, 7) and classes.shape == (0,) and classes.dtype == torch.int64


def test_masks_are_where_their_pixels_are_in_the_window():
    """A bright rectangle on black: its mask and its pixels must fall on each other."""
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    image[:, 12:30, 20:50] = 255
    crop, masks = fit_targets(image, (image[0] > 0)[None], torch.tensor([2]), (32, 32), 3)
    assert crop.shape == (3, 32, 32) and masks.shape == (1, 32, 32)
    assert torch.equal(crop, PaddedWindow.of((60, 90), (32, 32)).crops(image)[0])
    inside = crop[0] > 250
    assert (masks[0][inside] == 1).all() and (masks[0][crop[0] == 0] == 0).all()
    assert masks[:, 22:].sum() == 0  # padding
    assert fit_targets(image, torch.zeros(0, 60, 90), torch.zeros(0), (32, 32), 3)[1].shape[0] == 0


@pytest.mark.parametrize("label", [3, -1])
def test_a_class_that_the_model_has_not_is_named(label):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"class -?\d, but the model's are 0 \.\. 2"):
        fit_targets(image, torch.ones(1, 8, 8).bool(), torch.tensor([label]), (8, 8), 3)

"""The fingerprint of a prediction: equal for equal predictions, and for no others."""

from __future__ import annotations

import copy

import pytest
import torch

from lqn_seg.segmentation.postprocess import Instances, mask_hash


def panoptic():
    ids = torch.tensor([[0, 1, 1], [2, 2, 1]], dtype=torch.int32)
    segments = [
        {"id": 1, "isthing": True, "category_id": 3, "score": 0.9},
        {"id": 2, "isthing": False, "category_id": 5, "score": 0.8},
    ]
    return {"panoptic_seg": (ids, segments), "sem_seg": torch.rand(6, 2, 3)}


def test_ids_and_categories_count_and_nothing_else():
    one, same = panoptic(), panoptic()
    ids, segments = same["panoptic_seg"]
    segments[0]["score"] = 0.1
    same["panoptic_seg"] = (ids.long().T.contiguous().T, segments[::-1])
    assert mask_hash(one) == mask_hash(same)
    assert len(mask_hash(one)) == 16


@pytest.mark.parametrize("change", ["pixel", "category", "shape"])
def test_a_different_panoptic_prediction_has_another_hash(change):
    one, other = panoptic(), copy.deepcopy(panoptic())
    ids, segments = other["panoptic_seg"]
    if change == "pixel":
        ids[0, 0] = 1
    elif change == "category":
        segments[1]["category_id"] = 4
    else:
        other["panoptic_seg"] = (ids.view(3, 2), segments)
    assert mask_hash(one) != mask_hash(other)


def test_semantic_scores_count_by_their_winner():
    scores = torch.rand(4, 3, 3)
    assert mask_hash({"sem_seg": scores}) == mask_hash({"sem_seg": 2 * scores})
    assert mask_hash({"sem_seg": scores}) != mask_hash({"sem_seg": -scores})


def test_instances_count_where_there_is_nothing_else():
    masks, classes = torch.rand(2, 3, 3) > 0.5, torch.tensor([0, 1])
    one = Instances((3, 3), masks, torch.tensor([0.9, 0.8]), classes)
    other = Instances((3, 3), masks, torch.tensor([0.9, 0.8]), classes.flip(0))
    assert mask_hash({"instances": one}) != mask_hash({"instances": other})
    assert mask_hash({"instances": one}) == mask_hash({"instances": copy.deepcopy(one)})

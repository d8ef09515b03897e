"""Maps a few at a time: the strongest of them against `max`, and bits that blocks do not change."""

import math

import pytest
import torch

from lqn_seg.core import planes
from lqn_seg.core.planes import runs, strongest
from lqn_seg.segmentation.postprocess import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_the_strongest_is_the_first_of_the_highest(count):
    maps = torch.randint(-2, 3, (count, 7, 5), generator=torch.Generator().manual_seed(0)) / 4
    best, index = strongest(maps)
    expected = maps.max(0)
    assert torch.equal(best, expected.values) and torch.equal(index, expected.indices)


def test_runs_are_whole_vectors_and_cover_all_maps(monkeypatch):
    for values, shape in [(1 << 20, (7, 96, 96)), (64, (70, 3, 5)), (1, (9, 8, 8)), (1, (3, 0, 4))]:
        monkeypatch.setattr(planes, "_VALUES", values)
        slices = list(runs(torch.Size(shape)))
        assert [k for s in slices for k in range(shape[0])[s]] == list(range(shape[0]))
        for one in slices[:-1]:
            assert (one.stop - one.start) * shape[1] * shape[2] % 32 == 0
            assert one.stop - one.start >= 2


def test_a_mask_that_is_not_a_number_wins_nothing():
    masks = torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[5.0, 0, 0], [0, 5, 0], [4, 0, 0], [0, 4, 0]])
    others = [0, 2, 3]
    expected, segments = panoptic_inference(masks[others], classes[others], {0, 1}, 0.3, 0.0)
    masks[1] = math.nan
    id_map, same = panoptic_inference(masks.requires_grad_(), classes, {0, 1}, 0.3, 0.0)
    assert torch.equal(id_map, expected) and same == segments and len(same) > 1


def test_blocks_change_no_bit(monkeypatch):
    """Of a size that is no whole number of vectors."""
    generator = torch.Generator().manual_seed(0)
    masks, classes = (
        torch.randn(shape, generator=generator) * 4 for shape in ((50, 67, 45), (50, 7))
    )

    def predict():
        id_map, segments = panoptic_inference(masks, classes, {1, 3}, 0.3, 0.2)
        instances = instance_inference(masks, classes, {1, 3})
        parts = instances.pred_masks, instances.scores, instances.pred_classes
        return [semantic_inference(masks, classes), id_map, *parts], segments

    monkeypatch.setattr(planes, "_VALUES", 1 << 30)
    whole, segments = predict()
    monkeypatch.setattr(planes, "_VALUES", 1)
    blocks, same = predict()
    assert segments and segments == same
    assert all(torch.equal(one, other) for one, other in zip(whole, blocks, strict=True))

"""Post-processing against transformers' EoMT processor, literal loops, and what must not matter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqn_seg.segmentation.postprocess import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
)

THINGS = {0, 2}
STUFF = [1, 3]
CLASSES = 4


def logits(seed: int, queries: int = 12, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries whose masks are overlapping disks, most sure of their class, some of the same."""
    g = torch.Generator().manual_seed(seed)
    axis = torch.arange(size) / size
    centre = torch.rand(2, queries, 1, 1, generator=g)
    distance = ((axis[:, None] - centre[0]) ** 2 + (axis[None] - centre[1]) ** 2).sqrt()
    radius = 0.1 + 0.2 * torch.rand(queries, 1, 1, generator=g)
    classes = torch.randint(0, CLASSES + 1, (queries,), generator=g)
    sure = torch.rand(queries, 1, generator=g) * 6 + 1
    noise = torch.rand(queries, CLASSES + 1, generator=g)  # no ties between classes
    one_hot = torch.nn.functional.one_hot(classes, CLASSES + 1)
    return (radius - distance) * 40, one_hot * sure + noise


def canonical(id_map: torch.Tensor, segments: list[dict]) -> set:
    """The prediction without its numbering: {(class, pixels)}."""
    return {(s["category_id"], tuple((id_map == s["id"]).flatten().tolist())) for s in segments}


@pytest.mark.parametrize("overlap_threshold", [0.3, 0.8])
def test_panoptic_agrees_with_transformers(overlap_threshold: float) -> None:
    # The rules differ only where a ratio equals the threshold: we keep it, as the original does.
    transformers = pytest.importorskip("transformers")
    processor = transformers.EomtImageProcessor(size={"shortest_edge": 16, "longest_edge": 16})
    kept = 0
    for seed in range(40):
        masks, classes = logits(seed)
        outputs = SimpleNamespace(
            masks_queries_logits=masks[None], class_queries_logits=classes[None]
        )
        reference = processor.post_process_panoptic_segmentation(
            outputs,
            target_sizes=[(16, 16)],
            threshold=0.6,
            overlap_mask_area_threshold=overlap_threshold,
            stuff_classes=STUFF,
        )[0]
        id_map, segments = panoptic_inference(masks, classes, THINGS, 0.6, overlap_threshold)
        assert torch.equal(id_map, reference["segmentation"].int() + 1)
        assert [(s["id"], s["category_id"]) for s in segments] == [
            (s["id"] + 1, s["label_id"]) for s in reference["segments_info"]
        ]
        kept += len(segments)
    assert kept > 40


def square(rows: slice, columns: slice, inside: float = 9.0) -> torch.Tensor:
    mask = torch.full((10, 10), -9.0)
    mask[rows, columns] = inside
    return mask


def certain(*classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), CLASSES + 1) * 20.0


def test_panoptic_overlap_ratio_equal_to_the_threshold_is_kept() -> None:
    # The second mask has 50 pixels and wins 40 of them: ratio 0.8.
    masks = torch.stack([square(slice(0, 6), slice(0, 10), 12), square(slice(5, 10), slice(0, 10))])
    for threshold, kept in ((0.8, [0, 2]), (0.81, [0])):
        _, segments = panoptic_inference(masks, certain(0, 2), THINGS, 0.8, threshold)
        assert [s["category_id"] for s in segments] == kept
    id_map, segments = panoptic_inference(masks, certain(CLASSES, CLASSES), THINGS)
    assert segments == [] and id_map.dtype == torch.int32 and not id_map.any()


def test_panoptic_overlap_counts_pixels_won_below_one_half() -> None:
    # The weak query wins 20 of its 50 pixels, and 30 more where nobody's mask reaches 0.5.
    strong, weak = square(slice(0, 3), slice(0, 10), 12), square(slice(0, 5), slice(0, 10))
    weak[5:8] = -1
    id_map, segments = panoptic_inference(torch.stack([strong, weak]), certain(0, 2), THINGS)
    assert [s["category_id"] for s in segments] == [0, 2]
    assert (id_map == 2).sum() == 20  # what it won below 0.5 is not in the segment


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(12)))
def test_order_of_queries_changes_nothing_but_ids(seed: int, order: list[int]) -> None:
    masks, classes = logits(seed)
    before = panoptic_inference(masks, classes, THINGS, 0.5, 0.5)
    after = panoptic_inference(masks[order], classes[order], THINGS, 0.5, 0.5)
    assert canonical(*before) == canonical(*after)
    torch.testing.assert_close(
        semantic_inference(masks, classes), semantic_inference(masks[order], classes[order])
    )
    one, two = (instance_inference(masks[o], classes[o], THINGS, 48) for o in (range(12), order))
    torch.testing.assert_close(one.scores, two.scores)


def test_semantic_literal_loop() -> None:
    masks, classes = logits(3, queries=5, size=6)
    scores = semantic_inference(masks, classes)
    assert scores.shape == (CLASSES, 6, 6)
    for c, y, x in [(0, 0, 0), (1, 5, 2), (3, 4, 4)]:
        expected = sum(
            float(classes[q].softmax(0)[c]) / (1 + float(torch.exp(-masks[q, y, x])))
            for q in range(5)
        )
        assert float(scores[c, y, x]) == pytest.approx(expected, rel=1e-5)


def test_instance_literal_loop() -> None:
    masks, classes = logits(4, queries=6)
    result = instance_inference(masks, classes, THINGS, top_k=7)
    pairs = [(float(classes[q].softmax(0)[c]), q, c) for q in range(6) for c in range(CLASSES)]
    expected = []
    for probability, q, c in sorted(pairs, reverse=True)[:7]:
        inside = masks[q][masks[q] > 0]
        if c in THINGS:
            expected.append((probability * float(inside.sigmoid().mean()), c, masks[q] > 0))
    expected.sort(key=lambda row: -row[0])
    assert len(result) == len(expected) > 0
    assert result.scores.tolist() == pytest.approx([row[0] for row in expected], rel=1e-4)
    assert result.pred_classes.tolist() == [row[1] for row in expected]
    assert torch.equal(result.pred_masks, torch.stack([row[2] for row in expected]))
    assert result.image_size == (16, 16)


def test_instance_empty_mask_scores_zero_and_top_k_may_exceed_the_pairs() -> None:
    masks, classes = torch.full((1, 4, 4), -1.0), certain(0)
    result = instance_inference(masks, classes, THINGS, top_k=100)
    assert len(result) == 2
    assert not result.scores.any()
    assert len(instance_inference(masks, classes, set())) == 0


def test_shapes_are_checked() -> None:
    for infer in (semantic_inference, lambda m, c: panoptic_inference(m, c, THINGS)):
        with pytest.raises(ValueError, match=r"\(2, 4, 4\) and \(3, 5\)"):
            infer(torch.zeros(2, 4, 4), torch.zeros(3, 5))

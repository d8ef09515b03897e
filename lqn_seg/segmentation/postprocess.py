"""Mask and class logits of queries -> semantic, panoptic and instance predictions.

Pure functions of one image. Shapes: Q queries, C classes, h x w pixels; mask logits are already at
the output size; the last class logit is "no object". The rules are EoMT's (Kerssies et al., "Your
ViT is Secretly an Image Segmentation Model", CVPR 2025, and its code), which are Mask2Former's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lqn_seg.core.planes import runs, strongest


@dataclass
class Instances:
    """Instance predictions of one image, under Detectron2's names.

    Attributes:
        image_size: (h, w).
        pred_masks: (N, h, w) bool.
        scores: (N,) 0 .. 1, descending.
        pred_classes: (N,) int64, contiguous ids.
    """

    image_size: tuple[int, int]
    pred_masks: Tensor
    scores: Tensor
    pred_classes: Tensor

    def __len__(self) -> int:
        return len(self.scores)


def semantic_inference(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """Scores per class and pixel: each query votes for its classes where its mask is.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, C + 1).

    Returns:
        (C, h, w), not normalised over classes.
    """
    _check(mask_logits, class_logits)
    classes = class_logits.softmax(-1)[:, :-1]
    scores = mask_logits.new_empty(classes.shape[1], *mask_logits.shape[1:])
    for rows in runs(mask_logits.movedim(1, 0).shape):  # of the image
        masks = mask_logits[:, rows].contiguous().sigmoid()
        scores[:, rows] = torch.einsum("qc,qhw->chw", classes, masks)
    return scores


def class_scores(logits: Tensor, class_logits: Tensor | None) -> Tensor:
    """(C, h, w) scores of what a head says: `semantic_inference`, or of a head without queries,
    whose logits are (C, h, w) themselves, each pixel's probabilities."""
    return logits.softmax(0) if class_logits is None else semantic_inference(logits, class_logits)


def merged_scores(scores: Tensor, class_map: Sequence[int]) -> Tensor:
    """(C, h, w) scores to (max(class_map) + 1, h, w): class k's are added to those of class_map[k].
    (An argmax before that would lose a class whose probability is shared among its parts.)"""
    index = torch.tensor(class_map, device=scores.device)
    total = scores.new_zeros(max(class_map) + 1, *scores.shape[1:])
    return total.index_add_(0, index, scores)


def panoptic_inference(
    mask_logits: Tensor,
    class_logits: Tensor,
    thing_classes: Collection[int],
    object_mask_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give every pixel to at most one segment.

    Queries whose likeliest class is an object, with a probability above `object_mask_threshold`,
    compete: a pixel goes to the highest class probability x mask probability. A query's segment is
    what it won where its own mask is >= 0.5. It is dropped if it is empty, or if
    area(won) / area(mask >= 0.5) < `overlap_threshold`: it lost most of its mask to others. (As in
    EoMT's and Mask2Former's code, the numerator is all it won, also where its mask is below 0.5.)
    Segments of the same stuff class become one.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, C + 1).
        thing_classes: contiguous ids of the classes whose instances stay apart.

    Returns:
        (h, w) int32 ids, 0 = void, and for each id 1, 2, ... a dictionary with "id", "isthing",
        "category_id" (contiguous) and "score" (class probability; of merged stuff the highest).
    """
    _check(mask_logits, class_logits)
    scores, classes = class_logits.softmax(-1).max(-1)
    keep = (classes != class_logits.shape[-1] - 1) & (scores > object_mask_threshold)
    id_map = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=mask_logits.device)
    segments: list[dict[str, Any]] = []
    if not keep.any():
        return id_map, segments
    scores, classes = scores[keep], classes[keep]
    winner, areas = _compete(mask_logits, keep.nonzero()[:, 0], scores)
    number = [0] * (len(scores) + 1)  # of each query's segment; the last one's is nobody's
    stuff: dict[int, dict[str, Any]] = {}
    rows = zip(classes.tolist(), scores.tolist(), areas, strict=True)
    for k, (category, score, (mask_area, area, kept_area)) in enumerate(rows):
        if kept_area == 0 or area / mask_area < overlap_threshold:
            continue
        if (segment := stuff.get(category)) is None:
            isthing = category in thing_classes
            segment = {"id": len(segments) + 1, "isthing": isthing, "category_id": category}
            segments.append(segment)
            if not isthing:
                stuff[category] = segment
        segment["score"] = max(segment.get("score", score), score)
        number[k] = segment["id"]
    return id_map.new_tensor(number)[winner], segments


def _compete(
    mask_logits: Tensor, queries: Tensor, scores: Tensor
) -> tuple[Tensor, list[list[int]]]:
    """Which of K queries wins each pixel and holds it, (h, w), K where the winner's mask does not;
    and areas in pixels: of each one's mask, of what it won, of what it won inside its mask."""
    count, shape = len(queries), mask_logits.shape[1:]
    best = mask_logits.new_full(shape, -1)
    winner = torch.zeros_like(best, dtype=torch.int32)
    held, areas = torch.zeros_like(best, dtype=torch.bool), []
    for some in runs(torch.Size((count, *shape))):
        masks = mask_logits.index_select(0, queries[some]).sigmoid_()
        inside = masks >= 0.5
        areas.append(inside.flatten(1).sum(1))
        masks *= scores[some, None, None]
        for number, (strength, within) in enumerate(zip(masks, inside), some.start):
            better = strength > best
            winner.masked_fill_(better, number)
            held = torch.where(better, within, held)
            best = torch.where(better, strength, best)  # NaN is never better
    kept = torch.where(held, winner, count)
    won_area, kept_area = (
        x.flatten().bincount(minlength=count + 1)[:count] for x in (winner, kept)
    )
    # One transfer to the host rather than one per query.
    return kept, torch.stack([torch.cat(areas), won_area, kept_area], 1).tolist()


def instance_inference(
    mask_logits: Tensor, class_logits: Tensor, thing_classes: Collection[int], top_k: int = 100
) -> Instances:
    """The `top_k` likeliest pairs (query, class), as EoMT is evaluated for AP.

    The mask is logit > 0; the score is the class probability x the mean mask probability inside the
    mask. As in Mask2Former, pairs of a stuff class are dropped after the choice of the `top_k`.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, C + 1).
        thing_classes: contiguous ids of the classes that have instances.

    Returns:
        At most `top_k` instances, highest score first.
    """
    _check(mask_logits, class_logits)
    probabilities = class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    scores, index = probabilities.flatten().topk(min(top_k, probabilities.numel()))
    query, category = index // num_classes, index % num_classes
    things = torch.tensor(sorted(thing_classes), dtype=category.dtype, device=category.device)
    is_thing = torch.isin(category, things)
    scores, query, category = scores[is_thing], query[is_thing], category[is_thing]

    # Quality per query, once: several classes of one query share its mask.
    masks = torch.empty_like(mask_logits, dtype=torch.bool)
    quality = mask_logits.new_empty(len(mask_logits))
    for some in runs(mask_logits.shape):
        masks[some] = inside = mask_logits[some] > 0
        weight = (mask_logits[some].sigmoid() * inside).flatten(1).sum(1)
        quality[some] = weight / (inside.flatten(1).sum(1) + 1e-6)
    scores, order = (scores * quality[query]).sort(descending=True, stable=True)
    height, width = mask_logits.shape[-2:]
    return Instances((height, width), masks[query[order]], scores, category[order])


def mask_hash(output: Mapping[str, Any]) -> str:
    """A fingerprint of what was predicted, to tell whether two runs or engines agree bit for bit.

    Args:
        output: an image's "panoptic_seg", or else "sem_seg", of which the winning classes count, or
            else "instances", masks and classes in order.

    Returns:
        the first 16 hex digits of a SHA-256, over shapes too, scores left out.
    """
    if "panoptic_seg" in output:
        id_map, segments = output["panoptic_seg"]
        table = [[int(s["id"]), int(s["category_id"])] for s in segments]
        parts = [id_map, torch.tensor(sorted(table)).view(-1, 2)]
    elif "sem_seg" in output:
        parts = [strongest(output["sem_seg"])[1]]
    else:
        parts = [output["instances"].pred_masks, output["instances"].pred_classes]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(tuple(part.shape)).encode())
        digest.update(part.cpu().to(torch.int32).contiguous().numpy().astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def _check(mask_logits: Tensor, class_logits: Tensor) -> None:
    if mask_logits.ndim != 3 or class_logits.ndim != 2 or len(mask_logits) != len(class_logits):
        raise ValueError(
            "expected mask logits (Q, h, w) and class logits (Q, C + 1), got "
            f"{tuple(mask_logits.shape)} and {tuple(class_logits.shape)}"
        )

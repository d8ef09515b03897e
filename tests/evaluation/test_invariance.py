"""What must not change a score: ids of segments, order and shards of images."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lqn_seg.data.catalog import Dataset, Record
from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.data.images import write_id_map
from lqn_seg.evaluation import InstanceEvaluator, PanopticEvaluator, SemanticEvaluator

EVALUATORS = (PanopticEvaluator, InstanceEvaluator, SemanticEvaluator)
IMAGES = 6
CATEGORIES = [
    {"id": 5, "name": "sky", "isthing": 0},
    {"id": 9, "name": "cat", "isthing": 1},
    {"id": 2, "name": "dog", "isthing": 1},
]
# No examples are kept on disk, and a slow machine is no failure.
few = settings(
    max_examples=12,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def image(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Ground truth (24, 30): sky, four animals of which one is a crowd, some void."""
    random = np.random.default_rng(seed)
    ids = np.ones((24, 30), int)
    segments = [{"id": 1, "category_id": 5, "iscrowd": 0}]
    for k in range(4):
        y, x = random.integers(0, 15), random.integers(0, 18)
        ids[y : y + 9, x : x + 12] = 700 + k
        category = 9 if random.random() < 0.5 else 2
        segments.append({"id": 700 + k, "category_id": category, "iscrowd": int(k == 3)})
    ids[:2, :5] = 0
    return ids, [s for s in segments if (ids == s["id"]).any()]


def write(root: Path, seeds: list[int]) -> Dataset:
    """A data set of some of the images, in this order, with files of its own."""
    root.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for seed in seeds:
        ids, segments = image(seed)
        write_id_map(root / f"{seed}.png", ids)
        entry = {"id": seed, "file_name": f"{seed}.jpg", "height": 24, "width": 30}
        content["images"].append(entry)
        content["annotations"].append(
            {"image_id": seed, "file_name": f"{seed}.png", "segments_info": segments}
        )
    (root / "panoptic.json").write_text(json.dumps(content))
    return load_coco_panoptic("mine", root, root, root / "panoptic.json")


def predict(dataset: Dataset, record: Record, names: np.random.Generator | None = None) -> Any:
    """The truth moved, one category wrong; `names` draws other ids for the same segments."""
    ids = np.roll(dataset.metadata.read_panoptic(record), 1, 1)
    segments = record["segments_info"]
    wanted = [s["id"] for s in segments]
    drawn = names.permutation(np.arange(1, 9000))[: len(wanted)] if names else wanted
    renamed = np.zeros_like(ids)
    infos = []
    for k, (segment, new) in enumerate(zip(segments, drawn)):
        renamed[ids == segment["id"]] = new
        category = 1 if k == 2 else segment["category_id"]
        infos.append({"id": int(new), "category_id": category, "score": 0.1 + 0.1 * k})
    labels = np.zeros_like(ids)
    for info in infos:
        labels[renamed == info["id"]] = info["category_id"]
    if names:
        infos = [infos[k] for k in names.permutation(len(infos))]
    things = sorted((i for i in infos if i["category_id"] > 0), key=lambda i: i["score"])
    return {
        "panoptic_seg": (renamed, infos),
        "sem_seg": labels == np.arange(3)[:, None, None],
        "instances": SimpleNamespace(
            pred_masks=np.array([renamed == i["id"] for i in things]).reshape(-1, 24, 30),
            pred_classes=np.array([i["category_id"] for i in things]),
            scores=np.array([i["score"] for i in things]),
        ),
    }


def score(dataset: Dataset, records: list[Record], **how: Any) -> list[dict[str, float]]:
    scores = []
    for kind in EVALUATORS:
        evaluator = kind(dataset.metadata)
        for record in records:
            evaluator.process([record], [predict(dataset, record, **how)])
        scores.append(evaluator.evaluate()[kind.task])
    return scores


@pytest.fixture
def whole(tmp_path: Path) -> Dataset:
    return write(tmp_path / "whole", list(range(IMAGES)))


@pytest.fixture
def expected(whole: Dataset) -> list[dict[str, float]]:
    scores = score(whole, whole.records())
    for result, key in zip(scores, ("PQ", "AP", "mIoU")):
        assert 5 < result[key] < 95  # neither nothing nor everything
    return scores


def same(result: Any, expected: Any) -> None:
    """Equal to the last bit; NaN is equal to NaN."""
    assert json.dumps(result) == json.dumps(expected)


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_ids_of_predicted_segments_mean_nothing(whole, expected, seed: int) -> None:
    same(score(whole, whole.records(), names=np.random.default_rng(seed)), expected)


@few
@given(order=st.permutations(range(IMAGES)))
def test_order_of_images_means_nothing(whole, expected, order: list[int]) -> None:
    records = whole.records()
    same(score(whole, [records[i] for i in order]), expected)


@few
@given(shard=st.lists(st.integers(0, 2), min_size=IMAGES, max_size=IMAGES))
def test_shards_merge_to_the_whole(whole, expected, shard: list[int]) -> None:
    """Each shard has an evaluator of its own; what it found travels as JSON; images may repeat."""
    for kind, wanted in zip(EVALUATORS, expected):
        parts = [kind(whole.metadata) for _ in range(3)]
        for record, place in zip(whole.records(), shard):
            for part in (parts[place], parts[0]):  # shard 0 has everything once more
                part.process([record], [predict(whole, record)])
        merged = kind(whole.metadata)
        for part in parts:
            for image_id, statistics in part.images.items():
                merged.add(image_id, json.loads(json.dumps(statistics)))
        same(merged.evaluate()[kind.task], wanted)


def test_ids_of_true_segments_mean_nothing(tmp_path: Path, whole, expected) -> None:
    """As stored: other ids in PNG and JSON."""
    random = np.random.default_rng(0)
    content = json.loads(Path(whole.metadata.panoptic_json).read_text())
    for annotation in content["annotations"]:
        ids, _ = image(annotation["image_id"])
        renamed = np.zeros_like(ids)
        new = (random.permutation(9000) * 1861 + 1)[: len(annotation["segments_info"])]
        for segment, value in zip(annotation["segments_info"], new.tolist()):
            renamed[ids == segment["id"]] = value
            segment["id"] = value
        write_id_map(tmp_path / annotation["file_name"], renamed)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    other = load_coco_panoptic("mine", tmp_path, tmp_path, tmp_path / "panoptic.json")
    same(score(other, other.records()), expected)

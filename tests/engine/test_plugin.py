"""What the plugin takes from here, without Detectron2 (`tests/detectron2` runs all of it)."""

from __future__ import annotations

import pytest
import torch

from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.plugin import ImageScores, method_name, one_method_segmenter, whole_batches
from lqn_seg.errors import InputError

NAME = "demo_panoptic_val"
PANOPTIC = [f"MODEL.MASK_FORMER.TEST.{x}_ON" for x in ("PANOPTIC", "INSTANCE", "SEMANTIC")]
PANOPTIC = [word for key, on in zip(PANOPTIC, ("True", "False", "False")) for word in (key, on)]


def cfg(*overrides: str):
    return load_cfg("configs/demo_lqn.yaml", overrides, "cpu")


def test_truth_scores_100_whoever_lists_the_image_and_another_image_is_refused():
    dataset = get_dataset(NAME)
    records = dataset.records()[:2]
    ids = [torch.from_numpy(dataset.metadata.read_panoptic(record)) for record in records]
    truth = [{"panoptic_seg": (i, r["segments_info"])} for i, r in zip(ids, records)]
    scores = ImageScores(cfg(*PANOPTIC), NAME)
    listed_elsewhere = {"file_name": f"/other/{records[1]['file_name'].split('/')[-1]}"}
    scores.process([records[0], listed_elsewhere], truth)
    assert list(scores.images) == [record["image_id"] for record in records]
    # Of two processes, in the order of the data set.
    parts = [{key: line} for key, line in reversed(scores.images.items())]
    results = scores.summarize(parts)
    assert results.keys() == {"lqn/panoptic_seg"} and results["lqn/panoptic_seg"]["PQ"] == 100
    assert list(scores.images) == [record["image_id"] for record in records]
    with pytest.raises(InputError, match=r"nowhere\.png is not in the evaluator's data set"):
        scores.process([{"file_name": "nowhere.png"}], truth[:1])
    scores.reset()
    assert scores.images == {}


def test_batches_stay_whole_over_processes():
    parts = [whole_batches(7, 2, rank, 3) for rank in range(3)]
    assert parts == [[0, 1, 6], [2, 3], [4, 5]]


def test_one_method_runs_and_the_teachers_weights_have_one_key():
    assert method_name(cfg("MODEL.LQN.METHODS", "('apm',)")) == "apm"
    both = cfg("MODEL.LQN.METHODS", "('apm','lqn')", "MODEL.LQN.METHOD", "teacher")
    assert method_name(both) == "teacher"
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS must be empty, not 'a\.pth'"):
        one_method_segmenter(cfg("MODEL.WEIGHTS", "a.pth"), frozenset(), ())

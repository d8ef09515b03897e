"""AP: cases with a known answer, and COCOeval called directly on the same boxes of pixels."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lqn_seg.errors import InputError
from lqn_seg.evaluation.instance import InstanceEvaluator

SKY, CAT, ROAD, DOG, UNSEEN = range(5)


def scene() -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Two cats, a dog and a crowd of dogs on sky."""
    ids = np.full((100, 120), 1)
    ids[5:25, 5:25] = 2
    ids[30:90, 10:60] = 3
    ids[10:50, 70:110] = 4
    ids[60:95, 70:115] = 5
    return ids, [(1, SKY, 0), (2, CAT, 0), (3, CAT, 0), (4, DOG, 0), (5, DOG, 1)]


def predict(masks: list[np.ndarray], classes: list[int], scores: list[float]) -> dict[str, Any]:
    stacked = torch.tensor(np.array(masks).reshape(-1, 100, 120))
    return {
        "instances": SimpleNamespace(
            pred_masks=stacked, scores=torch.tensor(scores), pred_classes=torch.tensor(classes)
        )
    }


def evaluate(dataset: Any, output: dict[str, Any]) -> dict[str, float]:
    evaluator = InstanceEvaluator(dataset.metadata)
    statistics = evaluator.statistics(dataset.records()[0], output)
    evaluator.add(0, json.loads(json.dumps(statistics)))
    return evaluator.evaluate()["segm"]


def test_ground_truth_as_prediction_scores_100(make_dataset: Any, capsys: Any) -> None:
    ids, segments = scene()
    output = predict([ids == i for i in (2, 3, 4)], [CAT, CAT, DOG], [0.9, 0.8, 0.7])
    result = evaluate(make_dataset([(ids, segments)]), output)
    assert [result[k] for k in ("AP", "AP50", "AP75", "APs", "APm")] == pytest.approx([100] * 5)
    assert math.isnan(result["APl"])  # no object of 96 x 96 pixels or more
    assert result["AP-cat"] == pytest.approx(100)
    assert math.isnan(result["AP-unseen"])
    assert "AP-sky" not in result
    assert capsys.readouterr().out == ""


def test_half_of_the_objects_found(make_dataset: Any) -> None:
    ids, segments = scene()
    result = evaluate(make_dataset([(ids, segments)]), predict([ids == 2], [CAT], [0.5]))
    # Precision 1 up to recall 0.5: 51 of COCO's 101 recall points.
    assert result["AP-cat"] == pytest.approx(100 * 51 / 101)
    assert result["AP-dog"] == 0
    assert result["AP"] == pytest.approx(100 * 51 / 101 / 2)


def test_detection_on_a_crowd_costs_nothing_but_elsewhere_does(make_dataset: Any) -> None:
    ids, segments = scene()
    dataset = make_dataset([(ids, segments)])
    on_crowd = np.zeros_like(ids, bool)
    on_crowd[62:80, 72:90] = True
    elsewhere = np.roll(on_crowd, -60, axis=1) & (ids == 3)
    for extra, expected in ((on_crowd, 100), (elsewhere, 50)):
        output = predict([ids == 4, extra], [DOG, DOG], [0.5, 0.9])
        assert evaluate(dataset, output)["AP-dog"] == pytest.approx(expected)


def test_no_detection_is_zero_and_no_object_is_nan(make_dataset: Any) -> None:
    dataset = make_dataset([scene(), (np.ones((100, 120), int), [(1, SKY, 0)])])
    evaluator = InstanceEvaluator(dataset.metadata)
    nothing = predict([], [], [])
    evaluator.process(dataset.records()[:1], [nothing])
    assert evaluator.evaluate()["segm"]["AP"] == 0
    evaluator.reset()
    evaluator.process(dataset.records()[1:], [nothing])
    assert math.isnan(evaluator.evaluate()["segm"]["AP"])


def test_instances_json_gives_what_cocoeval_gives(make_dataset: Any, tmp_path: Path) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools import mask as mask_api
    from pycocotools.cocoeval import COCOeval

    ids, segments = scene()
    dataset = make_dataset([(ids, segments)])
    annotations = [
        {"segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]], "category_id": 7},
        {"segmentation": [[10, 30, 60, 30, 60, 90, 10, 90]], "category_id": 7},
        {"segmentation": [[70, 10, 110, 10, 90, 50]], "category_id": 41},
    ]
    for i, annotation in enumerate(annotations):
        rle = mask_api.merge(mask_api.frPyObjects(annotation["segmentation"], 100, 120))
        area, box = float(mask_api.area(rle)), mask_api.toBbox(rle).tolist()
        annotation.update(id=i + 1, image_id=0, iscrowd=0, area=area, bbox=box)
    path = tmp_path / "instances.json"
    image = {"id": 0, "height": 100, "width": 120}
    categories = [{"id": 7, "name": "cat"}, {"id": 41, "name": "dog"}]
    path.write_text(
        json.dumps({"images": [image], "annotations": annotations, "categories": categories})
    )
    masks = [np.roll(ids == 2, 2, 0), np.roll(ids == 3, 9, 1), ids == 4, ids == 2]
    classes, scores = [CAT, CAT, DOG, DOG], [0.9, 0.6, 0.8, 0.85]
    evaluator = InstanceEvaluator(dataclasses.replace(dataset.metadata, json_file=str(path)))
    evaluator.process(dataset.records(), [predict(masks, classes, scores)])
    result = evaluator.evaluate()["segm"]

    results = [
        {
            "image_id": 0,
            "category_id": {CAT: 7, DOG: 41}[c],
            "score": s,
            "segmentation": mask_api.encode(np.asfortranarray(m.astype(np.uint8))),
        }
        for m, c, s in zip(masks, classes, scores)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO(str(path))
        reference = COCOeval(truth, truth.loadRes(results), "segm")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    keys = ("AP", "AP50", "AP75", "APs", "APm")
    assert [result[k] for k in keys] == pytest.approx(list(100 * reference.stats[[0, 1, 2, 3, 4]]))
    assert 0 < result["AP"] < 100


def test_bad_predictions_are_named(make_dataset: Any) -> None:
    dataset = make_dataset([scene()])
    evaluator = InstanceEvaluator(dataset.metadata)
    with pytest.raises(InputError, match="class 9, outside the 5 classes"):
        evaluator.process(dataset.records(), [predict([np.ones((100, 120), bool)], [9], [1.0])])
    small = SimpleNamespace(
        pred_masks=torch.ones(1, 3, 4), scores=torch.ones(1), pred_classes=torch.ones(1)
    )
    with pytest.raises(InputError, match=r"3 x 4 .* 100 x 120"):
        evaluator.process(dataset.records(), [{"instances": small}])

"""What a method costs on one image: counted by formula for segmentation, measured for classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from lqn_seg.adapt.calibration import alarmed
from lqn_seg.adapt.dense.encoder import OnWeights
from lqn_seg.adapt.dense.settings import DenseMethod
from lqn_seg.adapt.ineffective import paid_recipe
from lqn_seg.adapt.journey import Images, adapt
from lqn_seg.adapt.methods import PixelControl, TokenMethod
from lqn_seg.classification.classifier import Classifier
from lqn_seg.core.config import LQNConfig, with_variant
from lqn_seg.core.random import RandomKey
from lqn_seg.engine.classify import Classification
from lqn_seg.lab.cost.cost import Cost, measure
from lqn_seg.lab.cost.flops import method_gmacs, teacher_shape
from lqn_seg.segmentation.segmenter import Segmenter


def count_gmacs(segmenter: Segmenter, method: str, stats: Mapping[str, float]) -> dict[str, float]:
    """Multiply-adds per image of one of a segmenter's methods, by stage: `method_gmacs`.

    What a control does to pixels or logits is not counted; "flip" is a second pass of the teacher.
    Other sizes are passes on other numbers of patches. Other people's test-time methods are counted
    while they run on one window, forward and backward. Another model, which takes images of any
    size, is counted while it runs on one of the mean size. Functions of the user's are not counted:
    nothing is returned. `stats` are means over the images of `Prediction.stats`.
    """
    if model := segmenter.baselines.get(method):
        size = (round(stats["input_height"]), round(stats["input_width"]))
        tasks = segmenter.tasks if model.task_tokens else segmenter.tasks[:1]
        total = sum(measure(partial(model.forward_size, size, task)).gmacs for task in tasks)
        whole = dict.fromkeys(("gmacs_teacher", "gmacs_total", "gmacs_paper_convention"), total)
        return whole | {f"gmacs_{stage}": 0.0 for stage in ("align", "fit", "query", "head")}
    if other := segmenter.other_sizes.get(method):
        passes = [count_gmacs(each, "teacher", {"windows": 1}) for each, _ in other.passes]
        windows = stats["windows"] / len(passes)
        return {key: windows * sum(one[key] for one in passes) for key in passes[0]}
    shape, windows = teacher_shape(segmenter.teacher), stats["windows"]
    recipe = segmenter.methods[method]
    if isinstance(recipe, TokenMethod):
        return {}
    if isinstance(recipe, LQNConfig):
        is_fitted = stats.get("mixing_weight", 1) > 0
        recipe = paid_recipe(recipe, segmenter.calibration is not None, is_fitted)
        return method_gmacs(recipe, shape, windows=windows)
    costs = method_gmacs(with_variant(LQNConfig(), "teacher"), shape, windows=windows)
    calibrated = segmenter.calibration is not None
    learns = isinstance(segmenter.adapters[method], OnWeights)
    if isinstance(recipe, DenseMethod) and (learns or calibrated):  # else it is the teacher
        return costs | _measured(segmenter, method, windows)
    if isinstance(recipe, PixelControl) and recipe.name == "flip":
        twice = ("gmacs_teacher", "gmacs_total", "gmacs_paper_convention")
        return costs | {stage: costs[stage] + costs["gmacs_teacher"] for stage in twice}
    return costs


def _measured(segmenter: Segmenter, method: str, windows: float) -> dict[str, float]:
    """Stages of `count_gmacs` of a test-time method whose cost has no formula here; besides
    ``gmacs_backward``, a part of the fit, and ``peak_mib``, of tensors made on the way."""
    cost = dense_cost(segmenter, method)
    shape = teacher_shape(segmenter.teacher)
    teacher = method_gmacs(with_variant(LQNConfig(), "teacher"), shape)
    learns = isinstance(segmenter.adapters[method], OnWeights)
    stages = {
        # What learns makes its own passes.
        "teacher": 0.0 if learns else teacher["gmacs_teacher"],
        "align": 0.0 if learns else cost.gmacs - teacher["gmacs_teacher"],
        "fit": cost.gmacs if learns else 0.0,
        "backward": cost.backward_gmacs,
    }
    total = cost.gmacs + teacher["gmacs_head"]
    stages |= {"total": total, "paper_convention": total}
    counted = {f"gmacs_{stage}": windows * value for stage, value in stages.items()}
    return {**counted, "peak_mib": cost.peak_bytes / 2**20}


@torch.no_grad()
def dense_cost(segmenter: Segmenter, method: str) -> Cost:
    """What a test-time method costs on one window of noise, without the head."""
    teacher, adapter = segmenter.teacher, segmenter.adapters[method]
    noise = torch.rand(1, 3, *teacher.image_size, generator=torch.Generator().manual_seed(0))
    keys = [RandomKey(0)]
    images = Images(teacher, noise.to(teacher.device), keys, segmenter.calibration, segmenter)
    images.encode()  # what failures fall back to
    adapter.reset()
    cost = measure(lambda: adapt(adapter, images))
    adapter.reset()
    return cost


def classification_cost(run: Classification, method: str) -> tuple[Cost, float]:
    """What a method costs on one image alone, and its milliseconds without views. The image asks
    for a student if any image did: the most that was paid."""
    whole = run.classifier
    calibration = whole.calibration
    if calibration is not None and run.fitted(method):
        calibration = alarmed(calibration)
    recipes, config = {method: whole.methods[method]}, replace(whole.config, batch=1)
    names, text = whole.class_names, whole.text
    alone = Classifier(whole.teacher, names, text, recipes, config, calibration)
    image = run.image(run.conditions[-1], run.scored[0])
    alone([image])  # storage and tables that outlive an image are not the image's cost
    alone.reset()
    stats = alone([image])[0][method].stats
    alone.reset()
    return measure(lambda: alone([image])), stats["teacher_ms"] + stats["method_ms"]

"""Whole test-time methods of classification on one CLIP, from pixels to class scores."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import open_clip
import torch
from torch.nn import functional as F

from lqn_seg.adapt.calibration import alarmed, calibrate
from lqn_seg.adapt.classification_methods import Adaptation, usual_views
from lqn_seg.classification.classifier import Classifier, ClassifierConfig
from lqn_seg.core.config import LQNConfig, with_variant
from lqn_seg.teachers.clip import ClipTeacher

_CALIBRATION_IMAGES = 4


def time_classifiers(
    teacher: ClipTeacher,
    methods: Mapping[str, Adaptation | None],
    classes: int,
    config: ClassifierConfig,
    repeats: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Median milliseconds of methods in turns, each with a teacher's pass and views of its own."""
    names: Sequence[str] = open_clip.IMAGENET_CLASSNAMES
    names = names[: classes or len(names)]
    text = F.normalize(torch.randn(len(names), teacher.joint_width), dim=-1).to(teacher.device)
    # So that nothing is skipped, a calibration that calls for a student every time.
    clean = torch.rand(_CALIBRATION_IMAGES, 3, *teacher.image_size).to(teacher.device)
    calibration = alarmed(calibrate(teacher, lambda: [clean]))
    classifiers = {
        name: Classifier(teacher, names, {"text": text}, {name: method}, config, calibration)
        for name, method in methods.items()
    }
    image = torch.randint(256, (*teacher.image_size, 3), dtype=torch.uint8).numpy()
    stats: dict[str, list[Mapping[str, float]]] = {name: [] for name in methods}
    for turn in range(repeats + 1):
        for name, classifier in classifiers.items():
            one = classifier([image])[0][name].stats
            if turn or name == "tpt":  # its text tower needs no warming up, but minutes
                stats[name].append(one)
            if turn == repeats:
                say(f"{name}: {one['teacher_ms'] + one['method_ms']:.1f} ms")
    keys = ("views_ms", "teacher_ms", "method_ms")
    return [
        {"method": name}
        | {key: statistics.median(one[key] for one in of_one) for key in keys}
        | {"adapted": of_one[-1].get("mixing_weight", 1.0)}
        for name, of_one in stats.items()
    ]


def adaptations(variant: str, recipe: LQNConfig) -> dict[str, Adaptation]:
    """A variant as it classifies; one that adapts to several views also by its parts."""
    views = usual_views(recipe)
    if views == 1:
        return {variant: Adaptation(recipe)}
    return {
        variant: Adaptation(recipe, views=views),
        f"{variant}, one view": Adaptation(recipe),
        f"{variant}, no student": Adaptation(with_variant(recipe, "restore"), views=views),
    }

"""Why a recipe's student does or does not learn its image, in numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lqn_seg.adapt.journey import centred, over_variance
from lqn_seg.config.nodes import load_any_cfg, method_config, segmentation_config
from lqn_seg.engine.build import build_teacher, describe_teacher
from lqn_seg.engine.probe import Probe, student_recipe
from lqn_seg.engine.studio import readers
from lqn_seg.visualization.curves import draw_fit
from lqn_seg.visualization.files import write_file


@dataclass(frozen=True)
class FitDiagnosis:
    """A recipe's students, means over images."""

    loss: list[float]  # before each step
    # By layer, over the variance of the teacher's tokens: the squared error (1 is the mean token),
    # and the variance over positions (0 does not see the address of its query).
    error: list[float]
    sensitivity: list[float]


@torch.no_grad()
def diagnose(
    config_file: str,
    methods: Sequence[str],
    images: int = 4,
    overrides: Sequence[str] = (),
    device: str = "",
) -> Iterator[tuple[str, FitDiagnosis]]:
    """Fit the students of some methods to the first images of a configuration's data set; yields a
    name and its diagnosis. All layers are fitted and queried, and no statistics are aligned."""
    cfg = load_any_cfg(config_file, overrides, device)
    teacher = build_teacher(cfg)
    print(describe_teacher(cfg, teacher), flush=True)
    recipes = {name: student_recipe(name, method_config(cfg, name)) for name in methods}
    tensors = [read().tensor for read in readers(cfg, (), images)]
    probe = Probe(teacher, tensors, segmentation_config(cfg).inference)
    for name, recipe in tqdm(recipes.items(), unit="recipe"):
        students = probe.fit(recipe)
        layers = range(1, probe.depth + 1)
        sensitivity = [over_variance(centred(students.query_layer(k)), probe.at(k)) for k in layers]
        losses = students.loss_curve.mean(0).tolist()
        yield name, FitDiagnosis(losses, probe.errors(students), sensitivity)


def write_diagnosis(diagnoses: Mapping[str, FitDiagnosis], folder: Path) -> list[Path]:
    """``fit.json`` with all numbers, and ``fit.png`` with the curves."""
    results = {name: asdict(diagnosis) for name, diagnosis in diagnoses.items()}
    numbers = write_file(folder / "fit.json", f"{json.dumps(results, indent=1)}\n".encode())
    return [numbers, draw_fit(results, folder / "fit")[0]]

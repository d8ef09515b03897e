"""Why a recipe's student does or does not learn its image: what a fit leaves behind, in numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lqn_seg.config.nodes import load_any_cfg, method_config, segmentation_config
from lqn_seg.core.kernel import centred, share
from lqn_seg.engine.build import build_teacher, describe_teacher
from lqn_seg.engine.probe import Probe, readers, student_method
from lqn_seg.errors import InputError


@dataclass(frozen=True)
class FitDiagnosis:
    """What a recipe's students were like, means over images.

    Attributes:
        loss: the loss before each step.
        error: squared error over variance of the teacher's tokens, by layer; 1 is the mean token.
        sensitivity: variance of the student's answer over positions, over the variance of the
            teacher's tokens, by layer; 0 is a student that does not see where it is asked.
    """

    loss: list[float]
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
    """Fit the students of some methods to the first images of a configuration's data set.

    All layers are fitted and asked, whatever the recipe reads out; nothing is restored.

    Yields:
        A method's name and what its students were like, as each is done.

    Raises:
        InputError: a method has no student, or the configuration is wrong.
    """
    cfg = load_any_cfg(config_file, overrides, device)
    teacher = build_teacher(cfg)
    print(describe_teacher(cfg, teacher), flush=True)
    recipes = {name: student_method(name, method_config(cfg, name)) for name in methods}
    looked_at = [read().tensor for read in readers(cfg, (), images)]
    probe = Probe(teacher, looked_at, segmentation_config(cfg).inference)
    for name, recipe in tqdm(recipes.items(), unit="recipe"):
        students = probe.fit(recipe)
        answers = [students.query_layer(layer) for layer in range(1, probe.depth + 1)]
        yield (
            name,
            FitDiagnosis(
                loss=students.loss_curve.mean(0).tolist(),
                error=probe.errors(students),
                sensitivity=[share(centred(a), probe.field[:, k]) for k, a in enumerate(answers)],
            ),
        )


def write_diagnosis(found: Mapping[str, FitDiagnosis], folder: Path) -> list[Path]:
    """``fit.json`` with all numbers, and ``fit.png`` with the curves.

    Raises:
        InputError: the folder cannot be made.
    """
    from lqn_seg.visualization.curves import draw_fit

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output: cannot make {folder} ({error.strerror})") from error
    results = {name: asdict(diagnosis) for name, diagnosis in found.items()}
    numbers = folder / "fit.json"
    numbers.write_text(json.dumps(results, indent=1) + "\n")
    return [numbers, draw_fit(results, folder / "fit")[0]]

"""Why a recipe's student does or does not learn its image: what a fit leaves behind, in numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.core.fit import LQNConfig, StudentFitter
from lqn_seg.core.random import image_key
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.images import read_image
from lqn_seg.engine.build import build_teacher
from lqn_seg.engine.config import load_cfg, method_config, segmentation_config
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import layout_of
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise


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
    config_file: str, methods: Sequence[str], images: int = 4, overrides: Sequence[str] = ()
) -> dict[str, FitDiagnosis]:
    """Fit the students of some methods to the first images of a configuration's data set.

    All layers are fitted and asked, whatever the recipe reads out; nothing is restored.

    Raises:
        InputError: a method has no student, or the configuration is wrong.
    """
    cfg = load_cfg(config_file, overrides)
    teacher = build_teacher(cfg)
    inference = segmentation_config(cfg).inference
    crops, keys = [], []
    for record in get_dataset(cfg.DATASETS.TEST[0]).records()[:images]:
        image = torch.from_numpy(read_image(record["file_name"])).movedim(2, 0).contiguous()
        layout = layout_of((image.shape[1], image.shape[2]), teacher.image_size, inference)
        crops.append(layout.crops(image)[0])
        keys.append(image_key(0, image, 0))
    pixels = torch.stack(crops).to(teacher.device).float() / 255
    field, _ = teacher.encode(normalise(pixels, teacher.pixel_mean, teacher.pixel_std))
    grid = (field.shape[1], field.shape[2], field.shape[3])
    found = {}
    for name in methods:
        method = method_config(cfg, name)
        if not isinstance(method, LQNConfig) or method.fit.variant not in ("lqn", "lqn-src"):
            raise InputError(f"--methods: {name} has no student of all layers to look at")
        if not method.fit.steps:
            raise InputError(f"--methods: {name} makes no step, so there is no curve")
        method = replace(method, fit=replace(method.fit, layers=None))
        fitter = StudentFitter(method, grid, teacher.width, teacher.device)
        side = method.student.input_size
        small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        students = fitter.fit(normalise(small, IMAGENET_MEAN, IMAGENET_STD), field, keys)
        answers = [students.query_layer(layer) for layer in range(1, teacher.num_layers + 1)]
        found[name] = FitDiagnosis(
            loss=students.loss_curve.mean(0).tolist(),
            error=[_share(a - field[:, k], field[:, k]) for k, a in enumerate(answers)],
            sensitivity=[_share(_centred(a), field[:, k]) for k, a in enumerate(answers)],
        )
    return found


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
    return [numbers, draw_fit(results, folder / "fit.png")]


def _centred(tokens: Tensor) -> Tensor:
    return tokens - tokens.mean((1, 2), keepdim=True)


def _share(part: Tensor, tokens: Tensor) -> float:
    """Mean square of a part over the variance of (B, H, W, D) tokens over their positions."""
    return (part.square().mean() / _centred(tokens).square().mean()).item()

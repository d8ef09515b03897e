"""A recipe, an EoMT and images of 32 x 32 pixels: 4 layers, 4 x 4 tokens of 16 features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lqn_seg.adapt.calibration import calibrate
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.config import AdaptConfig, FitConfig, LQNConfig, StudentConfig
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt

RECIPE = LQNConfig(
    StudentConfig(input_size=32, stride=8, widths=(32, 32), position_dim=32, init="he"),
    FitConfig(
        steps=4,
        learning_rate=1e-3,
        positions_per_step=16,
        target_norm="layer",
        precision="float32",  # the same on every machine
    ),
)


def adapted(mix_by_noise: bool = False, align: bool = True) -> LQNConfig:
    """A guided student of the last layer, aligned, and mixed in by noise, or neither."""
    student, fit = replace(RECIPE.student, guide=0.5), replace(RECIPE.fit, layers="last")
    return LQNConfig(student, fit, AdaptConfig(align, mix_by_noise))


def noise(seed: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """(3, height, width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def smooth(seed: int) -> torch.Tensor:
    """A clean image: (3, 32, 32) uint8 without any noise."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, (32, 32), mode="bilinear")[0]).byte()


CLEAN, NOISY = smooth(3), noise(0)


@pytest.fixture(scope="session")
def eomt(teacher_folder) -> EomtTeacher:
    return load_eomt(str(teacher_folder))


@pytest.fixture(scope="session")
def calibration(eomt) -> Calibration:
    crops = torch.stack([smooth(seed) for seed in range(20)]).float() / 255
    return calibrate(eomt, lambda: crops.split(10), 0.0)

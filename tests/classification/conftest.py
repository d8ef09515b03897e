"""A CLIP of open_clip's own class, small enough to run in milliseconds, and features to match."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from lqn_seg.adapt.baselines.features import Features
from lqn_seg.teachers.clip import ClipTeacher

NAMES = ("cat", "dog", "red fox", "ship", "truck")
VISION = dict(image_size=32, patch_size=8, width=32, layers=3, head_width=16)
TEXT = dict(context_length=24, vocab_size=49408, width=16, heads=2, layers=2)


def build_clip(vision: dict | None = None, **changes) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(24, {**VISION, **(vision or {})}, TEXT, **changes).eval()
    # Start values would hide a mix-up: norms are the identity, and layers do next to nothing.
    for name, parameter in model.named_parameters():
        if "logit_scale" not in name and "token_embedding" not in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def teacher() -> ClipTeacher:
    return ClipTeacher(build_clip(), open_clip.SimpleTokenizer(context_length=24))


@pytest.fixture
def features() -> Features:
    """Three images, 20 views, 16 patches, 6 classes; views of an image are somewhat alike."""
    generator = torch.Generator().manual_seed(1)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    views = F.normalize(unit(3, 1, 12) + 0.6 * unit(3, 20, 12), dim=-1)
    return Features(views, unit(3, 16, 12), unit(6, 12), 8.0)

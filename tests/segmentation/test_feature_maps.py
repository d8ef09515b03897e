"""Feature maps of images of several teacher sizes, against the teacher on each tile alone."""

from __future__ import annotations

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from lqn_seg.errors import InputError
from lqn_seg.segmentation.feature_maps import feature_maps
from lqn_seg.teachers.eomt import EomtTeacher


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        num_blocks=1,
        num_queries=4,
        num_labels=3,
        num_upscale_blocks=1,
    )
    model = EomtForUniversalSegmentation(config)
    torch.nn.init.zeros_(model.attn_mask_probs)
    return EomtTeacher(model)


def test_every_tile_has_the_tokens_it_has_alone(teacher):
    pixels = 255 * torch.rand(2, 3, 48, 72)
    maps = feature_maps(teacher, pixels)
    assert maps.shape == (3, 2, 16, 6, 9)
    mean = torch.tensor(teacher.pixel_mean)[:, None, None]
    std = torch.tensor(teacher.pixel_std)[:, None, None]
    for row in range(2):
        for column in range(3):
            rows, columns = (slice(24 * k, 24 * k + 24) for k in (row, column))
            field, _ = teacher.encode((pixels[:, :, rows, columns] / 255 - mean) / std)
            rows, columns = (slice(3 * k, 3 * k + 3) for k in (row, column))
            expected = field.permute(1, 0, 4, 2, 3)
            assert torch.allclose(maps[..., rows, columns], expected, atol=1e-4)


def test_a_size_in_between_is_refused(teacher):
    with pytest.raises(InputError, match="multiples of 24 x 24 pixels, not 24 x 30"):
        feature_maps(teacher, torch.zeros(1, 3, 24, 30))

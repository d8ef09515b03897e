"""Feature maps of images of several teacher sizes, against the teacher on each tile alone."""

from __future__ import annotations

import math

import pytest
import torch

from lqn_seg.segmentation.feature_maps import feature_maps
from lqn_seg.teachers.base import normalise
from lqn_seg.teachers.eomt import load_eomt


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return load_eomt(str(teacher_folder)).resized((24, 24))


def test_every_tile_has_the_tokens_it_has_alone(teacher):
    pixels = 255 * torch.rand(2, 3, 48, 72)
    maps = feature_maps(teacher, pixels)
    assert maps.shape == (4, 2, 16, 6, 9)
    mean = torch.tensor(teacher.pixel_mean)[:, None, None]
    std = torch.tensor(teacher.pixel_std)[:, None, None]
    for row in range(2):
        for column in range(3):
            rows, columns = (slice(24 * k, 24 * k + 24) for k in (row, column))
            field, _ = teacher.encode((pixels[:, :, rows, columns] / 255 - mean) / std)
            rows, columns = (slice(3 * k, 3 * k + 3) for k in (row, column))
            expected = field.permute(1, 0, 4, 2, 3)
            assert torch.allclose(maps[..., rows, columns], expected, atol=1e-4)


@pytest.mark.parametrize("size", [(24, 30), (7, 24), (25, 49), (16, 72)])
def test_a_size_in_between_is_padded_as_detectron2_pads(teacher, size):
    mean, std = (
        torch.tensor(values)[:, None, None] for values in ([90.0, 100, 110], [50.0, 60, 9])
    )
    images = torch.randn(2, 3, *size)
    height, width = (24 * math.ceil(side / 24) for side in size)
    outside = torch.zeros(2, 3, height, width)  # zeros of the normalised image, bottom and right
    outside[:, :, : size[0], : size[1]] = images
    whole = feature_maps(teacher, outside * std + mean)
    maps = feature_maps(teacher, images, mean, std)
    rows, columns = (math.ceil(side / 8) for side in size)
    assert maps.shape == (4, 2, 16, rows, columns)
    torch.testing.assert_close(maps, whole[..., :rows, :columns], atol=1e-4, rtol=1e-4)


def test_a_teacher_that_is_not_square_takes_any_size(teacher):
    wide = teacher.resized((16, 40))
    pixels = 255 * torch.rand(1, 3, 33, 41)
    maps = feature_maps(wide, pixels)
    assert maps.shape == (4, 1, 16, 5, 6)
    field, _ = wide.encode(normalise(pixels[..., :16, :40] / 255, wide.pixel_mean, wide.pixel_std))
    torch.testing.assert_close(
        maps[:, 0, :, :2, :5], field[0].permute(0, 3, 1, 2), atol=1e-4, rtol=0
    )


def test_a_traced_teacher_gives_what_it_gave(teacher):
    images = 255 * torch.rand(1, 3, 40, 30)
    traced = torch.jit.trace(lambda x: feature_maps(teacher, x), images, check_trace=False)
    other = 255 * torch.rand(1, 3, 40, 30)
    torch.testing.assert_close(traced(other), feature_maps(teacher, other), atol=1e-4, rtol=1e-4)

"""Augmented views against torchvision's, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from lqn_seg.adapt.augment import augmented_views, crop_box
from lqn_seg.core.sampling import Draw
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from lqn_seg.core.random import CounterRandom, RandomKey

KEYS = [RandomKey(0, 1), RandomKey(0, 2)]


def pictures(height: int = 20, width: int = 28) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_views_are_torchvisions_crops_of_the_images():
    images = pictures()
    views = augmented_views(images, KEYS, 7)
    assert views.shape == (2, 7, 3, 20, 28)
    assert torch.equal(views[:, 0], images)
    mirrored = []
    for b, key in enumerate(KEYS):
        for k in range(1, 7):
            numbers = CounterRandom([key]).uniform((5,), k, Draw.VIEW)[0].tolist()
            box = crop_box((20, 28), *numbers[:4])
            expected = resized_crop(images[b], *box, [20, 28], antialias=True)
            mirrored.append(numbers[4] < 0.5)
            if mirrored[-1]:
                expected = expected.flip(-1)
            torch.testing.assert_close(views[b, k], expected, atol=1e-6, rtol=1e-6)
    assert set(mirrored) == {False, True}


@pytest.mark.parametrize("size", [(32, 32), (20, 80)])
def test_parts_lie_inside_and_are_spread_as_torchvisions(size):
    count = 4000
    draws = torch.rand(count, 4, generator=torch.Generator().manual_seed(1)).tolist()
    boxes = torch.tensor([crop_box(size, *four) for four in draws])
    y, x, height, width = boxes.unbind(1)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (y + height <= size[0]).all() and (x + width <= size[1]).all()
    assert (y + height == size[0]).any() and (x + width == size[1]).any()
    if size == (32, 32):  # below half the area no part is too long for the image
        torch.manual_seed(0)
        image = torch.zeros(1, *size)
        theirs = [RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in draws]
        ours, others = (
            b[b[:, 2] * b[:, 3] < 500, 2:].float() for b in (boxes, torch.tensor(theirs))
        )
        torch.testing.assert_close(ours.mean(0), others.mean(0), rtol=0.02, atol=0)
        torch.testing.assert_close(ours.std(0), others.std(0), rtol=0.05, atol=0)
        ratio = (ours[:, 1] / ours[:, 0]).log().mean().item()
        assert abs(ratio) < 4 * math.log(4 / 3) / math.sqrt(len(ours))


def test_views_follow_the_image_alone():
    images = pictures()
    both = augmented_views(images, KEYS, 4)
    for b in range(2):
        alone = augmented_views(images[b : b + 1], KEYS[b : b + 1], 4)[0]
        assert torch.equal(alone, both[b])
        assert torch.equal(augmented_views(images[b : b + 1], KEYS[b : b + 1], 2)[0], both[b, :2])
    assert torch.equal(augmented_views(images, KEYS, 1)[:, 0], images)
    other = augmented_views(images, [key._replace(seed=7) for key in KEYS], 4)
    assert not torch.equal(other[:, 1:], both[:, 1:])

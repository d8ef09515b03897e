"""Views against open_clip's and torchvision's own preprocessing."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from lqn_seg.adapt.classification_methods import CORNER_VIEWS
from lqn_seg.adapt.views import centre_view, corner_view, random_views
from lqn_seg.core.random import RandomKey, Stream, image_key, image_seed


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (50, 71), (91, 40), (20, 33)])
def test_view_zero_is_open_clips_preprocessing(teacher, size):
    image = photo(*size)
    transform = open_clip.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (255 * transform(Image.fromarray(image))).round().byte()
    assert torch.equal(centre_view(image, teacher), expected)


def test_views_follow_from_pixels_and_seed_alone(teacher):
    image = photo(40, 50)
    key = image_key(0, image)
    views = random_views(image, teacher, 5, key)
    assert views.shape == (5, 3, 32, 32) and views.dtype == torch.uint8
    assert torch.equal(random_views(image, teacher, 3, key), views[:3])
    assert len(random_views(image, teacher, 0, key)) == 0
    assert not torch.equal(random_views(image, teacher, 5, image_key(7, image)), views)
    assert len({view.numpy().tobytes() for view in views}) == 5


def test_random_views_are_torchvisions(teacher):
    """A part at its defaults, mirrored half of the time."""
    image, key = photo(40, 50), RandomKey(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(image_seed(key, Stream.VIEW))
        for view in random_views(image, teacher, 8, key):
            expected = np.asarray(RandomResizedCrop(32)(Image.fromarray(image)))
            expected = expected[:, ::-1] if torch.rand(1) < 0.5 else expected
            assert np.array_equal(view.movedim(0, 2).numpy(), expected)


def test_corner_views_are_pillows_crops_and_mirror_images():
    image = photo(20, 20)
    pixels = torch.from_numpy(image).movedim(2, 0)[None].float()
    whole = [(0, 0, 20, 20)] * 2
    corners = [(0, 0, 17, 17), (3, 0, 20, 17), (0, 3, 17, 20), (3, 3, 20, 20)]
    mirrored = [False, True, False, True, False, True, True, False, True, False]
    views = [corner_view(pixels, number) for number in range(CORNER_VIEWS)]
    for view, box, mirror in zip(views, [*whole, *corners, *corners], mirrored, strict=True):
        crop = Image.fromarray(image).crop(box).resize((20, 20), Image.Resampling.BILINEAR)
        expected = np.asarray(crop)[:, ::-1] if mirror else np.asarray(crop)
        # Pillow rounds to whole levels.
        np.testing.assert_allclose(view[0].movedim(0, 2).numpy(), expected, atol=1.01)
    assert torch.equal(views[0], pixels) and len({view.numpy().tobytes() for view in views}) == 10

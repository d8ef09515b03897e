"""Views against open_clip's and torchvision's own preprocessing."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from lqn_seg.adapt.classification_methods import CORNER_VIEWS
from lqn_seg.adapt.views import centre_view, corner_view, crop_boxes, random_views
from lqn_seg.core.random import CounterRandom, RandomKey, image_key


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (50, 71), (91, 40), (20, 33)])
def test_view_zero_is_open_clips_preprocessing(teacher, size):
    image = photo(*size)
    transform = open_clip.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (255 * transform(Image.fromarray(image))).round().byte()
    assert torch.equal(centre_view(image, teacher), expected)


def test_boxes_have_torchvisions_distribution():
    torch.manual_seed(0)
    picture, size = torch.zeros(3, 60, 90), (60, 90)
    draw = RandomResizedCrop.get_params
    theirs = np.array([draw(picture, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)])
    ours = np.array(crop_boxes(CounterRandom([RandomKey(0)]), size, 3000))
    assert (ours[:, 0] + ours[:, 2] <= 60).all() and (ours[:, 1] + ours[:, 3] <= 90).all()
    for column in range(4):  # equal means and deviations, within four standard errors
        a, b = ours[:, column], theirs[:, column]
        assert abs(a.mean() - b.mean()) < 4 * a.std() * (2 / 3000) ** 0.5
        assert a.std() == pytest.approx(b.std(), rel=0.08)


def test_an_image_too_narrow_for_any_box_is_cropped_in_the_middle():
    assert crop_boxes(CounterRandom([RandomKey(0)]), (6, 400), 1) == [(0, 196, 6, 8)]
    assert RandomResizedCrop.get_params(torch.zeros(3, 6, 400), (0.08, 1.0), (3 / 4, 4 / 3)) == (
        *(0, 196, 6, 8),
    )


def test_views_follow_from_pixels_and_seed_alone(teacher):
    image = photo(40, 50)
    key = image_key(0, image)
    views = random_views(image, teacher, 5, key)
    assert views.shape == (5, 3, 32, 32) and views.dtype == torch.uint8
    assert torch.equal(random_views(image, teacher, 3, key), views[:3])
    assert len(random_views(image, teacher, 0, key)) == 0
    assert not torch.equal(random_views(image, teacher, 5, image_key(7, image)), views)
    assert len({view.numpy().tobytes() for view in views}) == 5


def test_about_half_of_the_views_are_mirrored(teacher):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3)).copy()
    views = random_views(ramp, teacher, 200, RandomKey(0)).float()
    mirrored = (views[..., 0] > views[..., -1]).flatten(1).all(1).float().mean()
    assert 0.4 < mirrored < 0.6


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

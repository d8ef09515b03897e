"""Streams follow from the image alone, and differ by each word of their key."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from lqn_seg.core.random import RandomKey, Stream, generator, image_key, image_seed
from lqn_seg.errors import InputError


def test_streams_differ_by_every_word_and_repeat():
    keys = [RandomKey(0, 1), RandomKey(0, 2), RandomKey(1, 1), RandomKey(0, 1, 1)]
    draws = [torch.randn(50, generator=generator(k, d)) for k in keys for d in Stream]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys) * len(Stream)
    again = [torch.randn(50, generator=generator(k, d)) for k in keys[::-1] for d in Stream]
    assert torch.equal(
        torch.stack(again).unflatten(0, (4, -1)).flip(0).flatten(0, 1), torch.stack(draws)
    )


def test_a_seed_is_the_crc_of_four_words():
    """Written down once, so that results of one version can be had again by the next."""
    words = np.array([7, 2**32 - 1, 3, Stream.VIEW], "<u4")
    assert image_seed(RandomKey(7, 2**32 - 1, 3), Stream.VIEW) == zlib.crc32(words.tobytes())
    assert [int(draw) for draw in Stream] == list(range(7))


def test_the_global_stream_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(5, generator=generator(RandomKey(0), Stream.WEIGHTS))
    assert torch.equal(torch.rand(3), expected)
    assert generator(RandomKey(0), Stream.WEIGHTS, "meta") is None


def test_an_image_key_is_the_crc_of_the_pixels():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    crc = zlib.crc32(image.tobytes())
    assert image_key(7, image, 2) == RandomKey(7, crc, 2)
    assert image_key(7, torch.from_numpy(image)).image == crc
    turned = image.transpose(1, 0, 2)
    assert image_key(7, turned).image == zlib.crc32(turned.tobytes()) != crc


@pytest.mark.parametrize(
    "key, name", [((-1,), "seed"), ((0, 1 << 32), "image"), ((0, 0, 1 << 32), "window")]
)
def test_a_word_out_of_range_is_named(key, name):
    with pytest.raises(InputError, match=rf"{name} must be in 0\.\.2\^32-1, got"):
        generator(RandomKey(*key), Stream.WEIGHTS)


def test_pixels_of_another_type_are_refused():
    with pytest.raises(InputError, match="uint8"):
        image_key(0, np.zeros((2, 2), np.float32))

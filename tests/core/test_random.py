from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from lqn_seg.core import random as random_module
from lqn_seg.core.random import CounterRandom, RandomKey, _box_muller, image_key, philox4x32
from lqn_seg.errors import InputError

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    (
        [0, 0, 0, 0],
        [0, 0],
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
    ),
    (
        [0xFFFFFFFF] * 4,
        [0xFFFFFFFF] * 2,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("counter, key, result", KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, result):
    words = philox4x32([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert [word.item() for word in words] == result


def test_words_are_philox_of_the_documented_counter():
    random = CounterRandom([RandomKey(7, 11, 13)])
    words = random.words(8, step=3, draw=2)[0]
    for block in range(2):
        counter = [torch.tensor([c]) for c in (block, 2, 3, 13)]
        expected = torch.cat(philox4x32(counter, [torch.tensor([7]), torch.tensor([11])]))
        assert torch.equal(words[4 * block : 4 * block + 4], expected)


def test_streams_depend_on_their_key_alone():
    keys = [RandomKey(0, 1), RandomKey(0, 2), RandomKey(1, 1), RandomKey(0, 1, 1)]
    together = CounterRandom(keys).normal((50,))
    for key, numbers in zip(keys, together):
        assert torch.equal(CounterRandom([key]).normal((50,))[0], numbers)
    assert len({tuple(row.tolist()) for row in together}) == len(keys)


def test_many_steps_at_once_are_the_single_steps():
    random = CounterRandom([RandomKey(0, 1), RandomKey(0, 2)])
    steps = torch.tensor([0, 4, 9])
    at_once = random.uniform((5, 3), steps, draw=1)
    assert at_once.shape == (2, 3, 5, 3)
    for s, step in enumerate(steps.tolist()):
        assert torch.equal(at_once[:, s], random.uniform((5, 3), step, draw=1))
    assert not torch.equal(at_once[:, 0], at_once[:, 1])


def test_normals_do_not_depend_on_the_chunk(monkeypatch):
    random = CounterRandom([RandomKey(3), RandomKey(4)])
    whole = random.normal((1001,))
    monkeypatch.setitem(random_module._CHUNK, "cpu", 16)
    out = torch.empty(2, 1001)
    assert torch.equal(random.normal((1001,), out=out), whole)
    assert torch.equal(out, whole)


def test_normals_are_standard_normal():
    x = CounterRandom([RandomKey(0)]).normal((200_000,))[0].double()
    n = len(x)
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5
    # Neighbours come from one Box-Muller pair and from one block: uncorrelated nevertheless.
    for lag in (1, 2, 3):
        assert abs((x[lag:] * x[:-lag]).mean()) < 4 / n**0.5
    inside = (x.abs() < 1).double().mean()
    assert abs(inside - 0.682689) < 4 * (0.6827 * 0.3173 / n) ** 0.5


def test_extreme_words_give_finite_normals():
    ends = torch.tensor([0, 0xFFFFFFFF])
    for word1 in ends:
        for word2 in ends:
            pair = torch.empty(1, 2)
            _box_muller(word1[None], word2[None], pair)
            assert torch.isfinite(pair).all()


def test_uniform_is_half_open_and_uniform():
    x = CounterRandom([RandomKey(0)]).uniform((100_000,))[0]
    assert x.min() >= 0 and x.max() < 1
    counts = torch.bincount((x * 16).long(), minlength=16).double()
    expected = 100_000 / 16
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 4 * 30**0.5


def test_integers_cover_their_range():
    x = CounterRandom([RandomKey(0)]).integers(torch.tensor([2, 7]), (5000, 2))[0]
    assert set(x[:, 0].tolist()) == set(range(2))
    assert set(x[:, 1].tolist()) == set(range(7))


def test_image_key_is_the_crc_of_the_pixels():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    crc = zlib.crc32(image.tobytes())
    assert image_key(7, image, 2) == RandomKey(7, crc, 2)
    assert image_key(7, torch.from_numpy(image)).image == crc
    turned = image.transpose(1, 0, 2)
    assert image_key(7, turned).image == zlib.crc32(turned.tobytes()) != crc


def test_bad_keys():
    with pytest.raises(InputError, match="uint8"):
        image_key(0, np.zeros((2, 2), np.float32))
    with pytest.raises(InputError, match="seed"):
        CounterRandom([RandomKey(-1)])
    with pytest.raises(InputError, match="window"):
        CounterRandom([RandomKey(0, 0, 1 << 32)])

"""Random numbers that depend on the image alone: not on what came before it, nor on processes.

Every stream is a `torch.Generator` seeded with the CRC32 of (seed, CRC32 of the image's pixels,
window, what the numbers are for).
"""

import struct
import zlib
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lqn_seg.errors import InputError


class Stream(IntEnum):
    """What random numbers are for."""

    DESTINATION = 0
    SOURCE_1 = 1
    SOURCE_2 = 2
    WEIGHTS = 3
    QUERY = 4
    VIEW = 5
    SEGMENT = 6


class RandomKey(NamedTuple):
    """What the random numbers of one image (or of one window of it) depend on: nothing else."""

    seed: int
    image: int = 0
    window: int = 0


def image_key(seed: int, image: Any, window: int = 0) -> RandomKey:
    """The key of an image: `seed`, the CRC32 of its pixels in row-major order, and the window.

    Its pixels are uint8, else an `InputError`: a tensor or an array with the buffer protocol.
    """
    array: Any = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    pixels = memoryview(array)
    if pixels.format != "B":
        raise InputError(f"an image key needs uint8 pixels, not format {pixels.format!r}")
    return RandomKey(seed, zlib.crc32(pixels if pixels.c_contiguous else pixels.tobytes()), window)


def image_seed(key: RandomKey, stream: Stream) -> int:
    """32 bits for a generator. An `InputError` where a word of the key does not fit 32."""
    for name, word in zip(key._fields, key):
        if not 0 <= word < 1 << 32:
            raise InputError(f"random key: {name} must be in 0..2^32-1, got {word}")
    return zlib.crc32(struct.pack("<4I", *key, stream))


def generator(
    key: RandomKey, stream: Stream, device: torch.device | str = "cpu"
) -> torch.Generator | None:
    """A fresh stream of random numbers on a device; None on the meta device, which has none."""
    if torch.device(device).type == "meta":
        return None
    return torch.Generator(device).manual_seed(image_seed(key, stream))

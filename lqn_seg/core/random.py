"""Counter-based random numbers: the same image gets the same numbers, whatever came before it.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a keyed
bijection from a 128-bit counter to 128 random bits. There is no state to carry from image to image:

    key     = (seed, CRC32 of the image's pixels)
    counter = (block index, draw, step, window)

so neither the order of the images nor the number of processes can change a number. It is written in
torch's int64 arithmetic and runs on any device; integers and uniforms are the same everywhere to
the bit, normals to the rounding of that device's log, sin and cos.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lqn_seg.errors import InputError

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
# Blocks worked on at once: on a CPU the dozen int64 temporaries of a block have to stay in cache.
_CHUNK = {"cpu": 1 << 15}
_CHUNK_ELSEWHERE = 1 << 22


class RandomKey(NamedTuple):
    """What the random numbers of one image (or of one window of it) depend on: nothing else."""

    seed: int
    image: int = 0
    window: int = 0


def image_key(seed: int, image: Any, window: int = 0) -> RandomKey:
    """The key of an image: `seed`, the CRC32 of its pixels in row-major order, and the window.

    Args:
        image: uint8 pixels of any shape, a torch tensor or an array with the buffer protocol.

    Raises:
        InputError: the pixels are not uint8.
    """
    array: Any = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    pixels = memoryview(array)
    if pixels.format != "B":
        raise InputError(f"an image key needs uint8 pixels, not format {pixels.format!r}")
    return RandomKey(seed, zlib.crc32(pixels if pixels.c_contiguous else pixels.tobytes()), window)


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four counter words and two key words to four random words.

    All words are int64 tensors holding unsigned 32-bit values, of shapes that broadcast together.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        # The int64 products wrap, but their 64 bits are right. Sign bits that the shift drags in,
        # and the high halves left in c1 and c3, are cleared by the mask that follows the xor.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)


class CounterRandom:
    """One independent stream of random numbers per key; every number is named by (step, draw).

    Args:
        keys: one per image, or the `key_words` of another on the same device; B = len(keys).
        device: where the numbers are made.

    Attributes:
        key_words: (B, 3) int64, the keys.

    Every method returns a leading axis of B. `step` may be a 1-D int64 tensor of S steps, which
    then follow as a second axis: asking for many steps at once gives the same numbers as asking
    for them one by one.

    Raises:
        InputError: a word of a key does not fit 32 bits.
    """

    def __init__(
        self, keys: Sequence[RandomKey] | Tensor, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        if not isinstance(keys, Tensor):
            _check(keys)
            keys = torch.tensor([list(key) for key in keys], dtype=torch.int64, device=self.device)
        self.key_words = keys
        self._seed, self._image, self._window = keys.unbind(1)  # (B,) each

    def __len__(self) -> int:
        return len(self._seed)

    def _blocks(self, first: int, last: int, step: int | Tensor, draw: int) -> tuple[Tensor, ...]:
        """Words of blocks `first` to `last` - 1: four tensors (B, [S,] last - first)."""
        if isinstance(step, int):
            step = torch.full((), step, device=self.device)
        steps = step.to(self.device)
        lead = (-1,) + (1,) * (steps.dim() + 1)
        blocks = torch.arange(first, last, device=self.device)
        counter = (
            blocks,
            torch.full_like(blocks[:1], draw),
            steps[..., None],
            self._window.view(lead),
        )
        return philox4x32(counter, (self._seed.view(lead), self._image.view(lead)))

    def words(self, count: int, step: int | Tensor = 0, draw: int = 0) -> Tensor:
        """(B, [S,] count) int64 words, uniform over 0 .. 2^32 - 1."""
        blocks = self._blocks(0, -(-count // 4), step, draw)
        return torch.stack(blocks, dim=-1).flatten(-2)[..., :count]

    def uniform(self, shape: Sequence[int], step: int | Tensor = 0, draw: int = 0) -> Tensor:
        """(B, [S,] *shape) float32, uniform in [0, 1) on the multiples of 2^-24."""
        words = self.words(math.prod(shape), step, draw)
        return ((words >> 8).float() * 2.0**-24).unflatten(-1, tuple(shape))

    def integers(
        self, high: int | Tensor, shape: Sequence[int], step: int | Tensor = 0, draw: int = 0
    ) -> Tensor:
        """(B, [S,] *shape) int64, uniform over 0 .. high - 1; `high` broadcasts against `shape`.

        The high word of word x high: the bias is below high / 2^32.
        """
        words = self.words(math.prod(shape), step, draw).unflatten(-1, tuple(shape))
        return (words * high) >> 32

    def normal(
        self, shape: Sequence[int], step: int = 0, draw: int = 0, out: Tensor | None = None
    ) -> Tensor:
        """(B, *shape) float32, standard normal (Box-Muller), in `out` (B, count) if given."""
        count = math.prod(shape)
        if out is None:
            out = torch.empty(len(self), count, device=self.device)
        chunk = max(1, _CHUNK.get(self.device.type, _CHUNK_ELSEWHERE) // len(self))
        blocks = -(-count // 4)
        for first in range(0, blocks, chunk):
            last = min(first + chunk, blocks)
            words = self._blocks(first, last, step, draw)
            piece = out[:, 4 * first : 4 * last]
            whole = piece if 4 * last <= count else out.new_empty(len(self), 4 * (last - first))
            quads = whole.unflatten(1, (-1, 4))
            _box_muller(words[0], words[1], quads[..., :2])
            _box_muller(words[2], words[3], quads[..., 2:])
            if whole is not piece:
                piece.copy_(whole[:, : piece.shape[1]])
        return out.view(len(self), *shape)


def _check(keys: Sequence[RandomKey]) -> None:
    for key in keys:
        for name, word in zip(key._fields, key):
            if not 0 <= word <= _MASK:
                raise InputError(f"random key: {name} must be in 0..2^32-1, got {word}")


def _box_muller(word1: Tensor, word2: Tensor, out: Tensor) -> None:
    """Two independent standard normals (..., 2) from two words; the logarithm never sees a zero."""
    radius = (word1 + 1).float().mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = word2.float().mul_(2.0**-32 * 2.0 * math.pi)
    torch.mul(angle.cos(), radius, out=out[..., 0])
    torch.mul(angle.sin_(), radius, out=out[..., 1])

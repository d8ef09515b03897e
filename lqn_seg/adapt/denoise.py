"""Pixel noise, measured and removed before the teacher sees it: noise mixes into every token.

Noise of a sensor differs from colour channel to colour channel; texture, snow and blur hardly do.
So its deviation is read from the colour differences alone, in the middle frequencies, which a
resize leaves. It is removed by thresholding the coefficients of sliding 8 x 8 cosine transforms.

Related: Yu and Sapiro, "DCT image denoising: a simple and effective image denoising algorithm"
(Image Processing On Line, 2011); Donoho and Johnstone's median estimate of a deviation.

Shapes: B images of 3 channels in 0..1, h x w pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.core.precision import operand_precision

_SIDE, _STEP = 8, 2  # of a block, and from one block to the next, in pixels
_STRIPE = 16  # pixels from one row of stripes to the next, a multiple of the step
_MIDDLE = range(4, 9)  # row plus column frequency
_THRESHOLD = 3.0  # deviations
_NORMAL_MEDIAN = 0.6745  # of the absolute value, in deviations
LEAST_NOISE = 2 / 255  # deviations below are rounding's and JPEG's


def noise_deviation(pixels: Tensor) -> Tensor:
    """(B, 3, h, w) to the (B,) deviation of a channel's noise; black blocks, which padding makes,
    do not count."""
    with operand_precision(pixels.device):
        colours = torch.einsum("ij,bjhw->bihw", _cosines(3, pixels), pixels.float())
        blocks = _transform(colours, _block_basis(pixels), _SIDE)  # (B, 3, 64, blocks)
    frequency = torch.arange(_SIDE, device=pixels.device)
    frequency = (frequency[:, None] + frequency).flatten()
    middle = (frequency >= _MIDDLE[0]) & (frequency <= _MIDDLE[-1])
    size = blocks[:, 1:, middle].abs()
    black = blocks[:, :1, :1] == 0
    size = size.masked_fill(black, math.nan).flatten(1)
    return size.nanmedian(1).values.nan_to_num(0) / _NORMAL_MEDIAN


def remove_noise(pixels: Tensor, most: float) -> Tensor:
    """(B, 3, h, w) without the noise beyond a deviation of `most`, or of `LEAST_NOISE`; an image
    that has less is not changed. Each is worked on by itself: its neighbours change no bit."""
    limit = max(most, LEAST_NOISE)
    if math.isinf(limit):
        return pixels
    cleaned = []
    for image, deviation in zip(pixels, noise_deviation(pixels).tolist()):
        excess = math.sqrt(max(deviation**2 - limit**2, 0))
        cleaned.append(_threshold(image[None], excess)[0] if excess else image)
    return torch.stack(cleaned)


def _threshold(pixels: Tensor, deviation: float) -> Tensor:
    """Images without the coefficients that noise of a deviation explains."""
    height, width = pixels.shape[2:]
    margin = _SIDE - _STEP
    below, right = (margin + -(side + 2 * margin - _SIDE) % _STEP for side in (height, width))
    mixing, basis = _cosines(3, pixels), _block_basis(pixels)
    with operand_precision(pixels.device):
        colours = torch.einsum("ij,bjhw->bihw", mixing, pixels)
        padded = F.pad(colours, (margin, right, margin, below), mode="reflect")
        summed = torch.zeros_like(padded)
        # In stripes, whose coefficients a processor's cache can hold.
        for top in range(0, padded.shape[2] - margin, _STRIPE):
            stripe = padded[:, :, top : top + _STRIPE + margin]
            blocks = _transform(stripe, basis, _STEP)  # (B, 3, 64, blocks)
            kept = F.hardshrink(blocks, _THRESHOLD * deviation)
            kept[:, :, 0] = blocks[:, :, 0]  # the mean
            parts = (basis.mT @ kept).flatten(0, 1)
            back = F.fold(parts, stripe.shape[2:], _SIDE, stride=_STEP)
            summed[:, :, top : top + _STRIPE + margin] += back.view_as(stripe)
        inside = summed[:, :, margin : margin + height, margin : margin + width]
        colours = inside / (_SIDE // _STEP) ** 2
        return torch.einsum("ij,bihw->bjhw", mixing, colours).clamp(0, 1)


def _transform(colours: Tensor, basis: Tensor, step: int) -> Tensor:
    """(B, C, h, w) to the coefficients (B, C, 64, n) of its n blocks `step` pixels apart."""
    blocks = F.unfold(colours.flatten(0, 1)[:, None], _SIDE, stride=step)
    return (basis @ blocks).unflatten(0, colours.shape[:2])


def _block_basis(like: Tensor) -> Tensor:
    """(64, 64) the block transform: a coefficient, of an 8 x 8 block, in each row. The first is
    the mean's."""
    cosines = _cosines(_SIDE, like)
    return torch.kron(cosines, cosines)


def _cosines(size: int, like: Tensor) -> Tensor:
    """(size, size) the orthonormal cosine transform (II), a frequency in each row."""
    place = torch.arange(size, device=like.device, dtype=torch.float32)
    basis = (math.pi * (2 * place + 1) * place[:, None] / (2 * size)).cos()
    basis[0] /= math.sqrt(2)
    return basis * math.sqrt(2 / size)

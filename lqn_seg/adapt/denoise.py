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
_MIDDLE = range(4, 9)  # row plus column frequency
_THRESHOLD = 3.0  # deviations
_NORMAL_MEDIAN = 0.6745  # of the absolute value, in deviations
LEAST_NOISE = 2 / 255  # deviations below are rounding's and JPEG's


def noise_deviation(pixels: Tensor) -> Tensor:
    """(B, 3, h, w) to the (B,) deviation of a channel's noise; black blocks, which padding makes,
    do not count."""
    with operand_precision(pixels.device):
        colours = torch.einsum("ij,bjhw->bihw", _cosines(3, pixels), pixels.float())
        blocks = _transform(colours, _SIDE)  # (B, 3, 64, rows, columns)
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
    mixing = _cosines(3, pixels)
    with operand_precision(pixels.device):
        colours = torch.einsum("ij,bjhw->bihw", mixing, pixels)
        padded = F.pad(colours, (margin, right, margin, below), mode="reflect")
        blocks = _transform(padded, _STEP)
        keep = blocks.abs() > _THRESHOLD * deviation
        keep[:, :, 0] = True  # the mean
        flat = (blocks * keep).flatten(0, 1)
        summed = F.conv_transpose2d(flat, _filters(pixels), stride=_STEP)
        inside = summed[:, 0, margin : margin + height, margin : margin + width]
        colours = inside.unflatten(0, (-1, 3)) / (_SIDE // _STEP) ** 2
        return torch.einsum("ij,bihw->bjhw", mixing, colours).clamp(0, 1)


def _transform(colours: Tensor, step: int) -> Tensor:
    """(B, C, h, w) to the coefficients (B, C, 64, rows, columns) of blocks `step` pixels apart."""
    blocks = F.conv2d(colours.flatten(0, 1)[:, None], _filters(colours), stride=step)
    return blocks.unflatten(0, colours.shape[:2])


def _filters(like: Tensor) -> Tensor:
    """(64, 1, 8, 8) the block transform's basis; the first is the mean's."""
    cosines = _cosines(_SIDE, like)
    return torch.einsum("ai,bj->abij", cosines, cosines).flatten(0, 1)[:, None]


def _cosines(size: int, like: Tensor) -> Tensor:
    """(size, size) the orthonormal cosine transform (II), a frequency in each row."""
    place = torch.arange(size, device=like.device, dtype=torch.float32)
    basis = (math.pi * (2 * place + 1) * place[:, None] / (2 * size)).cos()
    basis[0] /= math.sqrt(2)
    return basis * math.sqrt(2 / size)

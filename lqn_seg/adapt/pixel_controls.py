"""What can be done to the pixels instead: the controls that work outside the teacher."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lqn_seg.adapt.methods import PixelControl
from lqn_seg.core.alignment import Calibration

LARGER = 1.25  # side of the larger input, in the teacher's own
BLUR_SIGMA = 0.7  # pixels at a side of 96, as below
DENOISE_STRENGTH = 15.0  # of 255
_REFERENCE_SIDE = 96


def change_pixels(control: PixelControl, crops: Tensor, calibration: Calibration | None) -> Tensor:
    """(B, 3, h, w) pixels in 0..1, changed ("flip" and "larger" are other passes)."""
    if control.name == "standardise":
        return crops if calibration is None else _standardise(crops, calibration.pixels)
    if not control.gauged:
        return crops
    images = (255 * crops).round().byte().movedim(1, 3).cpu().numpy()
    change = _blur if control.name == "blur" else _denoise
    changed = np.stack([change(np.ascontiguousarray(image)) for image in images])
    return torch.from_numpy(changed).movedim(3, 1).to(crops.device).float() / 255


def larger_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(height, width) of the larger input in pixels, in whole patches."""
    height, width = (round(LARGER * side / patch) * patch for side in size)
    return height, width


def pixel_statistics(crops: Tensor) -> Tensor:
    """(B, 3, h, w) pixels to (B, 2): mean, and logarithm of the deviation, over all of an image."""
    variance, mean = torch.var_mean(crops.flatten(1), dim=1)
    return torch.stack([mean, 0.5 * variance.clamp(min=1e-8).log()], 1)


def _standardise(crops: Tensor, clean: Tensor) -> Tensor:
    found = pixel_statistics(crops)
    wanted = found.clamp(clean[0], clean[1])
    mean, target = (s[:, 0].view(-1, 1, 1, 1) for s in (found, wanted))
    gain = (wanted - found)[:, 1].exp().view(-1, 1, 1, 1)
    return (crops - mean) * gain + target


def _blur(image: np.ndarray) -> np.ndarray:
    import cv2  # for two controls alone

    sigma = BLUR_SIGMA * min(image.shape[:2]) / _REFERENCE_SIDE
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _denoise(image: np.ndarray) -> np.ndarray:
    import cv2

    bgr = np.ascontiguousarray(image[..., ::-1])  # the order that OpenCV takes colours in
    strength = DENOISE_STRENGTH
    return cv2.fastNlMeansDenoisingColored(bgr, None, strength, strength, 5, 15)[..., ::-1]

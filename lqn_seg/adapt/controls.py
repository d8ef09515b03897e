"""Controls: what a student has to beat.

On other pixels: blur, denoise, standardise, CLAHE, flip. In the student's place, two closed forms
that predict a position's last-layer token from the others' by how alike they look at the guiding
layer and how near they lie: a kernel smoother and kernel ridge regression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lqn_seg.adapt.ineffective import CALIBRATE
from lqn_seg.adapt.journey import Answer, Images, Method, Pass
from lqn_seg.adapt.lqn import mixing_weight
from lqn_seg.adapt.methods import PixelControl
from lqn_seg.adapt.noise import guided_kernel
from lqn_seg.adapt.timing import Clock
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.view import guiding_tokens
from lqn_seg.teachers.base import Teacher

LARGER = 1.25  # side of the larger input, in the teacher's own
BLUR_SIGMA = 0.7  # pixels at a side of 96, as below
DENOISE_STRENGTH = 15.0  # of 255
CLIP_LIMIT, TILES = 2.0, 8  # of CLAHE
RIDGE = 0.3  # of the kernel's own diagonal
_REFERENCE_SIDE = 96


class OnOtherPixels(Method):
    """The teacher on changed pixels."""

    def __init__(self, control: PixelControl, teacher: Teacher[Any]) -> None:
        super().__init__(teacher)
        self.control, self.bilateral = control, control.name == "bilateral"

    def ineffective(self, name: str, calibrated: bool) -> str:
        if calibrated or not self.control.calibrated:
            return ""
        return (
            f"method {name} predicts the same as its teacher: without a calibration it changes no "
            f"pixel; {CALIBRATE}"
        )

    def encode(self, images: Images) -> Pass:
        return images.once(self.control.name, lambda: self._encode(images))

    def _encode(self, images: Images) -> Pass:
        if self.control.name == "flip":
            return _flipped(images)
        if self.control.name == "bilateral":
            return images.encode()
        pixels = change_pixels(self.control.name, images.pixels, images.calibration)
        if self.control.only_damaged:
            pixels = torch.where(images.damaged()[:, None, None, None], pixels, images.pixels)
        return images.encode_pixels(pixels)


def _flipped(images: Images) -> Pass:
    """Last-layer tokens averaged over the images and their mirror images."""
    seen, clock = images.encode(), Clock(images.teacher.device)
    mirrored = images.encode_pixels(images.pixels.flip(-1)).field[:, -1].flip(2)
    last = (seen.field[:, -1] + mirrored) / 2
    return Pass(seen.field, seen.context, seen.ms + clock.lap(), last=last)


def change_pixels(name: str, pixels: Tensor, calibration: Calibration | None) -> Tensor:
    """(B, 3, h, w) pixels in 0..1, changed by the control of that name."""
    if name == "standardise":
        return pixels if calibration is None else _standardise(pixels, calibration.pixels)
    change = {"blur": _blur, "denoise": _denoise, "clahe": _clahe}[name]
    images = (255 * pixels).round().byte().movedim(1, 3).cpu().numpy()
    changed = np.stack([change(np.ascontiguousarray(image)) for image in images])
    return torch.from_numpy(changed).movedim(3, 1).to(pixels.device).float() / 255


def larger_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(height, width) of the larger input in pixels, in whole patches."""
    height, width = (round(LARGER * side / patch) * patch for side in size)
    return height, width


def pixel_statistics(pixels: Tensor) -> Tensor:
    """(B, 3, h, w) pixels to (B, 2, 3): each channel's mean, and logarithm of its deviation."""
    variance, mean = torch.var_mean(pixels.flatten(2), dim=2)
    return torch.stack([mean, 0.5 * variance.clamp(min=1e-8).log()], 1)


def _standardise(pixels: Tensor, clean: Tensor) -> Tensor:
    """Each channel shifted and scaled to the clean images' (2, 3) mean and log deviation."""
    measured = pixel_statistics(pixels)
    mean, deviation = (s[..., None, None] for s in measured.unbind(1))
    target, wanted = (s[:, None, None] for s in clean)
    return (pixels - mean) * (wanted - deviation).exp() + target


def _blur(image: np.ndarray) -> np.ndarray:
    import cv2  # for three controls alone

    sigma = BLUR_SIGMA * min(image.shape[:2]) / _REFERENCE_SIDE
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _denoise(image: np.ndarray) -> np.ndarray:
    import cv2

    bgr = np.ascontiguousarray(image[..., ::-1])  # the order that OpenCV takes colours in
    strength = DENOISE_STRENGTH
    return cv2.fastNlMeansDenoisingColored(bgr, None, strength, strength, 5, 15)[..., ::-1]


def _clahe(image: np.ndarray) -> np.ndarray:
    """Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", 1994; OpenCV's settings."""
    import cv2

    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(CLIP_LIMIT, (TILES, TILES)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


class ClosedForm(Method):
    """A kernel smoother or kernel ridge regression over the last layer's tokens."""

    student = True
    precision = "float32"

    def __init__(self, recipe: LQNConfig, teacher: Teacher[Any]) -> None:
        super().__init__(teacher, recipe.adapt.align, recipe=recipe)
        self.recipe: LQNConfig = recipe

    def mixing_weight(self, images: Images, seen: Pass) -> Tensor:
        return mixing_weight(self.recipe, images, seen)

    def fit(self, images: Images, seen: Pass) -> Callable[[], Answer]:
        smoothed = smooth(seen.field, self.recipe.student.guide, self.recipe.fit.variant)
        return lambda: Answer(smoothed)


def smooth(fields: Tensor, guide: float, form: str) -> Tensor:
    """(B, L, H, W, D) fields to their smoothed last layers (B, H, W, D).

    Args:
        guide: depth, as a share, of the layer that says which positions are alike.
        form: "kernel" or "ridge".
    """
    last = fields[:, -1].flatten(1, 2).float()
    kernel = guided_kernel(guiding_tokens(fields, guide))
    if form == "kernel":
        smoothed = kernel / kernel.sum(-1, keepdim=True) @ last
    else:
        mean = last.mean(1, keepdim=True)
        ridge = RIDGE * torch.eye(kernel.shape[-1], device=kernel.device)
        smoothed = kernel @ torch.linalg.solve(kernel + ridge, last - mean) + mean
    return smoothed.view(fields[:, -1].shape)

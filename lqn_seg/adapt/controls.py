"""Controls: what a student has to beat.

On other pixels: blur, denoise, standardise, CLAHE, dehaze, flip. In the student's place, two closed
forms that predict a position's last-layer token from the others' by how alike they look at the
guiding layer and how near they lie: a kernel smoother and kernel ridge regression.
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

BLUR_SIGMA = 0.7  # pixels at a side of 96, as below
DENOISE_STRENGTH = 15.0  # of 255
CLIP_LIMIT, TILES = 2.0, 8  # of CLAHE
# Of dehazing: side of the dark channel's window at a short side of 400; share of the haze that is
# removed; least transmission; brightest share of the dark channel that tells the air light; radius
# (in windows) and regularisation of the guided filter.
DARK_SIDE, HAZE, LEAST_SEEN, AIR, GUIDE, SMOOTH = 15 / 400, 0.95, 0.1, 0.001, 4, 1e-3
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
    change = {"blur": _blur, "denoise": _denoise, "clahe": _clahe, "dehaze": dehaze}[name]
    images = (255 * pixels).round().byte().movedim(1, 3).cpu().numpy()
    changed = np.stack([change(np.ascontiguousarray(image)) for image in images])
    return torch.from_numpy(changed).movedim(3, 1).to(pixels.device).float() / 255


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


def dehaze(image: np.ndarray) -> np.ndarray:
    """He, Sun and Tang, "Single Image Haze Removal Using Dark Channel Prior" (CVPR 2009): in clear
    air some colour is dark near every pixel. The transmission is refined by their guided filter
    (ECCV 2010) in place of matting. (H, W, 3) uint8."""
    import cv2

    pixels = image.astype(np.float32) / 255
    side = 2 * round(DARK_SIDE * min(image.shape[:2]) / 2) + 1
    window = np.ones((side, side), np.uint8)
    dark = cv2.erode(pixels.min(2), window)
    brightest = np.argsort(dark.ravel())[-max(1, round(AIR * dark.size)) :]
    air = np.maximum(pixels.reshape(-1, 3)[brightest].mean(0), 1e-3)
    seen = 1 - HAZE * cv2.erode((pixels / air).min(2), window)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    seen = guided_filter(grey, seen, GUIDE * side)[..., None]
    clear = (pixels - air) / np.maximum(seen, LEAST_SEEN) + air
    return np.rint(255 * clear.clip(0, 1)).astype(np.uint8)


def guided_filter(guide: np.ndarray, values: np.ndarray, side: int) -> np.ndarray:
    """(H, W) float32 values, smoothed within the edges of a guide: means of the lines that fit the
    values best over the guide in each square of so many pixels (He, Sun and Tang, Eq. 5 to 8)."""
    import cv2

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (side, side), borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_values = mean(guide), mean(values)
    variance = mean(guide * guide) - mean_guide**2
    slope = (mean(guide * values) - mean_guide * mean_values) / (variance + SMOOTH)
    return mean(slope) * guide + mean(mean_values - slope * mean_guide)


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

"""How an image meets a teacher of fixed input size, and how the answers come back, as EoMT does it.

``windows``: the short side is resized to the window, which then slides along the long side with as
little overlap as covers it (semantic segmentation). ``pad``: the whole image is fitted inside the
window and zero-padded at the bottom and right (panoptic and instance segmentation).

Shapes: images (3, height, width) uint8 RGB; n windows of S = (rows, columns) pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def resize_image(image: Tensor, size: Size) -> Tensor:
    """(3, h, w) uint8 to (3, *size) uint8, bilinear with antialiasing; itself if it fits.

    By Pillow, as EoMT and Mask2Former do: torch rounds every sixth pixel to its neighbour value.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    resized = np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1).to(image.device)


def resize_scores(scores: Tensor, size: Size) -> Tensor:
    """(..., h, w) logits or scores to (..., *size), bilinear."""
    if tuple(scores.shape[-2:]) == size:
        return scores
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class PaddedWindow:
    """One window that holds the whole image in its upper left corner.

    inside: (rows, columns) of the window that are image; the rest is padding.
    """

    image_size: Size
    window: Size
    inside: Size

    @classmethod
    def of(cls, image_size: Size, window: Size) -> PaddedWindow:
        """Fit an image of ``image_size`` into ``window``, aspect ratio kept."""
        scale = min(window[0] / image_size[0], window[1] / image_size[1])
        inside = tuple(
            min(max(round(side * scale), 1), most) for side, most in zip(image_size, window)
        )
        return cls(image_size, window, (inside[0], inside[1]))

    def crops(self, image: Tensor) -> Tensor:
        """(1, 3, *window) uint8; padding is zero before normalisation."""
        resized = resize_image(image, self.inside)
        bottom, right = self.window[0] - self.inside[0], self.window[1] - self.inside[1]
        return F.pad(resized, (0, right, 0, bottom))[None]

    def logits(self, mask_logits: Tensor, size: Size) -> Tensor:
        """(Q, h, w) mask logits at the head's resolution to (Q, *size), the padding cut off."""
        whole = resize_scores(mask_logits, self.window)
        return resize_scores(whole[:, : self.inside[0], : self.inside[1]], size)


@dataclass(frozen=True)
class SlidingWindows:
    """Windows along the long side of the resized image.

    starts: first pixel of each window along the long side.
    """

    image_size: Size
    window: Size
    resized: Size
    starts: tuple[int, ...]

    @classmethod
    def of(cls, image_size: Size, window: Size) -> SlidingWindows:
        """n = ceil(long / window) windows, the last one flush with the image's end."""
        scale = max(window[0] / image_size[0], window[1] / image_size[1])
        resized = (
            max(round(image_size[0] * scale), window[0]),
            max(round(image_size[1] * scale), window[1]),
        )
        axis = 0 if resized[0] - window[0] > resized[1] - window[1] else 1
        count = math.ceil(resized[axis] / window[axis])
        # In integers: EoMT's floats leave the last pixel of some very long images without a window.
        overhang = resized[axis] - window[axis]
        starts = tuple(k * overhang // max(count - 1, 1) for k in range(count))
        return cls(image_size, window, resized, starts)

    @property
    def axis(self) -> int:
        """0 if the windows slide down, 1 if they slide right."""
        return 0 if self.resized[0] > self.window[0] else 1

    def crops(self, image: Tensor) -> Tensor:
        """(n, 3, *window) uint8."""
        resized = resize_image(image, self.resized)
        length = self.window[self.axis]
        return torch.stack([resized.narrow(self.axis + 1, s, length) for s in self.starts])

    def stitch(self, fields: Tensor) -> Tensor:
        """(n, L, H, W, D) token fields of the windows side by side: (1, L, H, n W, D), or n H."""
        return torch.cat(tuple(fields), dim=self.axis + 1)[None]

    def cut(self, tokens: Tensor) -> Tensor:
        """(1, H, n W, D) tokens of stitched windows to (n, H, W, D)."""
        return torch.cat(tokens.chunk(len(self.starts), dim=self.axis + 1))

    def places(self, grid: Size) -> tuple[Tensor, Tensor]:
        """Coordinates in the image, in tokens from 1, of the rows and columns of stitched windows.

        Args:
            grid: (H, W) tokens of one window.
        """
        rows, columns = (torch.arange(1, size + 1, dtype=torch.float32) for size in grid)
        own = (rows, columns)[self.axis]
        starts = torch.tensor(self.starts) * grid[self.axis] / self.window[self.axis]
        along = (starts[:, None] + own).flatten()
        return (along, columns) if self.axis == 0 else (rows, along)

    def average(self, scores: Tensor, size: Size) -> Tensor:
        """Class scores of the windows (n, C, *window) to the image (C, *size).

        Overlaps are averaged before the scores are resized, as EoMT does.
        """
        total = scores.new_zeros(scores.shape[1], *self.resized)
        count = scores.new_zeros(self.resized)
        for start, window_scores in zip(self.starts, scores):
            length = self.window[self.axis]
            total.narrow(self.axis + 1, start, length).add_(window_scores)
            count.narrow(self.axis, start, length).add_(1)
        return resize_scores(total / count, size)


def layout_of(image_size: Size, window: Size, inference: str) -> PaddedWindow | SlidingWindows:
    """How an image of (height, width) meets a teacher, by protocol: "pad" or "windows"."""
    kind = SlidingWindows if inference == "windows" else PaddedWindow
    return kind.of(image_size, window)

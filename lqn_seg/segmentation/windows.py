"""How an image meets a teacher of fixed input size, and how the answers come back, as EoMT does it.

``windows``: the short side is resized to the window, which then slides along the long side with as
little overlap as covers it (semantic segmentation). ``pad``: the whole image is fitted inside the
window and zero-padded at the bottom and right (panoptic and instance segmentation).

Shapes: images (3, height, width) uint8 RGB; n windows of S = (rows, columns) pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lqn_seg.core.planes import runs
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Preprocessing, Teacher

Size = tuple[int, int]


def resize_image(image: Tensor, size: Size, interpolation: str = "bilinear") -> Tensor:
    """(3, h, w) uint8 to (3, *size) uint8, with antialiasing; itself if it fits.

    By Pillow, whose name of a filter ``interpolation`` is, as EoMT and Mask2Former do: torch rounds
    every sixth pixel to its neighbour value.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    filter_ = Image.Resampling[interpolation.upper()]
    resized = np.array(picture.resize((size[1], size[0]), filter_))
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
    interpolation: Pillow's name of the filter that the image is resized with.
    """

    image_size: Size
    window: Size
    inside: Size
    interpolation: str = "bilinear"

    @classmethod
    def of(
        cls, image_size: Size, window: Size, resize: str = "keep", interpolation: str = "bilinear"
    ) -> PaddedWindow:
        """Fit an image of ``image_size`` into ``window``, as `Preprocessing.resize` has it.

        Raises:
            InputError: the image must not be resized, and is larger than the window.
        """
        if resize == "stretch":
            return cls(image_size, window, window, interpolation)
        if resize == "none":
            if image_size[0] > window[0] or image_size[1] > window[1]:
                raise _unfit(image_size, f"at most {window[0]}x{window[1]}")
            return cls(image_size, window, image_size, interpolation)
        scale = min(window[0] / image_size[0], window[1] / image_size[1])
        inside = tuple(
            min(max(round(side * scale), 1), most) for side, most in zip(image_size, window)
        )
        return cls(image_size, window, (inside[0], inside[1]), interpolation)

    def crops(self, image: Tensor) -> Tensor:
        """(1, 3, *window) uint8; padding is zero before normalisation."""
        resized = resize_image(image, self.inside, self.interpolation)
        bottom, right = self.window[0] - self.inside[0], self.window[1] - self.inside[1]
        return F.pad(resized, (0, right, 0, bottom))[None]

    def logits(self, mask_logits: Tensor, size: Size) -> Tensor:
        """(Q, h, w) mask logits at the head's resolution to (Q, *size), the padding cut off."""
        logits = mask_logits.new_empty(len(mask_logits), *size)
        for some in runs(logits.shape):
            whole = resize_scores(mask_logits[some], self.window)
            logits[some] = resize_scores(whole[:, : self.inside[0], : self.inside[1]], size)
        return logits


@dataclass(frozen=True)
class SlidingWindows:
    """Windows along the long side of the resized image.

    starts: first pixel of each window along the long side.
    interpolation: Pillow's name of the filter that the image is resized with.
    """

    image_size: Size
    window: Size
    resized: Size
    starts: tuple[int, ...]
    interpolation: str = "bilinear"

    @classmethod
    def of(
        cls, image_size: Size, window: Size, resize: str = "keep", interpolation: str = "bilinear"
    ) -> SlidingWindows:
        """n = ceil(long / window) windows, the last one flush with the image's end.

        A stretched image is one window.

        Raises:
            InputError: the image must not be resized, and none of its sides is the window's or the
                other one is smaller.
        """
        if resize == "stretch":
            return cls(image_size, window, window, (0,), interpolation)
        scale = max(window[0] / image_size[0], window[1] / image_size[1])
        resized = (
            max(round(image_size[0] * scale), window[0]),
            max(round(image_size[1] * scale), window[1]),
        )
        if resize == "none" and resized != image_size:
            raise _unfit(image_size, f"{window[0]} high or {window[1]} wide, and no smaller")
        axis = 0 if resized[0] - window[0] > resized[1] - window[1] else 1
        count = math.ceil(resized[axis] / window[axis])
        # In integers: EoMT's floats leave the last pixel of some very long images without a window.
        overhang = resized[axis] - window[axis]
        starts = tuple(k * overhang // max(count - 1, 1) for k in range(count))
        return cls(image_size, window, resized, starts, interpolation)

    @property
    def axis(self) -> int:
        """0 if the windows slide down, 1 if they slide right."""
        return 0 if self.resized[0] > self.window[0] else 1

    def crops(self, image: Tensor) -> Tensor:
        """(n, 3, *window) uint8."""
        resized = resize_image(image, self.resized, self.interpolation)
        length = self.window[self.axis]
        return torch.stack([resized.narrow(self.axis + 1, s, length) for s in self.starts])

    def stitch(self, fields: Tensor) -> Tensor:
        """(n, L, H, W, D) token fields of the windows side by side: (1, L, H, n W, D), or n H."""
        return torch.cat(tuple(fields), dim=self.axis + 1)[None]

    def cut(self, tokens: Tensor) -> Tensor:
        """(1, H, n W, D) tokens of stitched windows to (n, H, W, D)."""
        return torch.cat(tokens.chunk(len(self.starts), dim=self.axis + 1))

    def coordinates(self, grid: Size) -> tuple[Tensor, Tensor]:
        """Coordinates in the image, in tokens from 1, of the rows and columns of stitched windows.

        Args:
            grid: (H, W) tokens of one window.
        """
        rows, columns = (torch.arange(1, size + 1, dtype=torch.float32) for size in grid)
        within = (rows, columns)[self.axis]
        starts = torch.tensor(self.starts) * grid[self.axis] / self.window[self.axis]
        along = (starts[:, None] + within).flatten()
        return (along, columns) if self.axis == 0 else (rows, along)

    def average(self, scores: Sequence[Tensor] | Tensor, size: Size) -> Tensor:
        """Class scores (C, *window) of the n windows to the image (C, *size).

        Overlaps are averaged before the scores are resized, as EoMT does.
        """
        total = scores[0].new_zeros(len(scores[0]), *self.resized)
        count = total.new_zeros(self.resized)
        for start, window_scores in zip(self.starts, scores):
            length = self.window[self.axis]
            total.narrow(self.axis + 1, start, length).add_(window_scores)
            count.narrow(self.axis, start, length).add_(1)
        return resize_scores(total.div_(count), size)


def layout_of(
    image: Tensor, teacher: Teacher[Any], inference: str
) -> PaddedWindow | SlidingWindows:
    """How a (3, height, width) image meets a teacher, by protocol: "pad" or "windows".

    Raises:
        InputError: the teacher's checkpoint wants images as they are, and this one does not fit.
    """
    kind = SlidingWindows if inference == "windows" else PaddedWindow
    size = (int(image.shape[1]), int(image.shape[2]))  # a tracer's are tensors
    wanted = getattr(teacher, "preprocessing", Preprocessing())  # one of one's own need not say
    return kind.of(size, teacher.image_size, wanted.resize, wanted.interpolation)


def windows_of(pixels: NDArray[np.uint8], teacher: Teacher[Any], inference: str) -> Tensor:
    """The (n, 3, *window) uint8 inputs that a (height, width, 3) image gives a teacher; an
    `InputError` as of `layout_of`."""
    image = torch.from_numpy(pixels).movedim(2, 0)
    return layout_of(image, teacher, inference).crops(image)


def _unfit(size: Size, wanted: str) -> InputError:
    return InputError(
        f"the image is {size[0]}x{size[1]} pixels, and the teacher's preprocessor_config.json "
        f"(do_resize false) takes images of {wanted} pixels"
    )

"""Whether an image's content is like anything that the teacher was calibrated on.

Shapes: B images, H x W grid, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lqn_seg.core.alignment import Aligner, Calibration, LayerRange

# An image is unlike anything calibrated on where its distance (`Familiarity`) is above UNLIKE
# times the NEAR quantile of clean images plus UNLIKE_DAMAGE times its damage (heavy noise moves
# tokens, too), or where its damage is above that of any corruption (2.0 at severity 5).
NEAR = 0.99
UNLIKE = 1.05
UNLIKE_DAMAGE = 0.6
MOST_DAMAGE = 2.5


class Familiarity(Aligner):
    """An aligner that also says how far from clean images an image's content is.

    Alignment brings an image's statistics nearer to clean ones, whatever the image shows; its
    single tokens stay where they are. The demo's teacher: 0.7 for clean scenes, 0.4 to 1.1 for
    corrupted ones (up to 1.8 for noise, whose damage is up to 1.6), 1.3 for photographs, whose
    damage is 0.2. `unlike` is true of none of 64 clean and 252 corrupted scenes, and of 50% of 128
    photographs.
    """

    def __init__(self, calibration: Calibration) -> None:
        super().__init__(calibration)
        self._distances: list[Tensor] = []

    def __call__(self, layer: int, tokens: Tensor) -> Tensor:
        """As `Aligner`'s."""
        restored = super().__call__(layer, tokens)
        clean = self.calibration.layers.get(layer)
        if clean is not None and layer > min(self.calibration.layers):
            self._distances.append(distances(clean, restored))
        return restored

    def distance(self, inside: tuple[int, int]) -> Tensor:
        """(B,) of the typical token: the median over positions, averaged over calibrated layers.

        Args:
            inside: rows and columns of the grid that are image, not padding.
        """
        rows, columns = inside
        typical = [d[:, :rows, :columns].flatten(1).median(1).values for d in self._distances]
        return torch.stack(typical).mean(0) if typical else torch.zeros_like(self.damage)

    def unlike(self, inside: tuple[int, int]) -> Tensor:
        """(B,) bool, farther from clean images than they are among themselves and its damage
        explains, or damaged beyond all corruptions; none is where the calibration has not measured
        the distance."""
        most = UNLIKE * self.calibration.distance + UNLIKE_DAMAGE * self.damage
        beyond = (self.damage > MOST_DAMAGE) & math.isfinite(self.calibration.distance)
        return (self.distance(inside) > most) | beyond


def distances(clean: LayerRange, tokens: Tensor) -> Tensor:
    """(B, H, W) how far tokens (B, H, W, D) lie from clean ones: the mean, over directions that
    carry signal, of the squared component in units of its variance over clean tokens. Clean
    tokens have about 1 on average."""
    parts, _, _ = clean.components(tokens)
    spread = (clean.mean[1] - clean.mean[0]) / 4  # of the images' means, about their middle
    variance = (2 * clean.deviation.mean(0)).exp() + spread.square()
    return ((parts - clean.mean.mean(0)).square() / variance)[..., clean.signal].mean(-1)

"""Statistics alignment: an image's token statistics, pulled into the range of clean images.

Along the principal directions of a layer's clean tokens, noise raises the deviations of the weak
directions, blur lowers them, fog and contrast lower all. `Aligner` pulls them back to the nearest
end of the clean range, layer by layer while the teacher runs; inside the range it changes nothing.
How far layer 0 had to be pulled is the image's *damage*. What is left is noise in the last layer:
tokens that the others do not predict (`noise_fraction`).

Related: re-centring of activations at test time (NEO), statistics per image (AdaBN).

Shapes: B images, H x W grid, D features; layer 0 is the patch embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.core.precision import own_precision
from lqn_seg.core.view import guiding_tokens

# Directions whose clean variance is below this share of the largest carry rounding, not signal.
_LEAST_VARIANCE = 1e-6
# Share of the clean images' damage that counts as undamaged.
UNDAMAGED = 0.95
# Relative depth of the layer that says which positions are alike: before noise has spread.
RESIDUAL_GUIDE = 0.125
# Bandwidths: of the guide, in root-mean-square standard deviations per feature; of the position,
# as a share of the grid's longer side.
GUIDE_BANDWIDTH = 0.5
POSITION_BANDWIDTH = 1 / 6


@dataclass(frozen=True)
class LayerRange:
    """What clean images keep to at one layer: lower and upper quantiles over images."""

    centre: Tensor  # (H, W, D) a position's token: a blank image's at layer 0, else the mean
    basis: Tensor  # (D, D) principal directions of clean tokens less the centre, as columns
    mean: Tensor  # (2, D) of a direction's mean over positions
    deviation: Tensor  # (2, D) of the logarithm of its deviation over positions
    gain: Tensor  # (2,) of the logarithm of all directions' deviation together

    def components(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Components (B, H, W, D) of tokens, their means and log deviations (B, D)."""
        with own_precision(tokens.device):  # the weak directions would drown in bfloat16's rounding
            parts = F.linear(tokens.float() - self.centre, self.basis.mT)
        variance, mean = torch.var_mean(parts.flatten(1, 2), dim=1, correction=0)
        return parts, mean, 0.5 * variance.clamp_(min=1e-12).log()

    def align(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pull statistics back into the clean range: (B, H, W, D) tokens and (B,) the damage, the
        root mean square over directions of the log change of deviation after the common gain."""
        parts, mean, deviation = self.components(tokens)
        size = total_deviation(deviation)
        common = size.clamp(*self.gain) - size
        target = (deviation + common).clamp(*self.deviation)
        change = torch.where(self.signal, target - deviation, 0.0)
        parts = (parts - mean[:, None, None]) * change.exp()[:, None, None]
        parts += mean.clamp(*self.mean)[:, None, None]
        damage = (change - common)[:, self.signal].square().mean(1).sqrt()
        with own_precision(tokens.device):
            aligned = F.linear(parts, self.basis) + self.centre
        return aligned.to(tokens.dtype), damage

    @property
    def signal(self) -> Tensor:
        """(D,) bool, the directions that carry signal."""
        typical = self.deviation.mean(0)
        return typical > typical.max() + 0.5 * torch.log(torch.tensor(_LEAST_VARIANCE))


@dataclass(frozen=True)
class Calibration:
    """A teacher's clean ranges by layer, and what is measured on clean images."""

    layers: dict[int, LayerRange]  # 0 is the patch embedding
    undamaged: float  # `UNDAMAGED` quantile of their damage
    residual: float  # median of their `residual`
    # (2, 2) lower and upper quantile of an image's mean and log deviation, of pixels in 0..1.
    pixels: Tensor
    distance: float = math.inf  # of `adapt.familiarity`; infinite where it was not measured

    def to(self, device: torch.device | str) -> Calibration:
        """The same on a device."""
        moved = {
            layer: LayerRange(*(tensor.to(device) for tensor in vars(clean).values()))
            for layer, clean in self.layers.items()
        }
        return replace(self, layers=moved, pixels=self.pixels.to(device))


class Aligner:
    """Restores one batch while the teacher runs: hand it to `Teacher.encode` as `hook`.

    Attributes:
        damage: (B,) damage at layer 0, once the teacher has run.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.damage = torch.zeros(0)

    def __call__(self, layer: int, tokens: Tensor) -> Tensor:
        """(B, H, W, D) tokens of a layer, restored where the calibration knows the layer."""
        clean = self.calibration.layers.get(layer)
        if clean is None:
            return tokens
        aligned, damage = clean.align(tokens)
        if layer == min(self.calibration.layers):
            self.damage = damage
        return aligned

    @property
    def damaged(self) -> Tensor:
        """(B,) bool, more damage than `UNDAMAGED` of the clean images show."""
        return self.damage > self.calibration.undamaged


def residual(fields: Tensor) -> Tensor:
    """(B,) part, over variance, of the last layer of (B, L, H, W, D) fields that positions which
    look alike at an early layer do not predict of each other."""
    with own_precision(fields.device):
        kernel = guided_kernel(guiding_tokens(fields, RESIDUAL_GUIDE))
        return leave_one_out_error(kernel, fields[:, -1])


def noise_fraction(calibration: Calibration, fields: Tensor) -> Tensor:
    """(B,) share in 0..1 of the residual that clean images do not have.

    With a clean residual s and noise n on top, a prediction deserves the weight n / (s + n) against
    the token itself (Wiener's, James and Stein's).
    """
    return (1 - calibration.residual / residual(fields).clamp(min=1e-12)).clamp_(min=0)


def guided_kernel(guide: Tensor) -> Tensor:
    """(B, N, N) Gaussian kernel in (0, 1] of (B, H, W, D) guiding tokens and their positions."""
    height, width = guide.shape[1:3]
    rows, columns = (torch.arange(1.0, side + 1, device=guide.device) for side in (height, width))
    places = torch.cartesian_prod(rows, columns) / (POSITION_BANDWIDTH * max(height, width))
    tokens = guide.flatten(1, 2) / (GUIDE_BANDWIDTH * guide.shape[-1] ** 0.5)
    distance = torch.cdist(tokens, tokens).square_() + torch.cdist(places, places).square_()
    return distance.mul_(-0.5).exp_()


def leave_one_out_error(kernel: Tensor, tokens: Tensor) -> Tensor:
    """(B,) error, over variance, of predicting each of the (B, H, W, D) tokens as the (B, N, N)
    kernel's mean of all *other* tokens."""
    flat = tokens.flatten(1, 2).float()
    others = kernel - torch.diag_embed(kernel.diagonal(dim1=1, dim2=2))
    # A position unlike all others is predicted by nobody: from the mean of all, then.
    total = others.sum(-1, keepdim=True)
    mean = flat.mean(1, keepdim=True)
    predicted = (others @ (flat - mean)) / total.clamp(min=1e-6) + mean
    variance = (flat - mean).square().mean((1, 2))
    return (flat - predicted).square().mean((1, 2)) / variance.clamp(min=1e-12)


def total_deviation(deviation: Tensor) -> Tensor:
    """(B, D) log deviations of the directions to (B, 1) that of all together."""
    return 0.5 * (2 * deviation).logsumexp(1, keepdim=True)

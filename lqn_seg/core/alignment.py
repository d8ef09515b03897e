"""Statistics alignment: an image's token statistics, less what damage, light and weather did.

Along the strongest directions of a layer's clean tokens, noise raises the deviations of the weaker
ones, blur lowers them, fog and contrast lower all. A calibration knows a layer's `Style`, the
part of such deviations that changes of clean pictures explain: `Aligner` removes it, layer by layer
while the teacher runs. What only another content explains stays: a street in snow is no damaged
street. Without a style, statistics are pulled to the nearest end of the clean range; inside the
range nothing changes. How far layer 0 would have to be pulled is the image's *damage*.

Related: re-centring of activations at test time (NEO), statistics per image (AdaBN).

Shapes: B images, H x W grid, D features, R directions; layer 0 is the patch embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lqn_seg.core.moments import moments
from lqn_seg.core.precision import operand_precision

# Directions whose clean variance is below this share of the largest carry rounding, not signal.
_LEAST_VARIANCE = 1e-6
# Share of the clean images' damage that counts as undamaged.
UNDAMAGED = 0.95


@dataclass(frozen=True)
class Style:
    """A Wiener filter of a layer's (B, 2 R) means and log deviations: the part that augmentations
    of clean images move, against the spread that clean images have anyway."""

    middle: Tensor  # (2 R,) of clean images
    spread: Tensor  # (2 R,) their deviation
    read: Tensor  # (2 R, K) a statistic, less the middle and over the spread, to K directions
    write: Tensor  # (2 R, K) back, weighted by what is style in them
    least: Tensor  # () length of a style that `UNDAMAGED` of clean images keep to

    def of(self, statistics: Tensor) -> Tensor:
        """(B, 2 R) style of statistics, over the spread."""
        return (statistics - self.middle) / self.spread @ self.read @ self.write.mT

    def remove(self, statistics: Tensor) -> Tensor:
        """(B, 2 R) statistics without the style, as far as it is longer than clean images'."""
        style = self.of(statistics)
        length = style.norm(dim=1, keepdim=True).clamp(min=1e-9)
        return statistics - style * (1 - self.least / length).clamp(min=0) * self.spread


@dataclass(frozen=True)
class LayerRange:
    """What clean images keep to at one layer: lower and upper quantiles over images."""

    centre: Tensor  # (H, W, D) a position's token: a blank image's at layer 0, else the mean
    basis: Tensor  # (D, R) strongest directions of clean tokens less the centre, as columns
    mean: Tensor  # (2, R) of a direction's mean over positions
    deviation: Tensor  # (2, R) of the logarithm of its deviation over positions
    gain: Tensor  # (2,) of the logarithm of all directions' deviation together
    style: Style | None = None

    def components(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Components (B, H, W, R) of tokens, their means and log deviations (B, R)."""
        with operand_precision(tokens.device):  # bfloat16 would drown weak directions
            parts = F.linear(tokens.float() - self.centre, self.basis.mT)
        mean, variance = moments(parts, (1, 2))
        return parts, mean, 0.5 * variance.clamp_(min=1e-12).log()

    def align(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Remove the style, or where none is known pull statistics back into the clean range:
        (B, H, W, D) tokens and (B,) the damage, the root mean square over directions of the log
        change of deviation after the common gain that the range would ask for.
        """
        parts, mean, deviation = self.components(tokens)
        size = total_deviation(deviation)
        common = size.clamp(*self.gain) - size
        change = (deviation + common).clamp(*self.deviation) - deviation
        change = torch.where(self.signal, change, 0.0)
        damage = (change - common)[:, self.signal].square().mean(1).sqrt()
        target = mean.clamp(*self.mean)
        if self.style is not None:
            plain = self.style.remove(torch.cat([mean, deviation], 1))
            target, wanted = plain.chunk(2, 1)
            change = torch.where(self.signal, wanted - deviation, 0.0)
        return self.restated(tokens, parts, mean, target, change), damage

    def restated(
        self, tokens: Tensor, parts: Tensor, mean: Tensor, target: Tensor, change: Tensor
    ) -> Tensor:
        """(B, H, W, D) tokens, their components given other statistics: the mean `target`, and log
        deviations higher by `change`, (B, R). What lies beside the directions stays."""
        growth = change.expm1()[:, None, None]
        shift = (target - mean * change.exp())[:, None, None]
        with operand_precision(tokens.device):
            return (tokens + F.linear(torch.addcmul(shift, parts, growth), self.basis)).to(
                tokens.dtype
            )

    @property
    def signal(self) -> Tensor:
        """(R,) bool, the directions that carry signal."""
        typical = self.deviation.mean(0)
        return typical > typical.max() + 0.5 * torch.log(torch.tensor(_LEAST_VARIANCE))


@dataclass(frozen=True)
class Calibration:
    """A teacher's clean ranges by layer, and what is measured on clean images."""

    layers: dict[int, LayerRange]  # 0 is the patch embedding
    undamaged: float  # `UNDAMAGED` quantile of their damage
    residual: float  # median of their `residual`
    pixels: Tensor  # (2, 3) average mean and log deviation of each channel, of pixels in 0..1
    distance: float = math.inf  # of `adapt.familiarity`; infinite where it was not measured
    noise: float = math.inf  # `UNDAMAGED` quantile of the pixels' (`adapt.denoise`), likewise

    def to(self, device: torch.device | str) -> Calibration:
        """The same on a device."""
        layers = {layer: _moved(clean, device) for layer, clean in self.layers.items()}
        return replace(self, layers=layers, pixels=self.pixels.to(device))


def _moved(clean: LayerRange, device: torch.device | str) -> LayerRange:
    tensors = {name: x.to(device) for name, x in vars(clean).items() if isinstance(x, Tensor)}
    style = clean.style and Style(*(x.to(device) for x in vars(clean.style).values()))
    return LayerRange(**tensors, style=style)


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


def total_deviation(deviation: Tensor) -> Tensor:
    """(B, R) log deviations of the directions to (B, 1) that of all together."""
    return 0.5 * (2 * deviation).logsumexp(1, keepdim=True)

"""How damaged a token field looks, and the way back: statistics of a teacher's clean images.

A corrupted image moves the statistics of its tokens out of the range that clean images keep to.
Along the principal directions of a layer's clean tokens, noise raises the deviations of the weak
ones, blur lowers them, fog and contrast lower all. `Restorer` pulls an image's statistics back to
the nearest end of the clean range, layer by layer while the teacher runs; inside the range it
changes nothing. How far layer 0 had to be pulled is the image's *damage*.

What restoring cannot undo is noise that has got into the last layer. It shows as tokens that the
others do not predict; `noise_share` compares with the clean images' part that is not predicted.

No label is needed, and nothing of an image is kept. Related: re-centring of activations at test
time (NEO), and per-image feature statistics instead of the training set's (AdaBN).

Shapes: B images, H x W grid, D features; layer 0 is the patch embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lqn_seg.core.fast.products import dense
from lqn_seg.core.kernel import guided_kernel, guiding_tokens, leave_one_out_error
from lqn_seg.core.precision import own_precision
from lqn_seg.errors import InputError

# Directions whose clean variance is below this share of the largest carry rounding, not signal.
_LEAST_VARIANCE = 1e-6
# Share of the clean images' damage that counts as undamaged.
UNDAMAGED = 0.95
# Share of the clean images' distance (`Acquaintance`) that counts as that of clean images. An image
# is unlike anything calibrated on where its own is above UNLIKE times that, and UNLIKE_DAMAGE times
# its damage, for heavy noise, too, moves tokens.
NEAR = 0.99
UNLIKE = 1.05
UNLIKE_DAMAGE = 0.7
# So is one of more damage than any corruption does: 2.0 at most at severity 5.
MOST_DAMAGE = 2.5
# Depth, as a share, of the layer whose tokens say which positions are alike: early, where noise has
# not spread over positions yet.
RESIDUAL_GUIDE = 0.125


@dataclass(frozen=True)
class LayerRange:
    """What clean images keep to at one layer.

    Attributes:
        centre: (H, W, D) what a position's token is before any image: of a blank image at layer 0,
            the mean clean token elsewhere.
        basis: (D, D) principal directions of clean tokens less the centre, as columns.
        mean: (2, D) lower and upper quantile over images of a direction's mean over positions.
        deviation: (2, D) likewise of the logarithm of its deviation over positions.
        gain: (2,) likewise of the logarithm of all directions' deviation together.
    """

    centre: Tensor
    basis: Tensor
    mean: Tensor
    deviation: Tensor
    gain: Tensor

    def components(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Components (B, H, W, D) of tokens, their means and log deviations (B, D)."""
        with own_precision(tokens.device):  # the weak directions would drown in bfloat16's rounding
            parts = dense(tokens.float() - self.centre, self.basis.mT)
        variance, mean = torch.var_mean(parts.flatten(1, 2), dim=1, correction=0)
        return parts, mean, 0.5 * variance.clamp_(min=1e-12).log()

    def restore(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pull each image's statistics back into the clean range.

        Returns:
            (B, H, W, D) tokens and (B,) the damage: root mean square, over directions, of the
            logarithm by which their deviations were changed after the common gain.
        """
        parts, mean, deviation = self.components(tokens)
        size = total_deviation(deviation)
        common = size.clamp(*self.gain) - size
        target = (deviation + common).clamp(*self.deviation)
        change = torch.where(self.signal, target - deviation, 0.0)
        parts = (parts - mean[:, None, None]) * change.exp()[:, None, None]
        parts += mean.clamp(*self.mean)[:, None, None]
        damage = (change - common)[:, self.signal].square().mean(1).sqrt()
        with own_precision(tokens.device):
            restored = dense(parts, self.basis) + self.centre
        return restored.to(tokens.dtype), damage

    def distances(self, tokens: Tensor) -> Tensor:
        """(B, H, W) how far tokens (B, H, W, D) lie from clean ones: the mean, over directions that
        carry signal, of the squared component in units of its variance over clean tokens. Clean
        tokens have about 1 on average."""
        parts, _, _ = self.components(tokens)
        spread = (self.mean[1] - self.mean[0]) / 4  # of the images' means, about their middle
        variance = (2 * self.deviation.mean(0)).exp() + spread.square()
        return ((parts - self.mean.mean(0)).square() / variance)[..., self.signal].mean(-1)

    @property
    def signal(self) -> Tensor:
        """(D,) bool, the directions that carry signal."""
        typical = self.deviation.mean(0)
        return typical > typical.max() + 0.5 * torch.log(torch.tensor(_LEAST_VARIANCE))


@dataclass(frozen=True)
class Calibration:
    """A teacher's clean ranges by layer, and what its gauges read of clean images.

    Attributes:
        layers: layer (0 = patch embedding) -> range.
        undamaged: `UNDAMAGED` quantile of the damage of the clean images.
        residual: median of their `residual`.
        distance: `NEAR` quantile of their `Acquaintance.distance`; infinite where it was not
            measured.
        pixels: (2, 2) lower and upper quantile of an image's mean, and of the logarithm of its
            deviation, in 0..1: for the control that changes pixels.
    """

    layers: dict[int, LayerRange]
    undamaged: float
    residual: float
    pixels: Tensor
    distance: float = math.inf

    def to(self, device: torch.device | str) -> Calibration:
        """The same on a device."""
        moved = {
            layer: LayerRange(*(tensor.to(device) for tensor in vars(clean).values()))
            for layer, clean in self.layers.items()
        }
        return replace(self, layers=moved, pixels=self.pixels.to(device))

    def alarmed(self) -> Calibration:
        """The same ranges, for a gauge to which every image is damaged through and through."""
        return replace(self, undamaged=-math.inf, residual=0.0)


class Restorer:
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
        restored, damage = clean.restore(tokens)
        if layer == min(self.calibration.layers):
            self.damage = damage
        return restored

    @property
    def damaged(self) -> Tensor:
        """(B,) bool, more damage than `UNDAMAGED` of the clean images show."""
        return self.damage > self.calibration.undamaged


class Acquaintance(Restorer):
    """A restorer that also says how far from clean images an image's content is.

    Restoring moves an image's statistics into the clean range, whatever the image shows; its single
    tokens stay where they are. Measured on the demo's teacher: the distance is 0.7 (0.9 at most) of
    64 clean scenes, 0.4 to 0.8 (1.1 at most) of scenes under six corruptions, up to 1.8 of noise,
    whose damage is up to 1.6, and 1.3 of photographs (COCO), whose damage is 0.2. `unlike` is said
    of none of the 64, of none of 252 scenes at severities 1, 3 and 5, and of 59% of 128
    photographs; for the demo's CLIP of 1 in 64, none (under noise up to a third) and 80%.
    """

    def __init__(self, calibration: Calibration) -> None:
        super().__init__(calibration)
        self._distances: list[Tensor] = []

    def __call__(self, layer: int, tokens: Tensor) -> Tensor:
        """As `Restorer`'s."""
        restored = super().__call__(layer, tokens)
        clean = self.calibration.layers.get(layer)
        if clean is not None and layer > min(self.calibration.layers):
            self._distances.append(clean.distances(restored))
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


def residual(fields: Tensor) -> Tensor:
    """(B,) part, over variance, of the last layer of (B, L, H, W, D) fields that positions which
    look alike at an early layer do not predict of each other."""
    with own_precision(fields.device):
        kernel = guided_kernel(guiding_tokens(fields, RESIDUAL_GUIDE))
        return leave_one_out_error(kernel, fields[:, -1])


def noise_share(calibration: Calibration, fields: Tensor) -> Tensor:
    """(B,) share in 0..1 of the residual that clean images do not have.

    With a clean residual s and noise n on top of it, a prediction deserves the weight n / (s + n)
    against the token itself (Wiener's, James and Stein's); s is the calibration's, s + n is seen.
    """
    return (1 - calibration.residual / residual(fields).clamp(min=1e-12)).clamp_(min=0)


class RangeBuilder:
    """Finds one layer's clean range in two passes over clean images: `observe`, then `measure`.

    It works on the CPU wherever the tokens lie: in float64, which not every device has, and with an
    eigendecomposition, which some are slow at.

    Args:
        centre: (H, W, D) in place of the mean over the images. At the embedding it should be that
            of a blank image, the position embedding alone: what a loss of contrast does not scale.
    """

    def __init__(self, centre: Tensor | None = None) -> None:
        self._given = None if centre is None else centre.cpu()
        self._count = 0
        self._sum = self._outer = torch.zeros(())
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._range: LayerRange | None = None

    def observe(self, tokens: Tensor) -> None:
        """First pass: (B, H, W, D) tokens of clean images."""
        tokens = tokens.cpu().double()
        self._count += len(tokens)
        self._sum = self._sum + tokens.sum(0)
        flat = tokens.flatten(0, 2)
        self._outer = self._outer + flat.T @ flat

    def measure(self, tokens: Tensor) -> None:
        """Second pass: the same tokens again."""
        if self._range is None:
            self._range = self._directions()
        _, mean, deviation = self._range.components(tokens.cpu())
        self._statistics.append((mean, deviation))

    def _directions(self) -> LayerRange:
        """Centre and basis; the ranges are still empty."""
        mean = self._sum / self._count
        centre = mean if self._given is None else self._given.double()
        places = centre.shape[0] * centre.shape[1]
        shifted = (mean - centre).flatten(0, 1)
        # E[(x - c)(x - c)'] from E[x x'], E[x] and c, then about the mean of x - c.
        cross = mean.flatten(0, 1).T @ centre.flatten(0, 1)
        second = self._outer / self._count - cross - cross.T
        second = (second + centre.flatten(0, 1).T @ centre.flatten(0, 1)) / places
        offset = shifted.mean(0)
        basis = torch.linalg.eigh(second - offset.outer(offset)).eigenvectors.float()
        empty = torch.zeros(2, centre.shape[-1])
        return LayerRange(centre.float(), basis, empty, empty, empty[:, 0])

    def finish(self, quantile: float) -> LayerRange:
        """The range, on the CPU.

        Args:
            quantile: share of the images left out at either end.

        Raises:
            InputError: fewer than two images were seen, or the quantile is not in [0, 0.5).
        """
        if self._count < 2 or self._range is None:
            raise InputError(f"calibration needs at least two images, not {self._count}")
        if not 0 <= quantile < 0.5:
            raise InputError(f"the quantile must be in [0, 0.5), not {quantile}")
        mean, deviation = (torch.cat(parts) for parts in zip(*self._statistics))
        ends = (quantile, 1 - quantile)
        return LayerRange(
            self._range.centre,
            self._range.basis,
            quantiles(mean, ends),
            quantiles(deviation, ends),
            quantiles(total_deviation(deviation), ends).squeeze(1),
        )


def quantiles(values: Tensor, shares: Sequence[float]) -> Tensor:
    """(n, ...) values to (len(shares), ...): `torch.quantile` over the first axis, of any size.

    (Older versions of torch refuse more than 16 million values: 16,000 images x 1024 directions.)
    """
    places = torch.tensor(shares, device=values.device) * (len(values) - 1)
    below = places.floor().long()
    ordered = values.sort(0).values
    weight = (places - below).view(-1, *(1,) * (values.dim() - 1))
    return torch.lerp(ordered[below], ordered[(below + 1).clamp(max=len(values) - 1)], weight)


def total_deviation(deviation: Tensor) -> Tensor:
    """(B, D) log deviations of the directions to (B, 1) that of all together."""
    return 0.5 * (2 * deviation).logsumexp(1, keepdim=True)


def calibrated_layers(depth: int, query_layers: int) -> Sequence[int]:
    """Layers to restore at: the embedding and the first half, before the queries come in."""
    return range(min(depth // 2, depth - query_layers) + 1)

"""What students see: patches, the tokens that they are fitted to, and a guide.

Shapes: B images, L x H x W grid, D features, m fitted layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from lqn_seg.core.config import LQNConfig
from lqn_seg.core.moments import moments
from lqn_seg.errors import InputError


@dataclass(frozen=True)
class View:
    """Of B images; targets are standardised where there are statistics, as they are asked for."""

    patches: Tensor  # (B, h/s * w/s, 3 s s) as the convolution of stride s sees them
    layers: Tensor  # (m,) numbers of the fitted layers, ascending
    fields: Tensor  # (B, L, H * W, D) tokens of all layers
    mean: Tensor | None  # (B, m, D) over positions
    deviation: Tensor | None
    guide: Tensor | None  # (B, H * W, D) standardised tokens of the guiding layer, if it is read
    rows: Tensor  # (H,) and
    columns: Tensor  # (W,) coordinates of the tokens

    @classmethod
    def of(
        cls,
        images: Tensor,
        fields: Tensor,
        config: LQNConfig,
        layers: Sequence[int],
        shape: tuple[int, ...],
        coordinates: Sequence[Tensor] = (),
    ) -> View:
        """Of (B, 3, s, s) images and their (B, L, H, W, D) fields, which lie on rows 1..H and
        columns 1..W, or on other coordinates. An `InputError` where these have not this shape, or
        the images not the student's size."""
        student, device = config.student, fields.device
        side = student.input_size
        wanted = {"images": (shape[0], 3, side, side), "fields": shape}
        for (name, size), tensor in zip(wanted.items(), (images, fields)):
            if tuple(tensor.shape) != size:
                raise InputError(f"{name} must have shape {size}, got {tuple(tensor.shape)}")
        if not shape[0]:
            raise InputError("there is no image to fit: no random keys were given")
        with torch.no_grad():
            patches = F.unfold(images.to(device).float(), student.stride, stride=student.stride)
            guide = guiding_tokens(fields, student.guide).flatten(1, 2) if student.guide else None
            tokens = fields.flatten(2, 3)
            mean = deviation = None  # layer by layer: no copy of the field
            if config.fit.target_norm == "layer":
                found = [moments(tokens[:, k - 1].float(), 1) for k in layers]
                mean, variance = (torch.stack(one, 1) for one in zip(*found))
                deviation = variance.sqrt_().clamp_(min=1e-6)
            numbers = torch.tensor(layers, device=device, dtype=torch.float32)
            places = coordinates or [torch.arange(1.0, side + 1) for side in shape[2:4]]
            rows, columns = (axis.to(device, torch.float32) for axis in places)
        return cls(patches.mT.contiguous(), numbers, tokens, mean, deviation, guide, rows, columns)

    @cached_property
    def addresses(self) -> Tensor:
        """(m H W, 3) of the targets."""
        plane = self.layer(0)
        layers = self.layers.repeat_interleave(len(plane))
        return torch.cat([plane.repeat(len(self.layers), 1)[:, :2], layers[:, None]], 1)

    def layer(self, layer: float) -> Tensor:
        """(H W, 3) addresses of a layer, row by row."""
        i, j = torch.meshgrid(self.rows, self.columns, indexing="ij")
        return torch.stack((i, j, torch.full_like(i, layer)), -1).flatten(0, 1)

    def targets_at(self, indices: Tensor) -> Tensor:
        """(B, n) indices among the m H W fitted tokens to their (B, n, D)."""
        fitted, place = indices // self.fields.shape[2], indices % self.fields.shape[2]
        tokens = _at(self.fields, self.layers[fitted].long() - 1, place).float()
        if self.mean is None or self.deviation is None:
            return tokens
        return (tokens - _at(self.mean, fitted)) / _at(self.deviation, fitted)

    def guide_at(self, indices: Tensor) -> Tensor | None:
        """(B, n, D) guide at the same indices."""
        return None if self.guide is None else _at(self.guide, indices % self.guide.shape[1])

    def guide_between(self, addresses: Tensor) -> Tensor | None:
        """(B, Q, D) guide at (B, Q, 3) addresses, bilinear; on rows 1..H and columns 1..W alone."""
        if self.guide is None:
            return None
        for axis in (self.rows, self.columns):
            if not axis.equal(torch.arange(1, len(axis) + 1.0, device=axis.device)):
                raise InputError("a guide on coordinates of one's own: only query_layer knows it")
        grid = self.guide.mT.unflatten(2, (len(self.rows), len(self.columns)))  # (B, D, H, W)
        size = addresses.new_tensor(grid.shape[:1:-1])
        where = (2 * addresses[..., :2].flip(-1) - 1) / size - 1  # grid_sample's x, y in -1..1
        sampled = F.grid_sample(grid, where[:, None], padding_mode="border", align_corners=False)
        return sampled.squeeze(2).mT

    def in_units(self, tokens: Tensor, layer: Tensor) -> Tensor:
        """(B, Q, D) tokens at (B, Q) layers, in the teacher's units. Statistics are linear between
        fitted layers and constant beyond them: a layer held out of the fit lends nothing."""
        if self.mean is None or self.deviation is None:
            return tokens
        known, last = self.layers, len(self.layers) - 1
        layer = layer.clamp(known[0], known[-1]).contiguous()
        above = torch.searchsorted(known, layer).clamp_(min=min(1, last))
        below = (above - 1).clamp_(min=0)
        weight = ((layer - known[below]) / (known[above] - known[below]).clamp_(min=1.0))[..., None]
        mean, deviation = (
            torch.lerp(_at(statistic, below), _at(statistic, above), weight)
            for statistic in (self.mean, self.deviation)
        )
        return torch.addcmul(mean, tokens, deviation)


def _at(rows: Tensor, *indices: Tensor) -> Tensor:
    """(B, R, D) and (B, n) to (B, n, D); with another axis before D, two of (B, n)."""
    return rows[(torch.arange(len(rows), device=rows.device)[:, None], *indices)]


def guiding_tokens(fields: Tensor, fraction: float) -> Tensor:
    """Tokens (B, H, W, D) of the layer at a share of the depth of (B, L, H, W, D) fields,
    standardised per feature over the positions."""
    layer = max(1, round(fraction * fields.shape[1]))
    tokens = fields[:, layer - 1].float()
    mean, variance = moments(tokens, (1, 2), keepdim=True)
    return (tokens - mean) / variance.sqrt_().clamp_(min=1e-6)

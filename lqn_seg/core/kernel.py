"""Which positions of a token field look alike: the kernel of the gauge and of the controls.

Two positions are alike where an early layer, the *guide*, shows alike tokens and where they lie
near each other.

Shapes: B images, H x W grid, D features, N = H W.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Bandwidths: of the guide, in root-mean-square standard deviations per feature; of the position,
# as a share of the grid's longer side.
GUIDE_BANDWIDTH = 0.5
POSITION_BANDWIDTH = 1 / 6


def guiding_tokens(fields: Tensor, share: float) -> Tensor:
    """Tokens (B, H, W, D) of the layer at a share of the depth of (B, L, H, W, D) fields,
    standardised per feature over the positions."""
    layer = max(1, round(share * fields.shape[1]))
    tokens = fields[:, layer - 1].float()
    variance, mean = torch.var_mean(tokens, dim=(1, 2), correction=0, keepdim=True)
    return (tokens - mean) / variance.sqrt_().clamp_(min=1e-6)


def guided_kernel(guide: Tensor) -> Tensor:
    """(B, N, N) Gaussian kernel in (0, 1] of (B, H, W, D) guiding tokens and their positions."""
    height, width = guide.shape[1:3]
    rows, columns = (torch.arange(1.0, side + 1, device=guide.device) for side in (height, width))
    places = torch.cartesian_prod(rows, columns) / (POSITION_BANDWIDTH * max(height, width))
    tokens = guide.flatten(1, 2) / (GUIDE_BANDWIDTH * guide.shape[-1] ** 0.5)
    distance = torch.cdist(tokens, tokens).square_() + torch.cdist(places, places).square_()
    return distance.mul_(-0.5).exp_()


def leave_one_out_error(kernel: Tensor, tokens: Tensor) -> Tensor:
    """(B,) error, over variance, of predicting a token as the kernel's mean of all *other* tokens.

    Args:
        kernel: (B, N, N).
        tokens: (B, H, W, D).
    """
    flat = tokens.flatten(1, 2).float()
    others = kernel - torch.diag_embed(kernel.diagonal(dim1=1, dim2=2))
    # A position unlike all others is predicted by nobody: from the mean of all, then.
    total = others.sum(-1, keepdim=True)
    mean = flat.mean(1, keepdim=True)
    predicted = (others @ (flat - mean)) / total.clamp(min=1e-6) + mean
    variance = (flat - mean).square().mean((1, 2))
    return (flat - predicted).square().mean((1, 2)) / variance.clamp(min=1e-12)


def centred(tokens: Tensor) -> Tensor:
    """(B, H, W, D) tokens less their mean over positions."""
    return tokens - tokens.mean((1, 2), keepdim=True)


def share(part: Tensor, tokens: Tensor) -> float:
    """Mean square of a part over the variance of (B, H, W, D) tokens over their positions."""
    return (part.square().mean() / centred(tokens).square().mean()).item()

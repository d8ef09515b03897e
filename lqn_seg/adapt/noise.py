"""The noise that alignment leaves: what tokens that look alike do not predict of each other.

Shapes: B images, L x H x W grid, D features, N = H * W positions.
"""

import torch
from torch import Tensor

from lqn_seg.core.alignment import Calibration
from lqn_seg.core.precision import operand_precision
from lqn_seg.core.view import guiding_tokens

# Relative depth of the layer that says which positions are alike: before noise has spread.
RESIDUAL_GUIDE = 0.125
# Bandwidths: of the guide, in root-mean-square standard deviations per feature; of the position,
# as a share of the grid's longer side.
GUIDE_BANDWIDTH = 0.5
POSITION_BANDWIDTH = 1 / 6


def residual(fields: Tensor) -> Tensor:
    """(B,) part, over variance, of the last layer of (B, L, H, W, D) fields that positions which
    look alike at an early layer do not predict of each other."""
    with operand_precision(fields.device):
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
    positions = torch.cartesian_prod(rows, columns) / (POSITION_BANDWIDTH * max(height, width))
    tokens = guide.flatten(1, 2) / (GUIDE_BANDWIDTH * guide.shape[-1] ** 0.5)
    distance = torch.cdist(tokens, tokens).square_()
    distance += torch.cdist(positions, positions).square_()
    return distance.mul_(-0.5).exp_()


def leave_one_out_error(kernel: Tensor, tokens: Tensor) -> Tensor:
    """(B,) error, over variance, of predicting each of the (B, H, W, D) tokens as the (B, N, N)
    kernel's mean of all *other* tokens."""
    flat = tokens.flatten(1, 2).float()
    others = kernel.diagonal_scatter(torch.zeros_like(kernel[..., 0]), dim1=1, dim2=2)
    # A position unlike all others is predicted by nobody: from the mean of all, then.
    total = others.sum(-1, keepdim=True)
    mean = flat.mean(1, keepdim=True)
    predicted = (others @ (flat - mean)) / total.clamp(min=1e-6) + mean
    variance = (flat - mean).square().mean((1, 2))
    return (flat - predicted).square().mean((1, 2)) / variance.clamp(min=1e-12)

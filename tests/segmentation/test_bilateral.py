"""Joint bilateral upsampling against its formula, pixel by pixel."""

import math

import torch

from lqn_seg.segmentation.bilateral import RADIUS, RANGE, SPATIAL, upsample


def literal(logits, guide, i, j):
    """Kopf et al., Eq. 3, of one fine pixel (i, j), far from the border."""
    scale = guide.shape[1] // logits.shape[1]
    y, x = (i + 0.5) / scale - 0.5, (j + 0.5) / scale - 0.5
    total, weights = torch.zeros(len(logits)), 0.0
    for m in range(round(y) - RADIUS, round(y) + RADIUS + 1):
        for n in range(round(x) - RADIUS, round(x) + RADIUS + 1):
            patch = guide[:, scale * m : scale * (m + 1), scale * n : scale * (n + 1)]
            unlike = (guide[:, i, j] - patch.mean((1, 2))).square().sum().item()
            distance = (y - m) ** 2 + (x - n) ** 2
            weight = math.exp(-distance / (2 * SPATIAL**2) - unlike / (2 * RANGE**2))
            total += weight * logits[:, m, n]
            weights += weight
    return total / weights


def test_it_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 6, generator=generator)
    guide = torch.rand(2, 3, 32, 24, generator=generator)
    fine = upsample(logits, guide)
    assert fine.shape == (2, 3, 32, 24)
    for b, i, j in [(0, 12, 10), (1, 17, 13), (1, 15, 11)]:
        expected = literal(logits[b], guide[b], i, j)
        torch.testing.assert_close(fine[b, :, i, j], expected, rtol=1e-4, atol=1e-4)


def test_an_edge_of_the_picture_is_one_of_the_answer():
    """Bilinear enlarging blurs an edge over a cell; the guide, dark left of it, keeps it sharp."""
    guide = torch.zeros(1, 3, 32, 32)
    guide[..., 16:] = 1
    logits = torch.zeros(1, 1, 8, 8)
    logits[..., 4:] = 1
    fine = upsample(logits, guide)
    assert fine[..., 15].max() < 1e-6 and fine[..., 16].min() > 1 - 1e-6


def test_a_pixel_unlike_all_cells_has_the_logits_of_the_likest():
    """Its weights are too small for a float."""
    guide = torch.zeros(1, 3, 64, 64)
    guide[..., 30, 30] = 1
    fine = upsample(torch.full((1, 1, 8, 8), 5.0), guide)
    torch.testing.assert_close(fine, torch.full_like(fine, 5))

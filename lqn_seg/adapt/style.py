"""What other light, weather and cameras do to a layer's statistics, learnt from augmentations.

Related: Wiener's filter, of two covariances instead of two spectra; domain randomisation.

Shapes: B or n images, 2 R statistics: means and log deviations along R directions.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lqn_seg.core.alignment import UNDAMAGED, Style

# How much of the covariance is taken from its diagonal: images are fewer than statistics.
SHRINKAGE = 0.3
NOISE_WEIGHT = 2.0  # of the clean spread against the augmentations' effect
RANK = 256  # directions kept, the strongest first
FOLDS = 4  # of the clean images, to measure on some what is made from the others
_REFERENCE_SIDE = 224  # pixels, that lengths below are of


def augment(images: Tensor, look: int) -> Tensor:
    """(B, 3, h, w) images in 0..1, each changed by `CHANGES[look]` at a random strength, which
    follows from the image and the look alone."""
    return torch.stack([_change(image, look) for image in images.cpu()]).clamp_(0, 1)


def _change(image: Tensor, look: int) -> Tensor:
    key = zlib.crc32(image.numpy().tobytes(), look)
    return CHANGES[look](image, torch.Generator().manual_seed(key))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.empty(()).uniform_(low, high, generator=generator).item()


def _gain(image: Tensor, generator: torch.Generator) -> Tensor:
    return image * 2 ** _uniform(-1, 1, generator)


def _gamma(image: Tensor, generator: torch.Generator) -> Tensor:
    return image.clamp(min=1e-3) ** (2 ** _uniform(-1, 1, generator))


def _cast(image: Tensor, generator: torch.Generator) -> Tensor:
    return image * (0.2 * torch.randn(3, 1, 1, generator=generator)).exp()


def _contrast(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.lerp(image.mean(), image, _uniform(0.15, 1.3, generator))


def _haze(image: Tensor, generator: torch.Generator) -> Tensor:
    light = image.new_tensor(_uniform(0.6, 1, generator))
    return torch.lerp(image, light, _uniform(0, 0.7, generator))


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    sigma = _uniform(0.3, 3, generator) * min(image.shape[1:]) / _REFERENCE_SIDE
    return F.gaussian_blur(image, [2 * int(3 * sigma) + 1] * 2, [sigma] * 2)


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    strength = _uniform(0, 0.2, generator)
    return image + strength * torch.randn(image.shape, generator=generator)


def _coarsen(image: Tensor, generator: torch.Generator) -> Tensor:
    size = list(image.shape[1:])
    factor = _uniform(1, 4, generator)
    small = F.resize(image, [max(int(side / factor), 1) for side in size])
    return F.resize(small, size, F.InterpolationMode.NEAREST)


CHANGES: Sequence[Callable[[Tensor, torch.Generator], Tensor]] = (
    *(_gain, _gamma, _cast, _contrast, _haze, _blur, _noise, _coarsen),
)
LOOKS = len(CHANGES)  # at each image


def fit_style(clean: Tensor, changed: Tensor) -> Style:
    """The Wiener filter S (S + k N)^-1 of what augmentations change.

    S is the second moment of the change, N the covariance of clean images, both in units of the
    clean deviations. In the basis in which both are diagonal the filter weighs each direction by
    s / (s + k): what no augmentation moves, or clean images move as much, stays. How long a style
    clean images show is measured on images that the filter was not made from.

    Args:
        clean: (n, 2 R) statistics of clean images.
        changed: (looks, n, 2 R) of the same images augmented.
    """
    folds = max(min(FOLDS, len(clean) // 2), 1)
    fold = clean[:, 0].argsort().argsort() % folds  # whatever order the images came in
    lengths = []
    for k in range(folds):
        others = fold != k if folds > 1 else fold == k  # two or three images: no others
        style = _wiener(clean[others], changed[:, others])
        lengths.append(style.of(clean[fold == k]).norm(dim=1))
    least = quantiles(torch.cat(lengths), (UNDAMAGED,)).squeeze(0)
    return replace(_wiener(clean, changed), least=least)


def _wiener(clean: Tensor, changed: Tensor) -> Style:
    """The filter, of which any length is too much."""
    middle, spread = clean.mean(0), clean.std(0).clamp(min=1e-6)
    standard, change = (clean - middle) / spread, (changed - clean) / spread
    noise = standard.T @ standard / len(standard)
    noise = torch.lerp(noise, torch.eye(len(noise)), SHRINKAGE)
    values, vectors = torch.linalg.eigh(noise)
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    moved = change.flatten(0, 1) @ inverse
    power, directions = torch.linalg.eigh(moved.T @ moved / len(moved))
    power, directions = power[-RANK:].clamp(min=0), directions[:, -RANK:]
    write = (root @ directions) * (power / (power + NOISE_WEIGHT))
    return Style(middle, spread, inverse @ directions, write, torch.zeros(()))


def quantiles(values: Tensor, shares: Sequence[float]) -> Tensor:
    """(n, ...) values to (len(shares), ...): `torch.quantile` over the first axis, of any size.

    (Older versions of torch refuse more than 16 million values: 16,000 images x 1024 directions.)
    """
    positions = torch.tensor(shares, device=values.device) * (len(values) - 1)
    below = positions.floor().long()
    ordered = values.sort(0).values
    weight = (positions - below).view(-1, *(1,) * (values.dim() - 1))
    return torch.lerp(ordered[below], ordered[(below + 1).clamp(max=len(values) - 1)], weight)

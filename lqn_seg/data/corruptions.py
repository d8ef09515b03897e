"""Fifteen corruptions of ImageNet-C, four of our own, chains and halves; five severities, seeded.

A name is one of `ALL_CORRUPTIONS`, or several joined by "+", which are applied in this order, each
at the severity (`fog+jpeg_compression`). With "half_" before it, all of it happens to one half of
the image alone (`half_fog+jpeg_compression`). Names hold a-z, "_" and "+" only, so that they can
stand in file names of any system, in YAML and on a command line, and a "-" can end them.

Formulas and constants: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), and its published code. Departures:

- lengths in pixels (of blurs, flakes, displacements) are multiplied by min(height, width) / 224,
  the side the constants were chosen for; the fog map's side is the next power of two that covers
  the image;
- random numbers come from a generator keyed on (seed, CRC32 of the pixels, name, severity);
- results are rounded to nearest, not truncated, to 8 bits;
- the kernel of defocus blur is normalised to sum exactly 1;
- frost is drawn (`distortions.frost_texture`), not cut from photographs.

`OWN_STRENGTHS` are ours: there are no published constants. They were set by eye on street
photographs, so that severity 3 looks like a photograph that people would still upload.
"""

import io
import math
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lqn_seg.errors import InputError, nearest

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
Float = NDArray[np.float64]
Random = np.random.Generator

REFERENCE_SIDE = 224  # side in pixels of the images ImageNet-C's lengths were chosen for
STRENGTHS: dict[str, tuple[Any, ...]] = {  # severities 1 .. 5
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "shot_noise": (60, 25, 12, 5, 3),  # photons that make white
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # fraction of values
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, alias blur sigma
    # sigma, reach, rounds
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, sigma
    # last zoom, step
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (  # mean, deviation, zoom and threshold of flakes; their radius and sigma; image kept
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # weight of image, ice
    "fog": ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),  # strength, wibble decay
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (  # push, sigma of its smoothing, move of corners; 244 as published
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),  # quality
}
CORRUPTIONS: tuple[str, ...] = tuple(STRENGTHS)
OWN_STRENGTHS: dict[str, tuple[Any, ...]] = {  # severities 1 .. 5
    # drops per 1000 pixels; length and width of a streak; weight of streaks, contrast kept
    "rain": (
        (2.0, 14, 0.4, 0.4, 0.95),
        (3.0, 16, 0.4, 0.45, 0.9),
        (4.5, 19, 0.45, 0.5, 0.85),
        (6.5, 22, 0.5, 0.55, 0.75),
        (9.0, 26, 0.5, 0.65, 0.65),
    ),
    # spots per 224 x 224 pixels, their radius, sigma of the blur behind them, darkness
    "dirt": (
        (5, 8, 3, 0.3),
        (6, 10, 4, 0.35),
        (8, 12, 5, 0.4),
        (9, 14, 6, 0.5),
        (10, 17, 8, 0.6),
    ),
    "low_resolution": (1 / 2, 2 / 5, 1 / 3, 1 / 4, 1 / 6),  # of the side
    # side, quality before and after it is enlarged
    "reupload": ((0.8, 70, 75), (0.7, 55, 65), (0.6, 45, 50), (0.5, 30, 40), (0.4, 20, 30)),
}
ALL_CORRUPTIONS: tuple[str, ...] = (*CORRUPTIONS, *OWN_STRENGTHS)
_ALL = STRENGTHS | OWN_STRENGTHS
_HALF, _LONGEST = "half_", 100  # characters, of names that are file names


def parse_corruption(name: str, what: str = "corruption") -> tuple[bool, tuple[str, ...]]:
    """Whether a name is of one half, and its links, each one of `ALL_CORRUPTIONS`; an InputError,
    which calls the name `what` and suggests the nearest, where it is not of this form.

    >>> parse_corruption("half_fog+rain"), parse_corruption("fog")
    ((True, ('fog', 'rain')), (False, ('fog',)))
    """
    if len(name) > _LONGEST:
        raise InputError(f"{what} {name[:20]!r} ... is longer than {_LONGEST} characters")
    chain = name.removeprefix(_HALF)
    links = tuple(nearest(link, ALL_CORRUPTIONS, what) for link in chain.split("+"))
    return chain != name, links


def strengths_of(name: str) -> Any:
    """The constants behind a name at severities 1 .. 5: `STRENGTHS` of one of ImageNet-C's, else by
    link. InputError as in `parse_corruption`."""
    _, links = parse_corruption(name)
    return STRENGTHS[name] if name in STRENGTHS else {link: _ALL[link] for link in links}


def corrupt(image: Pixels, name: str, severity: int, seed: int = 0) -> Pixels:
    """Corrupt one image (H, W, 3) uint8, RGB; the result depends on the arguments alone.

    A link of a chain is keyed on its own name and on the pixels that it is given: the first one
    does what it does alone. Which half a "half_" means is keyed on the image alone, the same for
    all names and severities; its pixels are those of the whole image corrupted, the others stay.

    Args:
        name: see the module.
        severity: 1 (mild) .. 5 (strong).
        seed: non-negative; another seed draws other noise and weather.

    Raises:
        InputError: an argument is not of this form; an unknown name gets the nearest known one.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise InputError(f"corrupt needs a uint8 array of RGB pixels, got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"corrupt needs an image of shape (H, W, 3), got {image.shape}")
    of_half, links = parse_corruption(name)
    if isinstance(severity, bool) or severity not in (1, 2, 3, 4, 5):
        raise InputError(f"corruption severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if seed < 0:
        raise InputError(f"corruption seed must not be negative, got {seed}")
    result = image = np.ascontiguousarray(image)
    for link in links:
        result = _corrupt(result, link, int(severity), seed)
    if of_half:
        half = _half(image, seed)
        damaged, result = result, image.copy()
        result[half] = damaged[half]
    return result


def _half(image: Pixels, seed: int) -> tuple[slice, slice]:
    """Left, right, top or bottom; the middle line of an odd side is of the second half."""
    whole, row, column = slice(None), image.shape[0] // 2, image.shape[1] // 2
    halves = (
        *((whole, slice(column)), (whole, slice(column, None))),
        *((slice(row), whole), (slice(row, None), whole)),
    )
    key = [seed, zlib.crc32(image.data), zlib.crc32(_HALF.encode())]
    return halves[np.random.default_rng(key).integers(4)]


def _corrupt(image: Pixels, name: str, severity: int, seed: int) -> Pixels:
    """A single corruption of a contiguous image."""
    key = [seed, zlib.crc32(image.data), zlib.crc32(name.encode()), severity]
    strength, random = _ALL[name][severity - 1], np.random.default_rng(key)
    if name == "pixelate":
        return _pixelate(image, strength)
    if name == "jpeg_compression":
        return jpeg(image, strength)
    x = image / 255
    if name == "gaussian_noise":
        y = x + random.normal(0, strength, x.shape)
    elif name == "defocus_blur":
        radius, alias_blur = strength
        y = convolve(x, disk_kernel(radius, alias_blur, min(x.shape[:2]) / REFERENCE_SIDE))
    elif name == "contrast":
        mean = x.mean(axis=(0, 1), keepdims=True)
        y = (x - mean) * strength + mean
    elif name == "fog":
        y = _fog(x, random, *strength)
    elif name == "brightness":
        y = _brighten(x, strength)
    else:
        from lqn_seg.data.distortions import distort  # which needs scipy, slow to import

        y = distort(x, name, strength, random)
    return np.rint(np.clip(y, 0, 1) * 255).astype(np.uint8)


def _pixelate(image: Pixels, fraction: float) -> Pixels:
    height, width = image.shape[:2]
    small = (max(1, int(width * fraction)), max(1, int(height * fraction)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.array(picture.resize((width, height), Image.Resampling.BOX))


def jpeg(image: Pixels, quality: int) -> Pixels:
    """What Pillow makes of a JPEG of this quality, 1 .. 95."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def _brighten(x: Float, amount: float) -> Float:
    """Raise V of HSV at constant H and S: all channels are scaled. Black becomes grey."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + amount, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def _fog(x: Float, random: Random, strength: float, wibble_decay: float) -> Float:
    height, width = x.shape[:2]
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    mist = plasma_fractal(side, wibble_decay, random)[:height, :width, None]
    brightest = x.max()
    return (x + strength * mist) * brightest / (brightest + strength)


def disk_kernel(radius: float, alias_blur: float, scale: float = 1.0) -> Float:
    """A disk with an edge softened by a Gaussian of sigma `alias_blur`, the kernel of a lens out of
    focus: (K, K), sum 1. Lengths are in pixels at `scale` 1; up to radius 8 the edge is blurred by
    3 x 3 taps, else by 5 x 5."""
    taps = math.ceil((1 if radius <= 8 else 2) * scale)
    half = max(math.ceil(8 * scale), math.ceil(radius * scale))
    axis = np.arange(-half, half + 1)
    disk = (axis[:, None] ** 2 + axis[None, :] ** 2 <= (radius * scale) ** 2).astype(np.float64)
    offsets = np.arange(-taps, taps + 1)
    gaussian = np.exp(-(offsets**2) / (2 * (alias_blur * scale) ** 2))
    kernel = convolve(disk[..., None], np.outer(gaussian, gaussian))[..., 0]
    return kernel / kernel.sum()


def convolve(x: Float, kernel: Float, mode: Literal["reflect", "edge"] = "reflect") -> Float:
    """Convolve (H, W, C) with a (K, K) kernel, K odd; `mode` continues the image as in np.pad."""
    half = kernel.shape[0] // 2
    height, width = x.shape[:2]
    padded = np.pad(x, ((half, half), (half, half), (0, 0)), mode=mode)
    shape = (padded.shape[0] + 2 * half, padded.shape[1] + 2 * half)  # linear, not circular
    product = np.fft.rfft2(padded, shape, axes=(0, 1)) * np.fft.rfft2(kernel, shape)[..., None]
    full = np.fft.irfft2(product, shape, axes=(0, 1))
    return full[2 * half : 2 * half + height, 2 * half : 2 * half + width]


def plasma_fractal(side: int, wibble_decay: float, random: Random) -> Float:
    """Diamond-square noise on a torus, (side, side) in 0 .. 1: ImageNet-C's fog. The amplitude is
    divided by `wibble_decay` each time the grid is halved: more is smoother."""
    if side < 2 or side & (side - 1):
        raise ValueError(f"side must be a power of two, got {side}")
    field = np.zeros((side, side))
    wibble, step = 100.0, side

    def jitter(total: Float) -> Float:
        # As published, the amplitude enters twice: wibble * uniform(-wibble, wibble).
        return total / 4 + wibble * random.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        across = corners + np.roll(corners, -1, axis=0)
        centres = jitter(across + np.roll(across, -1, axis=1))
        field[half::step, half::step] = centres
        vertical = centres + np.roll(centres, 1, axis=0)
        field[::step, half::step] = jitter(vertical + corners + np.roll(corners, -1, axis=1))
        horizontal = centres + np.roll(centres, 1, axis=1)
        field[half::step, ::step] = jitter(horizontal + corners + np.roll(corners, -1, axis=0))
        step, wibble = half, wibble / wibble_decay
    field -= field.min()
    return field / field.max()

"""The corruptions that need more than a line: ImageNet-C's noise, blur, weather and warping, and
four of our own (`rain`, `dirt`, `low_resolution`, `reupload`).

Formulas and constants are those of `corruptions` (Hendrycks and Dietterich, ICLR 2019, and its
published code), with the same departures: lengths in pixels grow with the image, and nothing in
between is rounded to 8 bits. At 224 x 224 pixels and with equal random numbers the results are the
published code's to a level or two of 255, but for frost: see `frost_texture`. Our own have neither
published formulas nor constants (`corruptions.OWN_STRENGTHS`).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from lqn_seg.data.corruptions import (
    REFERENCE_SIDE,
    Float,
    Pixels,
    Random,
    convolve,
    jpeg,
    plasma_fractal,
)

LUMA = (0.299, 0.587, 0.114)  # grey of RGB
_MUD = (0.2, 0.17, 0.13)  # RGB of `dirt`


def distort(x: Float, name: str, strength: Any, random: Random) -> Float:
    """Distort an image (H, W, 3) in 0 .. 1; the result may leave that range.

    Args:
        name: one of `DISTORTIONS`.
        strength: an entry of `corruptions.STRENGTHS` or `corruptions.OWN_STRENGTHS`.
        random: the only source of random numbers.
    """
    scale = min(x.shape[:2]) / REFERENCE_SIDE
    arguments = strength if isinstance(strength, tuple) else (strength,)
    return DISTORTIONS[name](x, random, scale, *arguments)


def shot_noise(x: Float, random: Random, scale: float, photons: float) -> Float:
    """Poisson noise of white = `photons`."""
    return random.poisson(x * photons) / photons


def impulse_noise(x: Float, random: Random, scale: float, fraction: float) -> Float:
    """Salt and pepper, in each channel by itself."""
    hit = random.random(x.shape) <= fraction
    return np.where(hit, random.random(x.shape) <= 0.5, x)


def glass_blur(
    x: Float, random: Random, scale: float, sigma: float, reach: int, rounds: int
) -> Float:
    """Blur, put a near pixel in every pixel's place, `rounds` times, and blur again.

    Single pixels move, whatever the image's size: large images come out smoother than small ones.
    """
    height, width = x.shape[:2]
    reach = max(1, round(reach * scale))
    sigmas = (sigma * scale, sigma * scale, 0)
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    pixels = (rows[:, None] * width + columns).ravel()
    source = list(range(height * width))
    for _ in range(rounds):
        across, down = random.integers(-reach, reach, (pixels.size, 2)).T
        # One after the other, each seeing what the last one did. The published code means to swap
        # the two pixels; as both are views of one array, it copies.
        for here, there in zip(pixels.tolist(), (pixels + down * width + across).tolist()):
            source[here] = source[there]
    blurred = ndimage.gaussian_filter(x, sigmas, mode="nearest").reshape(-1, 3)
    return ndimage.gaussian_filter(blurred[source].reshape(x.shape), sigmas, mode="nearest")


def motion_blur(x: Float, random: Random, scale: float, radius: float, sigma: float) -> Float:
    """Blur along a line within 45 degrees of the horizontal."""
    return _streak(x, radius * scale, sigma * scale, random.uniform(-45, 45))


def _streak(x: Float, radius: float, sigma: float, degrees: float) -> Float:
    """Average (H, W, C) over whole-pixel steps in one direction, weighted by half a Gaussian: the
    motion blur of ImageMagick. Edge pixels are repeated."""
    steps = np.arange(2 * round(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    half, angle = len(steps) - 1, math.radians(degrees)
    down = np.ceil(steps * math.sin(angle) - 0.5).astype(int)
    across = np.ceil(steps * math.cos(angle) - 0.5).astype(int)
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    np.add.at(kernel, (half - down, half - across), weights / weights.sum())
    return convolve(x, kernel, "edge")


def zoom_blur(x: Float, random: Random, scale: float, end: float, step: float) -> Float:
    """Mean of the image and of the image enlarged 1, 1 + `step`, ... times."""
    zooms = np.arange(1, end, step)  # as published: rounding lets some of them reach `end`
    return (x + sum(_enlarge(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


def _enlarge(x: Float, zoom: float) -> Float:
    """The middle of (H, W, C), enlarged `zoom` times to (H, W, C), linearly."""
    for axis in (0, 1):
        n = x.shape[axis]
        kept = math.ceil(n / zoom)
        enlarged = max(round(kept * zoom), 2)  # trimmed to n; its ends lie on the ends of the kept
        at = (np.arange(n) + (enlarged - n) // 2) * (kept - 1) / (enlarged - 1) + (n - kept) // 2
        low = np.clip(at.astype(int), 0, max(n - 2, 0))
        part = (at - low).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        first, second = x.take(low, axis), x.take(np.minimum(low + 1, n - 1), axis)
        x = first + part * (second - first)
    return x


def snow(
    x: Float,
    random: Random,
    scale: float,
    mean: float,
    deviation: float,
    flake: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Float:
    """Whiten the image, and add flakes that fall, and the same ones turned by 180 degrees."""
    noise = random.normal(mean, deviation, x.shape[:2])
    flakes = _enlarge(noise[..., None], max(1, flake * scale))
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _streak(flakes, radius * scale, sigma * scale, random.uniform(-135, -45))
    white = np.maximum(x, 1.5 * (x @ LUMA)[..., None] + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes[::-1, ::-1]


def frost(x: Float, random: Random, scale: float, kept: float, ice: float) -> Float:
    """Add frost."""
    return kept * x + ice * frost_texture(x.shape[0], x.shape[1], random)


def frost_texture(height: int, width: int, random: Random) -> Float:
    """Frost on a window, (H, W, 3) in 0 .. 1: ferns of ice in front of mist.

    ImageNet-C adds crops of five photographs, which are not ours to give. This draws instead; mean
    level, contrast and tint vary from image to image as they do among those photographs (levels
    123 .. 207 of 255, deviations 19 .. 43). Scores under frost do not compare with ImageNet-C's.
    """
    side = min(height, width)
    spine = np.linspace(0, 1, max(8, side // 3))
    forks, lengths = np.sort(random.random((1, 60))), random.uniform(0.05, 0.3, (2, 60))
    barb = np.linspace(0, 1, max(8, side // 14))[:, None, None]
    barbs = lengths * (1 - forks) * barb * np.exp([[1j * math.pi / 3], [-1j * math.pi / 3]])
    fern = np.concatenate([spine, (forks + barbs).ravel()])
    count = math.ceil(200 * height * width / side**2)
    roots = random.uniform(0, width, count) + 1j * random.uniform(0, height, count)
    reach = side * random.uniform(0.05, 0.4, count)
    bend = 1 + random.uniform(-0.3, 0.3, (count, 1)) * 1j * fern  # each curves to one side
    turn = reach * np.exp(2j * math.pi * random.random(count))
    points = (roots[:, None] + turn[:, None] * bend * fern).ravel()
    light = np.repeat(reach * random.random(count) ** 2, fern.size)
    row, column = np.floor(points.imag).astype(int), np.floor(points.real).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    cells = (row * width + column)[inside]
    ferns = np.bincount(cells, light[inside], height * width).reshape(height, width)
    ferns = ndimage.gaussian_filter(ferns, 0.4 * side / REFERENCE_SIDE)
    ferns = 1 - np.exp(-ferns / max(2 * ferns.mean(), 1e-9))
    area = max(2, 1 << (max(height, width) - 1).bit_length())
    mist = plasma_fractal(area, 2.0, random)[:height, :width]
    texture = ferns * (0.5 + mist) + mist
    texture = (texture - texture.mean()) / max(texture.std(), 1e-9)
    level, contrast = random.uniform(0.48, 0.81), random.uniform(0.07, 0.14)
    tint = random.uniform(0.02, 0.08) * np.array([-1, 0.1, 0.9])
    return np.clip((level + contrast * texture)[..., None] + tint, 0, 1)


def elastic_transform(
    x: Float, random: Random, scale: float, push: float, sigma: float, shear: float
) -> Float:
    """Move three points at random and the image with them, then every pixel by smoothed noise.

    Labels are not moved along: a score under it counts some displacement as error.
    """
    height, width = x.shape[:2]
    centre, arm = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + random.uniform(-shear * scale, shear * scale, (3, 2))
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    down, across = np.indices((height, width), dtype=np.float64)
    source = np.stack([across, down, np.ones_like(down)], -1) @ affine
    x = _sample(x, source[..., 1], source[..., 0], "mirror")
    # Smoothing over `scale` times as many pixels divides the noise by `scale`: hence its square.
    dx, dy = (
        push * scale**2 * _smooth(random.uniform(-1, 1, (height, width)), sigma * scale)
        for _ in range(2)
    )
    return _sample(x, down + dy, across + dx, "reflect")


def _sample(x: Float, row: Float, column: Float, mode: str) -> Float:
    planes = [
        ndimage.map_coordinates(plane, (row, column), order=1, mode=mode)
        for plane in x.transpose(2, 0, 1)
    ]
    return np.stack(planes, -1)


def _smooth(x: Float, sigma: float) -> Float:
    """Gaussian filter of (H, W), cut off at 3 sigma, the image mirrored at its edges for ever: a
    product of cosine transforms, fast for every sigma."""
    radius = int(3 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    response: list[NDArray[np.float64]] = [
        np.cos(np.outer(np.arange(n) * np.pi / n, offsets)) @ kernel for n in x.shape
    ]
    return scipy.fft.idctn(scipy.fft.dctn(x) * np.outer(*response))


def rain(
    x: Float,
    random: Random,
    scale: float,
    density: float,
    length: float,
    width: float,
    weight: float,
    kept: float,
) -> Float:
    """Thin, bright streaks that all fall in one direction, within 25 degrees of the vertical, in
    front of a scene that has lost contrast."""
    drops = random.random(x.shape[:2]) < density / 1000 / scale**2
    light = drops * random.uniform(0.3, 1, x.shape[:2])
    sigma, thickness = max(length * scale / 2, 0.5), max(width * scale, 0.4)
    streaks = ndimage.gaussian_filter(light, thickness)[..., None]
    streaks = _streak(streaks, length * scale, sigma, random.uniform(-115, -65))
    streaks *= math.pi * thickness * sigma  # a lone streak is as bright as its drop was
    mean = x.mean(axis=(0, 1))
    grey = mean + kept * (x - mean)
    return grey + weight * np.clip(streaks, 0, 1) * np.maximum(0.9 - grey, 0)


def dirt(
    x: Float,
    random: Random,
    scale: float,
    count: float,
    radius: float,
    sigma: float,
    darkness: float,
) -> Float:
    """Spots on the lens, each of a few drops that ran together: what is behind them is blurred and
    darkened, the more so the nearer to their middle."""
    height, width = x.shape[:2]
    spots = math.ceil(count * height * width / (REFERENCE_SIDE * scale) ** 2)
    centres = random.uniform(0, (height, width), (spots, 1, 2))
    sizes = random.uniform(0.5, 1, (spots, 1, 1)) * radius * scale
    drops = (centres + sizes * random.normal(0, 1, (spots, 8, 2))).reshape(-1, 2)
    row, column = np.floor(drops).astype(int).T
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    cells = np.bincount((row * width + column)[inside], minlength=height * width).astype(float)
    spread = radius * scale / 2
    thickness = 2 * math.pi * spread**2 * _smooth(cells.reshape(height, width), spread)
    cover = np.clip((thickness - 0.2) / 2, 0, 1)[..., None]
    behind = ndimage.gaussian_filter(x, (sigma * scale, sigma * scale, 0))
    return x + cover * ((1 - darkness) * behind + darkness * np.array(_MUD) - x)


def low_resolution(x: Float, random: Random, scale: float, part: float) -> Float:
    """Shrink to `part` of the side and enlarge again, both bicubic."""
    height, width = x.shape[:2]
    return _resized(_resized(_pixels(x), part * height, part * width), height, width) / 255


def reupload(x: Float, random: Random, scale: float, part: float, first: int, second: int) -> Float:
    """What two sites in a row do to an upload: shrink to `part` of the side, JPEG of quality
    `first`, enlarge, JPEG of quality `second`."""
    height, width = x.shape[:2]
    small = jpeg(_resized(_pixels(x), part * height, part * width), first)
    return jpeg(_resized(small, height, width), second) / 255


def _pixels(x: Float) -> Pixels:
    return np.rint(x * 255).astype(np.uint8)


def _resized(image: Pixels, height: float, width: float) -> Pixels:
    size = max(1, round(width)), max(1, round(height))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


DISTORTIONS: dict[str, Callable[..., Float]] = {
    function.__name__: function
    for function in (
        *(shot_noise, impulse_noise, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, elastic_transform),
        *(rain, dirt, low_resolution, reupload),
    )
}

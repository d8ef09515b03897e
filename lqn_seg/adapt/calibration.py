"""Calibrate a teacher on clean, unlabelled images, and keep what was found in a file."""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lqn_seg.adapt.controls import pixel_statistics
from lqn_seg.adapt.denoise import noise_deviation, remove_noise
from lqn_seg.adapt.familiarity import NEAR, Familiarity
from lqn_seg.adapt.noise import residual
from lqn_seg.adapt.style import LOOKS, augment, fit_style, quantiles
from lqn_seg.core.alignment import UNDAMAGED, Calibration, LayerRange, Style, total_deviation
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Teacher, normalise
from lqn_seg.teachers.files import checkpoint_hash, weight_file

FILE_NAME = "calibration.safetensors"
CHECKPOINT = "checkpoint"  # in a file: `checkpoint_hash` of the teacher that it was made for
PRECISION = "precision"  # and the teacher's: rounding moves the weakest directions
QUANTILE = 0.02
PASSES = 3  # over the images
DIRECTIONS = 160  # of a layer's tokens that are aligned, the strongest; the rest stay as they are
_READINGS = ("undamaged", "residual")
_LATER = ("distance", "noise")  # readings that older files do not have
_FIELDS = ("centre", "basis", "mean", "deviation", "gain")
Batches = Callable[[], Iterable[Tensor]]


@torch.no_grad()
def calibrate(teacher: Teacher[Any], batches: Batches, quantile: float = QUANTILE) -> Calibration:
    """Find a teacher's clean ranges, and their style, in `PASSES` passes over clean images.

    Args:
        batches: gives (B, 3, h, w) teacher inputs in 0..1, the same ones at every call, of
            which there are `PASSES`.
        quantile: share of the images left out at either end of each range.

    Raises:
        InputError: fewer than two images.
    """
    blank = torch.zeros(1, 3, *teacher.image_size, device=teacher.device)  # the mean colour
    depths = calibrated_layers(teacher.num_layers, teacher.num_query_layers)
    builders = {layer: RangeBuilder() for layer in depths}
    builders[0] = RangeBuilder(teacher.embed(blank)[0])
    pixels, deviations = [], []
    for crops in batches():
        pixels.append(pixel_statistics(crops).cpu())
        deviations.append(noise_deviation(crops.to(teacher.device)).cpu())
        look(teacher, crops, lambda layer, tokens: builders[layer].observe(tokens), depths[-1])
    noise = quantiles(torch.cat(deviations), (UNDAMAGED,)).item() if deviations else math.inf
    for crops in batches():
        for k in range(1 + LOOKS):

            def measure(layer: int, tokens: Tensor, k: int = k) -> None:
                builders[layer].measure(tokens, k)

            seen = remove_noise(augment(crops, k - 1).to(teacher.device), noise) if k else crops
            look(teacher, seen, measure, depths[-1])
    layers = {layer: builder.finish(quantile) for layer, builder in builders.items()}
    ranges = Calibration(layers, 0.0, 0.0, torch.cat(pixels).mean(0)).to(teacher.device)
    damage, residuals, distances = [], [], []
    for crops in batches():
        aligner = Familiarity(ranges)
        residuals.append(residual(_run(teacher, crops, aligner)))
        damage.append(aligner.damage)
        distances.append(aligner.distance(teacher.grid))
    return replace(
        ranges,
        undamaged=quantiles(torch.cat(damage), (UNDAMAGED,)).item(),
        residual=torch.cat(residuals).median().item(),
        distance=quantiles(torch.cat(distances), (NEAR,)).item(),
        noise=noise,
    )


class _Enough(Exception):
    """The last layer that is asked for was seen."""


@torch.no_grad()
def look(
    teacher: Teacher[Any], crops: Tensor, visit: Callable[[int, Tensor], None], last: int
) -> None:
    """Show (B, H, W, D) tokens of (B, 3, h, w) inputs in 0..1 at layers 0 to ``last``; the teacher
    runs no further."""

    def hook(layer: int, tokens: Tensor) -> Tensor:
        visit(layer, tokens)
        if layer == last:
            raise _Enough
        return tokens

    with suppress(_Enough):
        _run(teacher, crops, hook)


def _run(teacher: Teacher[Any], crops: Tensor, hook: Callable[[int, Tensor], Tensor]) -> Tensor:
    crops = normalise(crops.to(teacher.device), teacher.pixel_mean, teacher.pixel_std)
    return teacher.encode(crops, hook)[0]


def save_calibration(path: Path, calibration: Calibration, about: Mapping[str, Any]) -> None:
    """Write a calibration as safetensors; `about` says how it was made."""
    tensors = {
        f"layer{layer}.{name}": getattr(clean, name).contiguous().cpu()
        for layer, clean in calibration.layers.items()
        for name in _FIELDS
    }
    for layer, clean in calibration.layers.items():
        if clean.style is not None:
            parts = {f"layer{layer}.style.{k}": x for k, x in vars(clean.style).items()}
            tensors |= {name: x.contiguous().cpu() for name, x in parts.items()}
    tensors["pixels"] = calibration.pixels.contiguous().cpu()
    readings = {key: getattr(calibration, key) for key in _READINGS}
    later = {key: getattr(calibration, key) for key in _LATER}
    readings |= {key: value for key, value in later.items() if math.isfinite(value)}
    save_file(tensors, path, {"calibration": json.dumps({**about, **readings})})


def load_calibration(
    path: str | Path, teacher: Teacher[Any], weights: str | Path = ""
) -> Calibration:
    """Read a calibration for a teacher; a warning where the file says that it was made for another
    checkpoint than ``weights``, the teacher's file or folder, or for another precision.

    Raises:
        InputError: the file is missing, is no calibration, or is one of another teacher's shape.
    """
    if not Path(path).is_file():
        raise InputError(f"MODEL.LQN.CALIBRATION: there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["calibration"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        numbers = sorted({int(key[5:].split(".")[0]) for key in tensors if key != "pixels"})
        layers = {
            number: LayerRange(
                **{name: tensors[f"layer{number}.{name}"] for name in _FIELDS},
                style=_style_of(number, tensors),
            )
            for number in numbers
        }
        readings = {key: float(about[key]) for key in _READINGS}
        readings |= {key: float(about.get(key, math.inf)) for key in _LATER}
        pixels = tensors["pixels"]
        if tuple(pixels.shape) == (2, 2):  # older files: the range of all channels together
            pixels = pixels.mean(0)[:, None].expand(2, 3)
        calibration = Calibration(layers, pixels=pixels, **readings)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise InputError(f"MODEL.LQN.CALIBRATION: {path} is no calibration ({error})") from error
    shape, width = (*teacher.grid, teacher.width), teacher.width
    fits = [
        0 <= layer <= teacher.num_layers
        and tuple(clean.centre.shape) == shape
        and clean.basis.shape[:-1] == (width,)
        and clean.mean.shape == clean.deviation.shape == (2, clean.basis.shape[1])
        for layer, clean in layers.items()
    ]
    if not fits or not all(fits):
        raise InputError(
            f"MODEL.LQN.CALIBRATION: {path} was made for a teacher of another shape than "
            f"{'x'.join(map(str, shape))}"
        )
    _warn_of_other_weights(path, about.get(CHECKPOINT, ""), weights)
    made_in = about.get(PRECISION, teacher.precision)
    if made_in != teacher.precision:
        warnings.warn(
            f"MODEL.LQN.CALIBRATION: {path} was made in {made_in}, and the teacher runs in "
            f"{teacher.precision}: calibrate it anew (lqn-seg calibrate), or set "
            f"MODEL.LQN.TEACHER.PRECISION {made_in}",
            stacklevel=2,
        )
    return calibration.to(teacher.device)


def _style_of(layer: int, tensors: Mapping[str, Tensor]) -> Style | None:
    """The style of a layer, which files from before there was one do not have."""
    start = f"layer{layer}.style."
    parts = {k.removeprefix(start): x for k, x in tensors.items() if k.startswith(start)}
    return Style(**parts) if parts else None


def _warn_of_other_weights(path: str | Path, made_for: str, weights: str | Path) -> None:
    """Nothing is said of older files, which do not know theirs, of the hub's weights and of random
    ones."""
    found = checkpoint_hash(weights) if made_for else ""
    if found and found != made_for:
        warnings.warn(
            f"MODEL.LQN.CALIBRATION: {path} was made for weights of SHA-256 {made_for}..., and "
            f"those of {weight_file(weights)} are {found}...: calibrate this teacher anew "
            "(lqn-seg calibrate)",
            stacklevel=3,
        )


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
        # (B, 2 R) means and log deviations, of the images (0) and of every look at them.
        self._statistics: defaultdict[int, list[Tensor]] = defaultdict(list)
        self._range: LayerRange | None = None

    def observe(self, tokens: Tensor) -> None:
        """First pass: (B, H, W, D) tokens of clean images."""
        tokens = tokens.cpu().double()
        self._count += len(tokens)
        self._sum = self._sum + tokens.sum(0)
        flat = tokens.flatten(0, 2)
        self._outer = self._outer + flat.T @ flat

    def measure(self, tokens: Tensor, look: int = 0) -> None:
        """Second pass: the same tokens again, or with a number above 0 those of the same images
        augmented."""
        if self._range is None:
            self._range = self._directions()
        statistics = torch.cat(self._range.components(tokens.cpu())[1:], 1)
        self._statistics[look].append(statistics)

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
        basis = torch.linalg.eigh(second - offset.outer(offset)).eigenvectors
        basis = basis[:, -DIRECTIONS:].float().contiguous()
        empty = torch.zeros(2, basis.shape[1])
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
        clean, *changed = (torch.cat(parts) for parts in self._statistics.values())
        mean, deviation = clean.chunk(2, 1)
        ends = (quantile, 1 - quantile)
        return LayerRange(
            self._range.centre,
            self._range.basis,
            quantiles(mean, ends),
            quantiles(deviation, ends),
            quantiles(total_deviation(deviation), ends).squeeze(1),
            fit_style(clean, torch.stack(changed)) if changed else None,
        )


def alarmed(calibration: Calibration) -> Calibration:
    """The same ranges, as if every image were nothing but damage: nothing is skipped."""
    return replace(calibration, undamaged=-math.inf, residual=0.0)


def calibrated_layers(depth: int, query_layers: int) -> Sequence[int]:
    """Layers to align at: the embedding and the first half, before the queries come in."""
    return range(min(depth // 2, depth - query_layers) + 1)

"""Numbers and names as people read them, the same in every table and sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES, PairedDifference

TITLES = {
    "teacher": "EoMT (teacher)",
    "apm": "APM",
    "lqn-src": "LQN-[src]",
    "lqn": "LQN",
    "restore": "restored, no student",
    "kernel": "kernel smoother",
    "ridge": "kernel ridge",
    "flip": "two views (flip)",
    "blur": "blurred pixels",
    "denoise": "denoised pixels",
    "standardise": "standardised pixels",
    "larger": "larger input",
    "untrained": "untrained student (0 steps)",
    "mask2former": "Mask2Former",
    "maskformer": "MaskFormer",
    "oneformer": "OneFormer",
}
UNDEFINED = "-"


def title(method: str) -> str:
    """A method's name as people write it: ``lqn@paper`` is "LQN, recipe: paper"."""
    label, is_comparator, _ = method.partition("=")
    if is_comparator:
        return TITLES.get(label, label)
    variant, _, recipe = method.partition("@")
    name = TITLES.get(variant, variant)
    return f"{name}, recipe: {recipe}" if recipe else name


def short_name(name: str) -> str:
    """A condition without its severity: "gaussian_noise-3" is "gaussian noise"."""
    return name.rsplit("-", 1)[0].replace("_", " ")


def number(value: float | None, form: str = ".1f") -> str:
    """A number in a format such as ".1f"; "-" where it is undefined. Zero has no sign.

    >>> number(-0.04), number(float("nan")), number(None), number(0.04, "+.1f"), number(-0.26)
    ('0.0', '-', '-', '0.0', '-0.3')
    """
    if value is None or value != value:
        return UNDEFINED
    text = format(value, form)
    return text.lstrip("+-") if float(text) == 0 else text


def table(rows: Iterable[Sequence[Any]], heads: Sequence[str], forms: str | Sequence[str]) -> str:
    """Rows of a label and numbers, aligned.

    Args:
        heads: of the columns, that of the labels first.
        forms: `number`'s, one for all columns of numbers or one each.
    """
    chosen = [forms] * (len(heads) - 1) if isinstance(forms, str) else forms
    texts = [
        [label, *(v if isinstance(v, str) else number(v, f) for v, f in zip(values, chosen))]
        for label, *values in rows
    ]
    sides = ("left", *["right"] * (len(heads) - 1)) if texts else None
    return tabulate(texts, heads, disable_numparse=True, colalign=sides)


def interval_text(difference: PairedDifference, images: int, unit: str = "") -> str:
    """ "+0.2 [-0.1, +0.5]"; of too few images, no interval.

    Args:
        images: that the difference was found on.
        unit: of the numbers: " PQ".
    """
    middle, low, high = (number(value, "+.1f") for value in difference)
    if images < FEWEST_IMAGES or middle == UNDEFINED:
        return f"{middle}{unit}"
    return f"{middle} [{low}, {high}]{unit}"


def interval_heading(images: int, how: str = "paired bootstrap over images") -> str:
    """What a table of `interval_text` says of its intervals."""
    if images < FEWEST_IMAGES:
        return f"without its 95% interval: {too_few(images)}"
    return f"with its 95% interval ({how})"


def counted(count: int, noun: str) -> str:
    """ "1 image", "2 images", "0 entries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def too_few(images: int) -> str:
    """Why there is no interval."""
    what = "1 image is" if images == 1 else f"{images} images are"
    return f"{what} too few for one ({FEWEST_IMAGES} are needed)"


def verdict(difference: PairedDifference) -> str:
    """Where the interval lies, in words; no more than its printed digits show."""
    if difference.low != difference.low:
        return "cannot be compared with"
    if round(difference.low, 1) > 0:
        return "is better than"
    return "is worse than" if round(difference.high, 1) < 0 else "cannot be told apart from"


def comparison(
    difference: PairedDifference, images: int, other: str, where: str, unit: str = ""
) -> str:
    """ "is better than its teacher on clean images (+0.2 [+0.1, +0.3] PQ)"; of too few images no
    judgement, but "differs from its teacher on clean images by +0.2 PQ"."""
    text = interval_text(difference, images, unit)
    if images < FEWEST_IMAGES:
        return f"differs from {other} {where} by {text}"
    return f"{verdict(difference)} {other} {where} ({text})"

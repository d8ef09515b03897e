"""Numbers and names as people read them, the same in every table and sentence."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES, PairedDifference

_BOTH = {"apm": "APM", "lqn-src": "LQN-[src]", "lqn": "LQN", "restore": "aligned, no student"}
TITLES = {
    **_BOTH,
    "teacher": "EoMT (teacher)",
    "kernel": "kernel smoother",
    "ridge": "kernel ridge",
    "field": "aligned, several views",
    "views": "two views",
    "flip": "flip averaged",
    "clahe": "CLAHE",
    "bilateral": "joint bilateral upsampling",
    "blur": "blurred pixels",
    "denoise": "denoised pixels",
    "standardise": "standardised pixels",
    "larger": "larger input",
    "dehaze": "dehazed pixels",
    "multiscale": "multi-scale, flip",
    "tent": "TENT",
    "sar": "SAR",
    "memo": "MEMO",
    "cotta": "CoTTA",
    "sitta": "SITTA",
    "mlmp": "MLMP",
    "neo": "NEO",
    "adain": "AdaIN",
    "untrained": "untrained student (0 steps)",
    "mask2former": "Mask2Former",
    "maskformer": "MaskFormer",
    "oneformer": "OneFormer",
}
CLASSIFICATION_TITLES = {
    **_BOTH,
    "zero-shot": "zero-shot, one prompt",
    "ensemble": "zero-shot, 80 prompts",
    "teacher": "views, not restored",
    "zero": "ZERO",
    "vte": "VTE",
    "mta": "MTA",
    "tps": "TPS",
    "gs-bias": "GS-Bias",
    "tpt": "TPT",
    "tda": "TDA (history)",
}
UNDEFINED = "-"
WIDTH = 100  # columns of a console


def title(method: str, titles: Mapping[str, str] = TITLES) -> str:
    """A method's name as people write it.

    >>> title("lqn@paper:mean"), title("mask2former=a/folder"), title("tent(steps=3)")
    ('LQN, recipe: paper, pooling: mean', 'Mask2Former', 'TENT (steps=3)')
    """
    before, has_settings, settings = method.partition("(")
    label, is_other_model, _ = before.partition("=")
    if is_other_model:
        return titles.get(label, label)
    if has_settings:
        return f"{titles.get(before, before)} ({settings}"
    rest, _, query = method.partition(":")
    variant, _, recipe = rest.partition("@")
    name = titles.get(variant, variant) + (f", recipe: {recipe}" if recipe else "")
    return name + (f", pooling: {query}" if query else "")


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


def table(
    rows: Iterable[Sequence[Any]],
    heads: Sequence[str],
    forms: str | Sequence[str] = ".1f",
    labels: str = "left",
    style: str = "simple",
) -> str:
    """Rows of a label and of numbers or texts, aligned; `forms` are those of `number`. Columns that
    do not fit into `WIDTH` go into further tables below."""
    by_column = [forms] * (len(heads) - 1) if isinstance(forms, str) else forms
    texts = [
        [label, *(v if isinstance(v, str) else number(v, f) for v, f in zip(values, by_column))]
        for label, *values in rows
    ]

    def drawn(columns: Sequence[int]) -> str:
        sides = (labels, *["right"] * (len(columns) - 1)) if texts else None
        cells, names = [[row[k] for k in columns] for row in texts], [heads[k] for k in columns]
        return tabulate(cells, names, tablefmt=style, disable_numparse=True, colalign=sides)

    blocks: list[str] = []
    left = list(range(1, len(heads)))
    while left or not blocks:
        fitting = len(left)
        while fitting > 1 and _width(drawn([0, *left[:fitting]])) > WIDTH:
            fitting -= 1
        blocks.append(drawn([0, *left[:fitting]]))
        left = left[fitting:]
    return "\n\n".join(blocks)


def _width(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def wrapped(text: str) -> str:
    """Prose in lines of at most `WIDTH` columns."""
    lines = text.splitlines()
    return "\n".join(textwrap.fill(x, WIDTH, break_on_hyphens=False) for x in lines)


def interval_text(difference: PairedDifference, images: int, unit: str = "") -> str:
    """ "+0.2 [-0.1, +0.5]" and a unit such as " PQ"; of too few images, no interval."""
    middle, low, high = (number(value, "+.1f") for value in difference)
    if images < FEWEST_IMAGES or middle == UNDEFINED:
        return f"{middle}{unit}"
    return f"{middle} [{low}, {high}]{unit}"


def difference_table(
    differences: Mapping[str, Mapping[str, PairedDifference]],
    images: int,
    short: Callable[[str], str],
    name: Callable[[str], str] = title,
    methods_down: bool = True,
    style: str = "simple",
) -> str:
    """A row per method and a column per group, or the other way round."""
    groups = list(next(iter(differences.values())))
    labels, heads = [name(m) for m in differences], [short(g) for g in groups]
    cells = [[interval_text(d[g], images) for g in groups] for d in differences.values()]
    if not methods_down:
        labels, heads, cells = heads, labels, [list(column) for column in zip(*cells)]
    rows = [[label, *texts] for label, texts in zip(labels, cells)]
    return table(rows, ["", *heads], labels="right", style=style)


def p_text(p: float | None, smallest: float) -> str:
    """A p-value to three digits; "< 0.024" where no resample was on the other side of 0, which is
    `smallest`, and likewise where a correction multiplied it.

    >>> p_text(0.0316, 0.002), p_text(0.002, 0.002), p_text(1.0, 0.002), p_text(None, 0.002)
    ('0.032', '< 0.002', '1.000', '-')
    """
    if p is None or p != p:
        return UNDEFINED
    if p <= smallest * (1 + 1e-9):
        return f"< {math.ceil(round(1e6 * p) / 1e3) / 1e3:.3f}"
    return f"{p:.3f}"


def rank_text(rank: float, low: float, high: float, images: int) -> str:
    """ "2 [1, 4]"; of too few images without the interval.

    >>> rank_text(2, 1, 4, 60), rank_text(2.5, 1, 4, 5)
    ('2 [1, 4]', '2.5')
    """
    if rank is None or rank != rank:
        return UNDEFINED
    return f"{rank:g}" if images < FEWEST_IMAGES else f"{rank:g} [{low:g}, {high:g}]"


def interval_heading(images: int) -> str:
    """What a table of `interval_text` says of its intervals."""
    if images < FEWEST_IMAGES:
        return f"without its 95% interval: {_too_few(images)}"
    return "with its 95% interval (paired bootstrap over images)"


def counted(count: int, noun: str) -> str:
    """ "1 image", "2 images", "0 entries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def no_interval(images: int) -> str:
    """The end of a sentence: why there is no interval, where there is none."""
    return f"; no interval: {_too_few(images)}" if images < FEWEST_IMAGES else ""


def _too_few(images: int) -> str:
    what = "1 image is" if images == 1 else f"{images} images are"
    return f"{what} too few for one ({FEWEST_IMAGES} are needed)"


def comparison(
    difference: PairedDifference,
    images: int,
    other: str,
    where: str,
    unit: str = "",
    lower_is_better: bool = False,
) -> str:
    """ "is better than its teacher on clean images (+0.2 [+0.1, +0.3] PQ)", as far as the printed
    digits show; of too few images "differs from its teacher on clean images by +0.2 PQ"."""
    text = interval_text(difference, images, unit)
    if images < FEWEST_IMAGES:
        return f"differs from {other} {where} by {text}"
    verdict = "cannot be told apart from"
    if difference.low != difference.low:
        verdict = "cannot be compared with"
    elif round(difference.low, 1) > 0:
        verdict = "is worse than" if lower_is_better else "is better than"
    elif round(difference.high, 1) < 0:
        verdict = "is better than" if lower_is_better else "is worse than"
    return f"{verdict} {other} {where} ({text})"


def verdict_on(
    method: str,
    images: int,
    clean: PairedDifference,
    corrupted: tuple[int, PairedDifference] | None,
    unit: str,
    factor: float,
    other: str = "its teacher",
    units: int = 0,
    lower_is_better: bool = False,
) -> str:
    """A sentence on a method against another: on clean images, on the mean of so many corruptions,
    and its multiply-adds as a factor; intervals are of `units`, by default the images."""
    units = units or images
    these = "this one image" if images == 1 else f"these {images} images"
    how = unit, lower_is_better
    text = f"On {these} {method} {comparison(clean, units, other, 'on clean images', *how)}"
    if corrupted:
        count, difference = corrupted
        where = f"on the mean of {counted(count, 'corruption')}"
        text += f" and {comparison(difference, units, 'it', where, *how)}"
    whose = "the teacher" if other == "its teacher" else other
    cost = f", at {number(factor)} times {whose}'s multiply-adds" if factor == factor else ""
    return f"{text}{cost}{no_interval(units)}."

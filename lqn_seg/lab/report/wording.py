"""Numbers and names as people read them, the same in every table and sentence."""

from __future__ import annotations

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
    "mta": "MTA",
    "tps": "TPS",
    "gs-bias": "GS-Bias",
    "tpt": "TPT",
    "tda": "TDA (history)",
}
UNDEFINED = "-"


def title(method: str, titles: Mapping[str, str] = TITLES) -> str:
    """A method's name as people write it.

    >>> title("lqn@paper:mean"), title("mask2former=a/folder")
    ('LQN, recipe: paper, pooling: mean', 'Mask2Former')
    """
    label, is_other_model, _ = method.partition("=")
    if is_other_model:
        return titles.get(label, label)
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
    """Rows of a label and of numbers or texts, aligned; `forms` are those of `number`."""
    by_column = [forms] * (len(heads) - 1) if isinstance(forms, str) else forms
    texts = [
        [label, *(v if isinstance(v, str) else number(v, f) for v, f in zip(values, by_column))]
        for label, *values in rows
    ]
    sides = (labels, *["right"] * (len(heads) - 1)) if texts else None
    return tabulate(texts, heads, tablefmt=style, disable_numparse=True, colalign=sides)


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
    titles: Mapping[str, str] = TITLES,
    methods_down: bool = True,
    style: str = "simple",
) -> str:
    """A row per method and a column per group, or the other way round."""
    groups = list(next(iter(differences.values())))
    labels, heads = [title(m, titles) for m in differences], [short(g) for g in groups]
    cells = [[interval_text(d[g], images) for g in groups] for d in differences.values()]
    if not methods_down:
        labels, heads, cells = heads, labels, [list(column) for column in zip(*cells)]
    rows = [[label, *texts] for label, texts in zip(labels, cells)]
    return table(rows, ["", *heads], labels="right", style=style)


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
    difference: PairedDifference, images: int, other: str, where: str, unit: str = ""
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
        verdict = "is better than"
    elif round(difference.high, 1) < 0:
        verdict = "is worse than"
    return f"{verdict} {other} {where} ({text})"

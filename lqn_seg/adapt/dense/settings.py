"""Test-time methods for dense prediction by name, with their settings. Needs no torch.

A setting stands in brackets behind the name: ``tent(steps=3,learning_rate=1e-3)``. Defaults are the
published ones where the paper has them for a single image or a ViT; each method's file says which
are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Scales = tuple[Annotated[float, Meta(gt=0)], ...]


@dataclass(frozen=True)
class DenseMethod:
    """A method's settings; a sub-class for each."""


@dataclass(frozen=True)
class Learning(DenseMethod):
    """Attributes:
    continual: whether what was learnt from an image stays for the next one of its condition.
        Answers then depend on the order of the images. By default every image starts afresh.
    """

    steps: Amount = 10
    learning_rate: Rate = 1e-3
    continual: bool = False


@dataclass(frozen=True)
class Tent(Learning):
    """Attributes:
    steps, learning_rate: of Adam.
    """


@dataclass(frozen=True)
class Sar(Learning):
    """Attributes:
    steps, learning_rate: of SGD with momentum.
    margin: pixels of an entropy below this share of log C count.
    radius: rho of sharpness-aware minimisation.
    frozen: share of the last layers whose norms stay.
    """

    margin: Share = 0.4
    radius: Rate = 0.05
    frozen: Share = 0.25


@dataclass(frozen=True)
class Memo(Learning):
    """Attributes:
    steps, learning_rate: of AdamW.
    copies: augmented copies of the image.
    """

    steps: Amount = 1
    learning_rate: Rate = 1e-5
    copies: Count = 8


@dataclass(frozen=True)
class Cotta(Learning):
    """Attributes:
    steps, learning_rate: of Adam.
    scales: of the input's side, at each of which the averaged teacher looks at the image and at
        its mirror image.
    confidence: least probability of the source's answer at a pixel that needs no other scale.
    momentum: of the averaged teacher.
    restored: share of the weights that return to the source's after each step.
    """

    steps: Amount = 1
    learning_rate: Rate = 7.5e-6
    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    confidence: Share = 0.69
    momentum: Share = 0.999
    restored: Share = 0.01


@dataclass(frozen=True)
class Sitta(Learning):
    """Attributes:
    steps, learning_rate: of SGD with momentum.
    """

    steps: Amount = 8
    learning_rate: Rate = 5e-5


@dataclass(frozen=True)
class Mlmp(Learning):
    """Attributes:
    steps, learning_rate: of Adam.
    layers: share of the last layers whose tokens are joined.
    """

    layers: Share = 0.75


@dataclass(frozen=True)
class Neo(DenseMethod):
    """Attributes:
    share: of the image's difference to clean images that is removed.
    """

    share: Share = 1.0


@dataclass(frozen=True)
class AdaIn(DenseMethod):
    """Attributes:
    layers: share of the layers, from the first, whose statistics are replaced.
    """

    layers: Share = 0.25


@dataclass(frozen=True)
class MultiScale(DenseMethod):
    """Attributes:
    scales: of the input's side.
    flip: whether images are mirrored too, at each scale.
    """

    scales: Scales = (0.75, 1.0, 1.25)
    flip: bool = True


@dataclass(frozen=True)
class Larger(MultiScale):
    """A larger input alone, as a control of what a second pass can gain."""

    scales: Scales = (1.25,)
    flip: bool = False


DENSE: Mapping[str, type[DenseMethod]] = {
    "tent": Tent,
    "sar": Sar,
    "memo": Memo,
    "cotta": Cotta,
    "sitta": Sitta,
    "mlmp": Mlmp,
    "neo": Neo,
    "adain": AdaIn,
    "multiscale": MultiScale,
    "larger": Larger,
}

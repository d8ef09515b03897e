"""Segmentation's settings, and its methods by what they are. Needs no torch until one runs."""

from __future__ import annotations

import inspect
import re
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lqn_seg.adapt.dense.settings import DenseMethod
from lqn_seg.core.config import LQNConfig
from lqn_seg.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from lqn_seg.teachers.base import Teacher

# (teacher, normalised images (B, 3, h, w), their token field (B, L, H, W, D)) -> (B, H, W, D).
Answer = Callable[["Teacher[Any]", "Tensor", "Tensor"], "Tensor"]
PIXEL_CONTROLS = ("blur", "denoise", "standardise", "clahe", "dehaze", "flip", "bilateral")
# The paper's ablations, and ours, that gained nothing (docs/results): runnable all the same
# (`ablations.py`). Some end in numbers: views-8, source-2-5-8.
ABLATIONS = {
    **dict.fromkeys(("none", "entropy", "segments", "random-source", "added-positions"), 0),
    **dict.fromkeys(("fit-per-image", "student-queries", "cls-in-field"), 0),
    "views": 1,
    "source": 3,
}


def parse_ablation(name: str) -> tuple[str, tuple[int, ...]]:
    """The word and the numbers of an ablation.

    Raises:
        InputError: there is no such one, or it has the wrong numbers.
    """
    word, *numbers = re.split(r"-(?=\d)", name)
    nearest(word, tuple(ABLATIONS), "ablation in MODEL.LQN.ABLATION")
    valid = len(numbers) == ABLATIONS[word] and all(map(str.isdecimal, numbers))
    if not valid or name == "views-0":
        raise InputError(f"MODEL.LQN.ABLATION is like views-8, source-2-5-8, entropy, not {name}")
    return word, tuple(map(int, numbers))


@dataclass(frozen=True)
class SegmentationConfig:
    """What is predicted, and how an image meets the teacher.

    Attributes:
        semantic, instances, panoptic: which outputs are made.
        inference: ``pad`` fits the image into one window, ``windows`` slides one along its long
            side (EoMT's protocol for semantic segmentation, the only output it can make).
        object_mask_threshold, overlap_threshold: of the panoptic output.
        top_k: instances kept per image.
        temperature: of the confidence alone; above 1 lowers it. No answer depends on it.
        seed: of every random number, with the CRC32 of the image's pixels and the window.
        batch: students fitted side by side. Changing it changes results within float rounding.
        threads: CPU threads, likewise; set for each call, and given back after it.
    """

    semantic: bool = True
    instances: bool = False
    panoptic: bool = True
    inference: Literal["pad", "windows"] = "pad"
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    top_k: int = 100
    temperature: float = 1.0
    seed: int = 0
    batch: int = 1
    threads: int = field(default=1, repr=False)  # a run's fingerprint has it by its own name

    def __post_init__(self) -> None:
        if self.inference not in ("pad", "windows"):
            raise InputError(f"INFERENCE must be pad or windows, not {self.inference!r}")
        if self.inference == "windows" and (self.instances or self.panoptic):
            raise InputError("INFERENCE windows makes semantic output only; panoptic needs pad")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"TEMPERATURE must be positive, not {self.temperature}")
        if self.batch < 1:
            raise InputError(f"BATCH must be at least 1, not {self.batch}")


@dataclass(frozen=True)
class PixelControl:
    """The teacher on other pixels.

    Attributes:
        name: "blur" (Gaussian) or "denoise" (non-local means), where the image looks
            damaged; "standardise" (each channel to the clean images' average), "clahe" (histogram
            equalisation of the lightness by tiles), "dehaze" (by the dark channel), "flip"
            (last-layer tokens averaged over the image and its mirror image, a second pass) or
            "bilateral" (what the head says is enlarged along the image's edges:
            `segmentation.bilateral`), always.
    """

    name: str

    @property
    def only_damaged(self) -> bool:
        """Whether only images that look damaged are changed."""
        return self.name in ("blur", "denoise")

    @property
    def calibrated(self) -> bool:
        """Whether it needs a calibration, without which it changes nothing."""
        return self.only_damaged or self.name == "standardise"


@dataclass(frozen=True)
class BaselineModel:
    """A method that is another model: ``label=weights``, a directory or hub id of transformers'."""

    label: str
    weights: str

    @classmethod
    def parse(cls, name: str) -> BaselineModel:
        """From a method's name.

        Raises:
            InputError: the label or the weights are missing.
        """
        label, _, weights = name.partition("=")
        if not label or not weights:
            raise InputError(
                f"MODEL.LQN.METHODS: {name!r} must be a label, =, and a directory or hub id, such "
                "as mask2former=facebook/mask2former-swin-large-ade-semantic"
            )
        return cls(label, weights)


@dataclass(frozen=True)
class TokenMethod:
    """A method that is a function, as `lqn_seg.config.nodes.register_method` makes it known.

    Attributes:
        name: in configurations and tables.
        answer: called without gradients; `torch.enable_grad` gives them back. An image's answer
            must not depend on the others beside it.
        version: says what the source does not: the state of an object, the values of a closure.
        code: digest of the source, the defaults and the version, so that a run does not go on with
            another method's results; what the source calls is not in it.

    Raises:
        InputError: the version is missing where the source does not say it all.
    """

    name: str
    answer: Answer = field(repr=False)
    version: str = ""
    code: str = field(init=False)

    def __post_init__(self) -> None:
        source, unsaid = _source(self.answer)
        if unsaid and not self.version:
            raise InputError(
                f"method {self.name} is {unsaid}, so its source does not tell two of them apart: "
                "give register_method a version, and another one whenever the method changes"
            )
        content = repr((source, self.version)).encode()
        object.__setattr__(self, "code", f"{zlib.crc32(content):08x}")

    def __call__(self, teacher: Teacher[Any], images: Tensor, tokens: Tensor) -> Tensor:
        """`answer`, checked.

        Raises:
            InputError: the answer is not (B, H, W, D).
        """
        import torch

        answered = self.answer(teacher, images, tokens)
        wanted = tuple(tokens[:, -1].shape)
        if not isinstance(answered, torch.Tensor) or tuple(answered.shape) != wanted:
            got = (
                tuple(answered.shape)
                if isinstance(answered, torch.Tensor)
                else type(answered).__name__
            )
            raise InputError(f"method {self.name} must answer with tokens {wanted}, not {got}")
        return answered.to(tokens)


# None is the teacher itself.
Method = LQNConfig | PixelControl | DenseMethod | BaselineModel | TokenMethod | None


def _source(answer: Any) -> tuple[str, str]:
    """What is written of a callable, and why that is not all of it; empty where it is."""
    is_function = inspect.isfunction(answer)
    try:
        if is_function and answer.__code__.co_filename == "<string>":
            raise OSError  # of `eval`; Python 3.13 may find another text of that name
        source = textwrap.dedent(inspect.getsource(answer if is_function else type(answer)))
    except (OSError, TypeError):
        if inspect.isroutine(answer):
            return "", "a callable without a source file"
        source = ""  # of a class written in C: `partial`'s is in some Pythons, and not in others
    if not is_function:
        return source, f"an object ({type(answer).__name__})"
    if answer.__closure__:
        return source, "a function with a closure"
    defaults = (answer.__defaults__, answer.__kwdefaults__)
    if not _is_plain(defaults):
        return source, "a function with defaults that are no numbers or words"
    # A name may stand for a default's value in the source.
    return f"{source}{defaults}", ""


def _is_plain(value: Any) -> bool:
    """Whether `repr` tells a value, and the same in every process: a set's order is its own."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return _is_plain([*value.items()])
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)

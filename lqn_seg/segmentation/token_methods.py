"""Test-time methods of one's own: what gives the last layer's tokens in the teacher's place."""

from __future__ import annotations

import inspect
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Teacher

# (teacher, normalised images (B, 3, h, w), their token field (B, L, H, W, D)) -> (B, H, W, D).
Answer = Callable[[Teacher[Any], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TokenMethod:
    """A method that is a function, as `lqn_seg.engine.config.register_method` makes it known.

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
        answered = self.answer(teacher, images, tokens)
        wanted = tuple(tokens[:, -1].shape)
        if not isinstance(answered, Tensor) or tuple(answered.shape) != wanted:
            got = tuple(answered.shape) if isinstance(answered, Tensor) else type(answered).__name__
            raise InputError(f"method {self.name} must answer with tokens {wanted}, not {got}")
        return answered.to(tokens)


def _source(answer: Any) -> tuple[str, str]:
    """What is written of a callable, and why that is not all of it; empty where it is."""
    is_function = inspect.isfunction(answer)
    try:
        source = textwrap.dedent(inspect.getsource(answer if is_function else type(answer)))
    except (OSError, TypeError):
        return "", "a callable without a source file"
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

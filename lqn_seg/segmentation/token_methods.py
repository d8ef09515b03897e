"""Test-time methods of one's own: what gives the last layer's tokens in the teacher's place."""

from __future__ import annotations

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
        code: digest of the function itself, so that a run does not go on with another one's
            results; what it calls is not in it.
    """

    name: str
    answer: Answer = field(repr=False)
    code: str = field(init=False)

    def __post_init__(self) -> None:
        function: Any = getattr(self.answer, "__code__", None) or type(self.answer).__call__
        code = getattr(function, "__code__", function)
        constants = [c for c in code.co_consts if not hasattr(c, "co_code")]
        content = code.co_code + repr((code.co_names, constants)).encode()
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

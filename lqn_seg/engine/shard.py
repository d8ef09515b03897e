"""A job's part of an evaluation that several jobs share without hearing each other. Needs no
torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lqn_seg.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Shard:
    """Part `number`, from 1 on, of `count` parts; the only one is the whole."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """ "3/16" is the third of 16 parts; an `InputError` if there is no such part."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise InputError(
                f"--shard must be NUMBER/COUNT such as 3/16, with a number from 1 to the count, "
                f"not {text!r}"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """In the names of its files; empty for the whole."""
        return f"{self.number}of{self.count}" if self.count > 1 else ""

    def of(self, items: Sequence[T], batch: int) -> list[T]:
        """Its items: every `count`-th batch of them."""
        return [x for k, x in enumerate(items) if self.holding(k, batch, self.count) == self]

    @classmethod
    def holding(cls, place: int, batch: int, count: int) -> "Shard":
        """The one of `count` shards that has the item at a place, from 0 on."""
        return cls(place // batch % count + 1, count)


WHOLE = Shard()

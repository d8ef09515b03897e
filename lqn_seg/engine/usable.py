"""The images of a data set that can be used; what cannot is named on the console."""

from __future__ import annotations

from collections.abc import Sequence

from lqn_seg.data.metadata import Dataset, Record
from lqn_seg.engine.store import say
from lqn_seg.errors import InputError


def usable_records(dataset: Dataset, strict: bool = False) -> list[Record]:
    """A data set's records, as far as a look at its files can tell.

    Args:
        strict: whether something that cannot be listed is an error.

    Raises:
        InputError: there is no image.
    """
    listed = dataset.listed()
    name_problems(listed.problems, strict)
    for note in listed.notes:
        say(f"note: {note}")
    records = listed.records(strict=False)
    if not records:
        raise InputError(f"data set {dataset.metadata.name} holds no image that can be used")
    return records


def name_problems(problems: Sequence[str], strict: bool = False) -> None:
    """Say what is left out.

    Raises:
        InputError: there is something, and the caller is strict.
    """
    if problems and strict:
        raise InputError(problems[0])
    for problem in problems:
        say(f"left out: {problem}")

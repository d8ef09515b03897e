"""The images of a data set that can be used; the console names what cannot."""

from collections.abc import Sequence

from lqn_seg.data.metadata import Dataset, Record
from lqn_seg.engine.store import say
from lqn_seg.errors import InputError


def usable_records(dataset: Dataset, strict: bool = False) -> list[Record]:
    """A data set's records, as far as a look at its files can tell; an `InputError` where there is
    none or, if `strict`, something cannot be listed."""
    listed = dataset.listed()
    name_problems(listed.problems, strict)
    for note in listed.notes:
        say(f"note: {note}")
    records = listed.records(strict=False)
    if not records:
        raise InputError(f"data set {dataset.metadata.name} has no usable image")
    return records


def name_problems(problems: Sequence[str], strict: bool = False) -> None:
    """Say what is left out; if `strict`, the first of it is an `InputError`."""
    for problem in problems:
        if strict:
            raise InputError(problem)
        say(f"left out: {problem}")


def spread(records: list[Record], most: int) -> list[Record]:
    """So many of the records (0 is all), at equal distances: neighbours are often of one place."""
    if not 0 < most < len(records):
        return records
    return [records[k * len(records) // most] for k in range(most)]

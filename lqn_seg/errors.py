"""The one exception for bad input: its message is a sentence a user can act on."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class InputError(ValueError):
    """Input from outside (a file, a config key, an argument) is missing or wrong.

    The message is one sentence that names the file or key. Command-line tools print it without a
    traceback and exit with code 2.
    """


class PeerError(InputError):
    """What went wrong in another of the processes that share a job, which has said so itself."""


def nearest(name: str, choices: Sequence[str], what: str) -> str:
    """`name` if it is one of `choices`; otherwise an InputError that suggests the nearest one."""
    if name in choices:
        return name
    close = get_close_matches(str(name).lower(), choices, n=1, cutoff=0.0)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"unknown {what} {name!r}: {hint}choices are {', '.join(choices)}")

"""Parts of a report that may fail without stopping the others."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from lqn_seg.engine.store import say
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import UncountedOperatorError

T = TypeVar("T")


def attempt(
    complaint: str, function: Callable[[], T], otherwise: T, failed: list[str] | None = None
) -> T:
    """``function()``, or `otherwise` and one sentence on stderr, which the complaint begins; a bug
    shows its traceback too. `failed` receives the sentence, which is printed once."""
    try:
        return function()
    except Exception as error:
        foreseen = isinstance(error, InputError | UncountedOperatorError)
        reason = str(error) if foreseen else f"{type(error).__name__}: {error}"
        sentence = f"{complaint}: {' '.join(reason.split())}"
        failed = [] if failed is None else failed
        if sentence not in failed:
            if not foreseen:
                traceback.print_exception(error)
            say(sentence)
            failed.append(sentence)
        return otherwise


def made(name: str, make: Callable[[], str], failed: list[str]) -> str:
    """A table or sentence; empty where it cannot be made."""
    return attempt(f"the part '{name}' could not be made", make, "", failed)

"""What is made of results that are already there fails alone, and takes nothing else with it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from lqn_seg.engine.store import say
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import UncountedOperatorError

T = TypeVar("T")
_FORESEEN = (InputError, UncountedOperatorError)


def attempt(
    complaint: str, function: Callable[[], T], otherwise: T, failed: list[str] | None = None
) -> T:
    """``function()``, or where that fails, `otherwise` and one sentence on stderr.

    An error that was not foreseen shows its traceback too.

    Args:
        complaint: begins the sentence: "the cost of LQN could not be counted".
        failed: receives the sentence; one that is there already is not said again.
    """
    try:
        return function()
    except Exception as error:
        foreseen = isinstance(error, _FORESEEN)
        reason = str(error) if foreseen else f"{type(error).__name__}: {error}"
        sentence = f"{complaint}: {' '.join(reason.split())}"
        if failed is None or sentence not in failed:
            if not foreseen:
                traceback.print_exception(error)
            say(sentence)
        if failed is not None and sentence not in failed:
            failed.append(sentence)
        return otherwise

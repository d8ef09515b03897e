"""Ctrl-C and launchers, before torch is imported."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def is_launched() -> bool:
    """Whether this is one of several processes that `torchrun` started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def patient() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for a good moment: the block asks whether it was pressed. The second one does
    not wait. In another thread than the main one nobody can press it."""
    asked = False

    def remember(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)

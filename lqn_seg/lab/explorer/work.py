"""Pieces of work, one after the other in a thread, with progress and the time that is left."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from lqn_seg.errors import InputError


class Piece(NamedTuple):
    """A piece of work: what it is in words, its expected length beside the others, the function."""

    stage: str
    weight: float
    work: Callable[[], None]


class Work:
    """Works while it holds the lock `turn`, which others share; more may be added at any time.

    Attributes:
        stage: the piece that is being made; empty while it waits for its turn, and at the end.
        error: why it ended early, in one sentence.
    """

    def __init__(
        self, turn: threading.Lock, pieces: list[Piece], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.turn, self.clock, self.left = turn, clock, deque(pieces)
        self.lock = threading.Lock()
        self.now: Piece | None = None
        self.stage, self.error, self.cancelled, self.done = "", "", False, False
        self.made, self.spent_s, self.began, self.end = 0.0, 0.0, 0.0, math.inf
        self.thread = threading.Thread(target=self._run, daemon=True)

    def first(self, piece: Piece) -> None:
        """Add a piece before all others that are not begun."""
        with self.lock:
            self.left.appendleft(piece)
            self.end = math.inf
            if not self.done:
                return
            self.done = False
            self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while self._next():
            with self.turn:
                self._make()

    def _next(self) -> bool:
        with self.lock:
            if self.cancelled or self.error:
                self.left.clear()
            self.now = self.left.popleft() if self.left else None
            self.done = self.now is None
        return not self.done

    def _make(self) -> None:
        piece = self.now
        if self.cancelled or piece is None:
            return
        self.stage, self.began = piece.stage, self.clock()
        try:
            piece.work()
        except InputError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            with self.lock:
                self.stage, self.now = "", None
                self.spent_s += self.clock() - self.began
                self.made += piece.weight

    @property
    def progress(self) -> float:
        """0..1 by weight."""
        with self.lock:
            return 1.0 if self.done else self.made / max(self.made + self._to_do(), 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end, which only fall until a piece is added; None before the first
        piece is made. 0 is "any moment": what was expected is over."""
        with self.lock:
            if self.done or not self.made:
                return None
            now = self.clock()
            began = self.began if self.stage else now
            self.end = min(self.end, began + self.spent_s / self.made * self._to_do())
            return max(self.end - now, 0.0)

    def _to_do(self) -> float:
        return sum(piece.weight for piece in (*self.left, *([self.now] if self.now else ())))

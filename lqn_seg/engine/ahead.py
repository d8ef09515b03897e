"""Reading what comes next while a device is busy with what is there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Calls that may be made in a thread before their results are asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._due: dict[Hashable, Future[T]] = {}
        self._begun: dict[Hashable, Future[T]] = {}

    def begin(self, calls: Mapping[Hashable, Callable[[], T]]) -> None:
        """Make these calls next. Those begun the last time are due now, and are forgotten if nobody
        has asked for them by the next time."""
        for future in self._due.values():
            future.cancel()
        self._due = self._begun
        self._begun = {key: self._pool.submit(call) for key, call in calls.items()}

    def take(self, key: Hashable, call: Callable[[], T]) -> T:
        """The call's result, whether or not it has begun under that key; its error is raised."""
        future = self._due.pop(key, None) or self._begun.pop(key, None)
        return call() if future is None else future.result()

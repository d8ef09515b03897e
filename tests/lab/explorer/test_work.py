"""Pieces of work: order, progress, an expected time that only falls, and what ends them early."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from lqn_seg.errors import InputError
from lqn_seg.lab.explorer.work import Piece, Work


def test_the_expected_time_only_falls_and_progress_only_rises():
    now, seen = [0.0], []
    lengths = [1.0, 4.0, 0.1, 9.0, 0.5, 2.0]  # not at all as their equal weights say

    def make(length: float) -> None:
        for _ in range(10):
            now[0] += length / 10
            seen.append((work.eta_s, work.progress))

    pieces = [Piece(f"piece {k}", 1.0, lambda s=s: make(s)) for k, s in enumerate(lengths)]
    work = Work(threading.Lock(), pieces, lambda: now[0])
    assert work.eta_s is None and work.progress == 0
    work.thread.start()
    work.thread.join()
    etas = [eta for eta, _ in seen if eta is not None]
    assert [eta for eta, _ in seen[:10]] == [None] * 10 and len(etas) == 50
    assert all(a >= b >= 0 for a, b in pairwise(etas)) and etas[0] == pytest.approx(4.6)
    assert [p for _, p in seen] == sorted(p for _, p in seen)
    assert work.done and work.progress == 1 and work.eta_s is None


def test_what_is_added_comes_next_also_after_the_end():
    made: list[str] = []

    def piece(name: str, *also: str) -> Piece:
        def work_on() -> None:
            made.append(name)
            for other in also:
                work.first(piece(other))

        return Piece(name, 1.0, work_on)

    work = Work(threading.Lock(), [piece("a", "b"), piece("c")])
    work.thread.start()
    work.thread.join()
    assert made == ["a", "b", "c"] and work.done
    work.first(piece("d"))
    work.thread.join()
    assert made == ["a", "b", "c", "d"] and work.done


@pytest.mark.parametrize(
    ("error", "said"), [(InputError("no image"), "no image"), (OSError("full"), "OSError: full")]
)
def test_an_error_ends_the_work_and_is_said(error, said):
    made: list[str] = []

    def fail() -> None:
        raise error

    pieces = [Piece("a", 1.0, fail), Piece("b", 1.0, lambda: made.append("b"))]
    work = Work(threading.Lock(), pieces)
    work.thread.start()
    work.thread.join()
    assert work.error == said and work.done and not made and not work.stage


def test_cancelled_work_makes_nothing_more():
    made: list[str] = []

    def leave() -> None:
        work.cancelled = True

    work = Work(
        threading.Lock(), [Piece("a", 1.0, leave), Piece("b", 1.0, lambda: made.append("b"))]
    )
    work.thread.start()
    work.thread.join()
    assert work.done and not made

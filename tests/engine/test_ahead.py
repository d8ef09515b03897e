"""Reading ahead: what is read when, by whom, and what becomes of errors."""

from __future__ import annotations

import threading

import pytest

from lqn_seg.engine.ahead import ReadAhead
from lqn_seg.engine.store import ShardedRun
from lqn_seg.errors import InputError

MAIN = threading.get_ident()


def test_what_has_begun_is_read_elsewhere_and_once():
    ahead, calls = ReadAhead(), []

    def read(key):
        calls.append((key, threading.get_ident() == MAIN))
        return 10 * key

    ahead.begin({1: lambda: read(1), 2: lambda: read(2)})
    assert [ahead.take(k, lambda k=k: read(k)) for k in (2, 3, 1, 1)] == [20, 30, 10, 10]
    assert sorted(calls) == [(1, False), (1, True), (2, False), (3, True)]


def test_an_error_is_raised_where_the_result_is_asked_for():
    def gone():
        raise InputError("gone.png is missing")

    ahead = ReadAhead()
    ahead.begin({1: gone, 2: lambda: 2})
    assert ahead.take(2, gone) == 2
    with pytest.raises(InputError, match=r"gone\.png"):
        ahead.take(1, lambda: 1)


def test_nothing_is_kept_of_what_nobody_asked_for():
    ahead, gate, ran = ReadAhead(), threading.Event(), []
    ahead.begin({1: gate.wait, 2: lambda: ran.append(2)})
    ahead.begin({3: lambda: ran.append(3)})
    ahead.begin({4: lambda: ran.append(4)})  # 1 is running, 2 was due and is forgotten
    gate.set()
    for key in (3, 4):
        ahead.take(key, lambda: None)
    assert ran == [3, 4]
    assert ahead.take(1, lambda: "fresh") == ahead.take(2, lambda: "fresh") == "fresh"


def test_the_next_chunk_is_announced_before_one_is_worked_on(tmp_path):
    heard = []

    def work(group, chunk):
        heard.append(("work", group, [r["image_id"] for r in chunk]))
        return [{}] * len(chunk)

    def announce(group, chunk):
        heard.append(("next", group, [r["image_id"] for r in chunk]))

    run = ShardedRun(tmp_path, {}, ["a", "b"])
    run.execute([{"image_id": k} for k in range(3)], 2, work, False, announce)
    chunks = [("a", [0, 1]), ("a", [2]), ("b", [0, 1]), ("b", [2])]
    expected = []
    for index, chunk in enumerate(chunks):
        expected += [("next", *following) for following in chunks[index + 1 : index + 2]]
        expected.append(("work", *chunk))
    assert heard == expected

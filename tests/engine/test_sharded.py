"""Results on disk: what a kill, a full disk and several processes can do to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import time
import tracemalloc

import pytest

from lqn_seg.engine import launch, stored
from lqn_seg.engine.store import ResultStore, write_atomically, write_first
from lqn_seg.engine.stored import format_line, parse_line
from lqn_seg.errors import InputError

RECORDS = [{"image_id": k} for k in range(40)]
GROUPS = ["clean", "fog-3"]


def result(group: str, key: int) -> dict:
    """One that is long enough to be torn, and different for every image."""
    value = {"value": [key / 7, len(group)] * 500, "nan": float("nan")}
    return {"image_id": key, **value}


def opened(folder, resume=True, groups=GROUPS, **options) -> ResultStore:
    return ResultStore(folder, {"methods": "x"}, groups, resume, **options)


def fill(store: ResultStore, batches=None, visit=lambda group, key: None, more=None) -> list:
    """Write what is left, with what `more` says of an image; (group, image) of it."""
    done = []
    for batch in store.shard(RECORDS, 3) if batches is None else batches:
        for group in store.groups:
            keys = [record["image_id"] for record, names in batch if group in names]
            for key in keys:
                visit(group, key)
            if keys:
                entries = [result(group, key) | (more(key) if more else {}) for key in keys]
                store.append(group, entries)
            done += [(group, key) for key in keys]
    store.finish(RECORDS)
    return done


def assert_whole(folder) -> None:
    store = opened(folder)
    for group in GROUPS:
        assert set(store.results(group)) == set(range(40)) and not store.failures(group)
        assert all(repr(e) == repr(result(group, key)) for key, e in store.results(group).items())


def lines_in(folder) -> list[str]:
    return [text for path in folder.glob("*.jsonl") for text in path.read_text().splitlines()]


def _fill_slowly(folder) -> None:
    fill(opened(folder), visit=lambda group, key: time.sleep(0.0003))


def test_sigkill_anywhere_loses_and_repeats_nothing(tmp_path):
    """Twenty kills in a row at random moments, each going on from the one before."""
    context, rng = multiprocessing.get_context("fork"), random.Random(0)
    folder, survived = tmp_path / "run", 0
    for _ in range(20):
        before = len(lines_in(folder)) if folder.is_dir() else 0
        process = context.Process(target=_fill_slowly, args=(folder,))
        process.start()
        time.sleep(0.004 + rng.random() * 0.012)
        process.kill()
        process.join()
        survived += process.exitcode == -signal.SIGKILL
        assert len(lines_in(folder) if folder.is_dir() else []) >= before
    assert survived >= 5
    store = opened(folder)
    left = {(g, k) for g in GROUPS for k in range(40) if k not in store.results(g)}
    done = fill(store)
    assert len(done) == len(set(done)) and set(done) == left
    assert_whole(folder)
    entries = [entry for text in lines_in(folder) for entry in parse_line(text)]
    assert len(entries) == 80  # no image twice


@pytest.mark.parametrize("cut, lost", [(1, []), (2, [39]), (5000, [39])])
def test_a_torn_line_does_not_count_and_harms_no_other(tmp_path, cut, lost):
    fill(opened(tmp_path))
    path = tmp_path / "clean.0.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert fill(opened(tmp_path)) == [("clean", key) for key in lost]
    content = path.read_bytes()
    path.write_bytes(content[:20000] + b"\0" * 40 + content[20040:])  # a damaged sector
    assert 0 < len(fill(opened(tmp_path))) <= 6
    assert_whole(tmp_path)


def test_a_line_carries_its_checksum():
    line = format_line([{"image_id": "ä", "value": [0.1, float("nan"), 1e16]}])
    assert repr(json.loads(line)["images"]) == repr(parse_line(line))
    assert repr(parse_line(line)) == repr([{"image_id": "ä", "value": [0.1, float("nan"), 1e16]}])
    assert parse_line(line.replace("0.1", "0.2")) == parse_line(line[:-3]) == parse_line("") == []


def test_batches_keep_their_company_and_processes_find_what_others_wrote(tmp_path, monkeypatch):
    """Four processes, one after the other; 40 images are not whole batches of 3."""
    store = opened(tmp_path, resume=False)
    whole = store.left(RECORDS, 3)
    assert [len(batch) for batch in whole] == [3] * 13 + [1]
    assert all(names == GROUPS for batch in whole for _, names in batch)
    monkeypatch.setattr(launch, "size", lambda: 4)
    monkeypatch.setattr(launch, "gather", lambda value: [value])
    shards = []
    for rank in range(4):
        monkeypatch.setattr(launch, "rank", lambda rank=rank: rank)
        shards.append(store.shard(RECORDS, 3))
    assert sorted(map(len, shards)) == [3, 3, 4, 4]
    assert sorted(b[0][0]["image_id"] for share in shards for b in share) == [*range(0, 40, 3)]
    for rank in (1, 2, 3):
        monkeypatch.setattr(launch, "rank", lambda rank=rank: rank)
        fill(store, shards[rank])  # whose completeness the main process checks
    monkeypatch.undo()
    assert {path.name for path in tmp_path.glob("clean.*")} == {
        f"clean.{k}.jsonl" for k in (1, 2, 3)
    }
    assert opened(tmp_path).left(RECORDS, 3) == shards[0]
    fill(opened(tmp_path))
    assert_whole(tmp_path)


def test_what_learns_on_the_way_sees_one_group_after_the_other(tmp_path):
    batches = opened(tmp_path).left(RECORDS, 30, apart=True)
    assert [(len(batch), batch[0][1]) for batch in batches] == [
        (30, ["clean"]),
        (10, ["clean"]),
        (30, ["fog-3"]),
        (10, ["fog-3"]),
    ]


@pytest.fixture
def room():
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing_and_later_there_is_room(tmp_path, capsys, room):
    store = opened(tmp_path, groups=["clean"])
    room(100_000)  # four lines, and the fifth is torn
    fill(store, visit=lambda group, key: key == 30 and room(resource.RLIM_INFINITY))
    assert capsys.readouterr().err.count("File too large") == 1
    assert any(not parse_line(text) for text in lines_in(tmp_path))
    assert not store.unwritten and fill(opened(tmp_path, groups=["clean"])) == []


def test_a_disk_that_stays_full_leaves_the_numbers(tmp_path, room):
    store = opened(tmp_path, groups=["clean"])
    room(100_000)
    fill(store)
    room(resource.RLIM_INFINITY)
    assert len(store.unwritten) > 5 and "File too large" in store.complaint
    assert set(store.results("clean")) == set(range(40))
    written = {entry["image_id"] for text in lines_in(tmp_path) for entry in parse_line(text)}
    room(100_000)
    with pytest.raises(InputError, match=r"cannot write results .File too large"):
        fill(opened(tmp_path, groups=["clean"], strict=True))
    room(resource.RLIM_INFINITY)
    assert {k for _, k in fill(opened(tmp_path, groups=["clean"]))} == set(range(40)) - written


def test_a_full_disk_is_named_where_a_file_is_written(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*results\.json \(No space left on device"):
        write_atomically(tmp_path / "results.json", "new")
    assert (tmp_path / "results.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_failures_are_tried_again(tmp_path):
    store = opened(tmp_path)
    for group in GROUPS:
        store.append(group, [{"image_id": 4, "failed": "gone.png is missing"}])
        assert store.failures(group) == {4: "gone.png is missing"} and not store.results(group)
    assert len(fill(opened(tmp_path))) == 80
    assert_whole(tmp_path)


def test_a_failure_of_one_process_does_not_outlive_the_result_of_another(tmp_path):
    """Files are read by name, whichever was written last."""
    store = opened(tmp_path, resume=False)
    failed = {"image_id": 7, "failed": "no memory"}
    (tmp_path / "clean.1.jsonl").write_text(format_line([failed]))
    (tmp_path / "clean.0.jsonl").write_text(format_line([result("clean", 7)]))
    again = opened(tmp_path)
    assert set(again.results("clean")) == {7} and not again.failures("clean")
    assert store.groups == again.groups


def test_another_fingerprint_is_refused_by_name(tmp_path):
    old = {"methods": "x", "teacher": "1", "seeds": (0, 1), "records": "1"}

    def open_with(**changed) -> None:
        ResultStore(tmp_path, {**old, **changed}, GROUPS, resume=True, may_change=["records"])

    open_with()
    open_with(records="2")
    with pytest.raises(InputError, match=r"another configuration.*differs in: dataset, teacher\)"):
        open_with(teacher="2", dataset="d")


def test_missing_results_of_other_machines_are_named(tmp_path):
    store = opened(tmp_path)
    fill(store)
    (tmp_path / "fog-3.0.jsonl").unlink()
    with pytest.raises(InputError, match=r"40 results of fog-3 .*folder that all machines share"):
        opened(tmp_path).finish(RECORDS)


@pytest.mark.parametrize("processes", [1, 3])
def test_a_result_counts_for_the_content_that_it_was_made_of(
    tmp_path, capsys, monkeypatch, processes
):
    content = {record["image_id"]: "old" for record in RECORDS}

    def fill_stamped(store: ResultStore) -> list:
        return fill(store, more=lambda key: {"input_hash": content[key]})

    def resumed() -> ResultStore:
        store = opened(tmp_path)
        monkeypatch.setattr(launch, "size", lambda: processes)
        monkeypatch.setattr(launch, "gather", lambda value: [value, list(content.items())])
        store.forget_changed(RECORDS, lambda record: content[record["image_id"]])
        monkeypatch.undo()
        return store

    fill_stamped(opened(tmp_path, resume=False))
    if processes > 1:  # as if several had written, the names of whose files come later
        for group in GROUPS:
            (tmp_path / f"{group}.0.jsonl").rename(tmp_path / f"{group}.9.jsonl")
    assert fill_stamped(resumed()) == [] and capsys.readouterr().err == ""
    content[3] = content[17] = "new"
    store = resumed()
    said = capsys.readouterr().err
    assert "evaluated again: 2 of 40 images (3, 17)" in said and said.count("\n") == 1
    assert sorted(fill_stamped(store)) == [(g, k) for g in GROUPS for k in (3, 17)]
    assert {k: e["input_hash"] for k, e in store.results("clean").items()} == content
    assert fill_stamped(resumed()) == [] and capsys.readouterr().err == ""
    content[3] = "old"  # back again: the first result is of it
    assert fill_stamped(resumed()) == []
    (tmp_path / "clean.99.jsonl").write_text(format_line([{"image_id": 5, "value": "unstamped"}]))
    assert fill_stamped(resumed()) == []
    for path in tmp_path.glob("clean.[!9]*"):
        path.unlink()
    if processes == 1:
        assert ("clean", 5) in fill_stamped(resumed())


def racing(folder, number: int) -> None:
    shard = f"{number}of8"
    store = ResultStore(folder, {"methods": "x"}, ["clean"], shard=shard)
    store.append("clean", [{"image_id": number}])


def test_shards_that_start_at_the_same_moment_keep_each_others_results(tmp_path):
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        folder = tmp_path / str(turn)
        shards = [context.Process(target=racing, args=(folder, k)) for k in range(1, 9)]
        for process in shards:
            process.start()
        for process in shards:
            process.join()
        assert [process.exitcode for process in shards] == [0] * 8
        store = ResultStore(folder, {"methods": "x"}, ["clean"], shard="1of8")
        assert set(store.results("clean")) == set(range(1, 9)) and store.found.shards == {8}
        names = {path.name for path in folder.iterdir()}
        assert names == {"run.json", *(f"clean.{k}of8.jsonl" for k in range(1, 9))}


def test_the_first_of_several_writers_wins(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_first(path, "1")
    write_first(path, "2")
    assert path.read_text() == "1" and list(tmp_path.iterdir()) == [path]

    def unknown(*_: object) -> None:
        raise PermissionError(1, "this file system has no hard links")

    monkeypatch.setattr(os, "link", unknown)
    write_first(path, "3")
    assert path.read_text() == "3" and list(tmp_path.iterdir()) == [path]


def test_results_are_on_the_disk_alone(tmp_path, monkeypatch):
    """What is in memory of a result does not grow with it, and nothing is read between batches."""
    records = [{"image_id": k} for k in range(200)]
    store = opened(tmp_path, groups=["clean"])
    read: list[str] = []
    heads = stored._heads
    monkeypatch.setattr(stored, "_heads", lambda text: read.append(text) or heads(text))
    for batch in store.shard(records, 2):
        entries = [{**r, "methods": {"lqn": [r["image_id"]] * 20_000}} for r, _ in batch]
        store.append("clean", entries)
    assert not read
    del entries
    read.clear()
    monkeypatch.undo()
    tracemalloc.start()
    found = store.found
    size, peak = tracemalloc.get_traced_memory()
    assert size < 600 * len(records) and peak < 2e6  # of 20 MB
    assert found.results("clean")[7]["methods"]["lqn"][:2] == [7, 7]
    tracemalloc.stop()

"""Results on disk: what a kill, a full disk and several processes can do to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import threading
import time

import pytest
from tqdm import tqdm

from lqn_seg.engine import launch
from lqn_seg.engine.store import ShardedRun, format_line, parse_line, write_atomically
from lqn_seg.errors import InputError

RECORDS = [{"image_id": k} for k in range(40)]
GROUPS = ["clean", "fog-3"]


def value(group, record) -> dict:
    """A result that is long enough to be torn, and different for every image."""
    return {"value": [record["image_id"] / 7, len(group)] * 500, "nan": float("nan")}


def work(group, records):
    for record in records:
        yield value(group, record)


def started(folder, resume=True, groups=GROUPS, **options) -> ShardedRun:
    return ShardedRun(folder, {"methods": "x"}, groups, resume, **options)


def execute(run: ShardedRun, work=work, batch=3, records=RECORDS) -> list:
    """(group, image) of what was executed."""
    done = []

    def counting(group, chunk):
        done.extend((group, record["image_id"]) for record in chunk)
        return work(group, chunk)

    run.execute(records, batch, counting, progress=False)
    return done


def assert_whole(folder) -> None:
    for group, kept in started(folder).kept.items():
        assert set(kept.results) == set(range(40)) and not kept.failures
        for key, result in kept.results.items():
            expected = {"image_id": key, **value(group, {"image_id": key})}
            assert repr(result) == repr(expected)


def lines_in(folder) -> list[str]:
    return [text for path in folder.glob("*.jsonl") for text in path.read_text().splitlines()]


def _run_slowly(folder) -> None:
    # tqdm's own lock is shared with forked processes: killed in it, this one would keep it.
    tqdm.set_lock(threading.RLock())

    def slow(group, chunk):
        time.sleep(0.001)
        return work(group, chunk)

    started(folder).execute(RECORDS, 3, slow, progress=False)


def test_sigkill_anywhere_loses_and_repeats_nothing(tmp_path):
    """Twenty kills in a row at random moments, each going on from the one before."""
    context, rng = multiprocessing.get_context("fork"), random.Random(0)
    folder, survived = tmp_path / "run", 0
    for _ in range(20):
        before = len(lines_in(folder)) if folder.is_dir() else 0
        process = context.Process(target=_run_slowly, args=(folder,))
        process.start()
        time.sleep(0.004 + rng.random() * 0.012)
        process.kill()
        process.join()
        survived += process.exitcode == -signal.SIGKILL
        assert len(lines_in(folder) if folder.is_dir() else []) >= before
    assert survived >= 5
    kept = started(folder).kept
    left = {
        (g, r["image_id"]) for g in GROUPS for r in RECORDS if r["image_id"] not in kept[g].results
    }
    done = execute(started(folder))
    assert len(done) == len(set(done)) and set(done) == left
    assert_whole(folder)
    whole = [entry for text in lines_in(folder) for entry in parse_line(text)]
    assert len(whole) == 80  # no image twice


@pytest.mark.parametrize("cut, lost", [(1, []), (2, [39]), (5000, [39])])
def test_a_torn_line_is_not_believed_and_harms_no_other(tmp_path, cut, lost):
    execute(started(tmp_path))
    path = tmp_path / "clean.0.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert execute(started(tmp_path)) == [("clean", key) for key in lost]
    content = path.read_bytes()
    path.write_bytes(content[:20000] + b"\0" * 40 + content[20040:])  # a damaged sector
    done = execute(started(tmp_path))
    assert 0 < len(done) <= 6
    assert_whole(tmp_path)


def test_a_line_carries_its_checksum():
    line = format_line([{"image_id": "ä", "value": [0.1, float("nan"), 1e16]}])
    assert repr(json.loads(line)["images"]) == repr(parse_line(line))
    assert repr(parse_line(line)) == repr([{"image_id": "ä", "value": [0.1, float("nan"), 1e16]}])
    assert parse_line(line.replace("0.1", "0.2")) == parse_line(line[:-3]) == parse_line("") == []


def test_chunks_keep_their_company_and_shares_are_disjoint(tmp_path, monkeypatch):
    """As 1, 2 and 4 processes would, one after the other; 40 images are not whole chunks of 3."""
    batches: dict[int, set] = {}
    for size in (1, 2, 4):
        folder, batches[size] = tmp_path / str(size), set()
        run = started(folder, resume=False)
        todo = run.left(RECORDS, 3)
        shares = [todo[rank::size] for rank in range(size)]
        assert sorted(len(share) for share in shares)[-1] <= len(todo) // size + 1
        for share in shares:
            batches[size] |= {(g, *(r["image_id"] for r in chunk)) for g, chunk in share}
    assert batches[1] == batches[2] == batches[4] and len(batches[1]) == 28


def test_results_of_other_processes_count(tmp_path, monkeypatch):
    """Four processes wrote, one goes on: what each has kept is there."""
    run = started(tmp_path, resume=False)
    for rank in range(4):
        monkeypatch.setattr(launch, "rank", lambda rank=rank: rank)
        for group, chunk in run.left(RECORDS, 3)[rank:20:4]:
            run._keep(group, [{**record, **value(group, record)} for record in chunk])
    monkeypatch.undo()
    assert {path.name for path in tmp_path.glob("clean.*.jsonl")} == {
        f"clean.{rank}.jsonl" for rank in range(4)
    }
    left = [(g, r["image_id"]) for g, chunk in run.left(RECORDS, 3) for r in chunk]
    assert 0 < len(left) < 80
    assert execute(started(tmp_path)) == left
    assert_whole(tmp_path)


@pytest.fixture
def room():
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing_and_later_there_is_room(tmp_path, capsys, room):
    run = started(tmp_path, groups=["clean"])

    def freeing(group, chunk):
        if chunk[0]["image_id"] == 30:
            room(resource.RLIM_INFINITY)
        return work(group, chunk)

    room(100_000)  # four lines, and the fifth is torn
    execute(run, freeing)
    assert capsys.readouterr().err.count("File too large") == 1
    assert any(not parse_line(text) for text in lines_in(tmp_path))
    assert not run.unwritten and execute(started(tmp_path, groups=["clean"])) == []


def test_a_disk_that_stays_full_leaves_the_numbers(tmp_path, room):
    run = started(tmp_path, groups=["clean"])
    room(100_000)
    execute(run)
    room(resource.RLIM_INFINITY)
    assert len(run.unwritten) > 5 and "File too large" in run.complaint
    assert set(run.kept["clean"].results) == set(range(40))
    written = {entry["image_id"] for text in lines_in(tmp_path) for entry in parse_line(text)}
    room(100_000)
    with pytest.raises(InputError, match=r"cannot write results .File too large"):
        execute(started(tmp_path, groups=["clean"], strict=True))
    room(resource.RLIM_INFINITY)
    assert {key for _, key in execute(started(tmp_path, groups=["clean"]))} == (
        set(range(40)) - written
    )


def test_a_full_disk_is_named_where_a_file_is_written(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*results\.json \(No space left on device"):
        write_atomically(tmp_path / "results.json", "new")
    assert (tmp_path / "results.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_failure_takes_no_company_with_it_and_is_tried_again(tmp_path, capsys):
    def failing(group, chunk):
        for record in chunk:
            if record["image_id"] in (4, 7):
                raise (
                    InputError("gone.png is missing") if record["image_id"] == 4 else KeyError(7)
                )
            yield value(group, record)

    run = started(tmp_path)
    execute(run, failing)
    for kept in run.kept.values():
        assert kept.failures == {4: "gone.png is missing", 7: "KeyError: 7"}
        assert set(kept.results) == set(range(40)) - {4, 7}
    printed = capsys.readouterr().err
    assert "image 4 (fog-3) failed: gone.png is missing" in printed
    assert printed.count("Traceback") == 2  # of the KeyError alone
    assert set(execute(started(tmp_path))) == {(g, k) for g in GROUPS for k in (4, 7)}
    assert_whole(tmp_path)
    with pytest.raises(InputError, match=r"gone\.png"):
        execute(started(tmp_path, resume=False, strict=True), failing)


def test_another_fingerprint_is_refused_by_name(tmp_path):
    ShardedRun(tmp_path, {"methods": "x", "teacher": "1", "seeds": (0, 1)}, GROUPS)
    ShardedRun(tmp_path, {"methods": "x", "teacher": "1", "seeds": (0, 1)}, GROUPS, resume=True)
    with pytest.raises(InputError, match=r"another configuration.*differs in: dataset, teacher\)"):
        ShardedRun(
            tmp_path,
            {"methods": "x", "teacher": "2", "seeds": (0, 1), "dataset": "d"},
            GROUPS,
            resume=True,
        )


def test_missing_results_of_other_machines_are_named(tmp_path):
    run = started(tmp_path)
    execute(run)
    (tmp_path / "fog-3.0.jsonl").unlink()
    run._kept = None
    with pytest.raises(InputError, match=r"40 results of fog-3 .*folder that all machines share"):
        run._check_complete(RECORDS)


@pytest.mark.parametrize("processes", [1, 3])
def test_a_result_counts_for_the_content_that_it_was_made_of(
    tmp_path, capsys, monkeypatch, processes
):
    content = {record["image_id"]: "old" for record in RECORDS}

    def stamped(resume=True) -> ShardedRun:
        return started(tmp_path, resume, stamp=lambda record: content[record["image_id"]])

    execute(stamped(resume=False))
    if processes > 1:  # as if several had written, the names of whose files come later
        for group in GROUPS:
            (tmp_path / f"{group}.0.jsonl").rename(tmp_path / f"{group}.9.jsonl")

    def resumed() -> ShardedRun:
        run = stamped()
        everybody = [(r["image_id"], content[r["image_id"]]) for r in RECORDS]
        monkeypatch.setattr(launch, "size", lambda: processes)
        monkeypatch.setattr(launch, "gather", lambda value: [value, everybody])
        run.forget_changed(RECORDS)
        monkeypatch.undo()
        return run

    assert execute(resumed()) == [] and capsys.readouterr().err == ""
    content[3] = content[17] = "new"
    run = resumed()
    said = capsys.readouterr().err
    assert "evaluated again: 2 of 40 images (3, 17)" in said and said.count("\n") == 1
    assert execute(run) == [(g, k) for g in GROUPS for k in (3, 17)]
    assert {k: r["input_hash"] for k, r in run.kept["clean"].results.items()} == content
    assert execute(resumed()) == [] and capsys.readouterr().err == ""
    content[3] = "old"  # back again: the first result is of it
    assert execute(resumed()) == []
    (tmp_path / "clean.99.jsonl").write_text(format_line([{"image_id": 5, "value": "unstamped"}]))
    assert execute(resumed()) == []
    for path in tmp_path.glob("clean.[!9]*"):
        path.unlink()
    if processes == 1:
        assert ("clean", 5) in execute(resumed())


def test_what_may_change_is_shared_by_processes_and_not_by_runs(tmp_path):
    ShardedRun(tmp_path, {"methods": "x", "records": "1"}, GROUPS, may_change=("records",))
    new = {"methods": "x", "records": "2"}
    run = ShardedRun(tmp_path, new, GROUPS, resume=True, may_change=("records",))
    with pytest.raises(InputError, match="does not find its own run"):
        run._check_same({"methods": "x", "records": "1"})
    with pytest.raises(InputError, match=r"differs in: methods\)"):
        ShardedRun(tmp_path, {**new, "methods": "y"}, GROUPS, True, may_change=("records",))

"""Several processes at one evaluation, as a user starts them: the same numbers, the same masks."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lqn_seg.engine import launch
from lqn_seg.engine.store import ResultStore
from lqn_seg.engine.stored import parse_line
from lqn_seg.errors import InputError, PeerError
from lqn_seg.lab.report.run import evaluate

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
# Five images in batches of two, under two conditions: no number of processes divides them. The
# recipe's students answer without a calibration, so that what they learned shows in the masks.
SETTINGS = ("MODEL.LQN.BATCH", "2", "MODEL.LQN.PRESET", "distill", "MODEL.LQN.FIT.STEPS", "20")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )


def results(folder: Path) -> dict:
    """``results.json`` without what differs from run to run."""
    result = json.loads((folder / "inference" / "results.json").read_text())
    assert result.pop("environment")["threads"] == "1"
    return _without_times(result)


def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not k.endswith("_ms")}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def test_one_two_and_four_processes_find_the_same(small_config, tmp_path):
    folders = {count: tmp_path / f"in{count}" for count in (1, 2, 4)}
    evaluate(str(small_config), [*SETTINGS, "OUTPUT_DIR", str(folders[1])])
    expected = results(folders[1])
    hashes = [image["mask_hash"] for image in expected["per_image"]["clean"]["lqn"]]
    teachers = [image["mask_hash"] for image in expected["per_image"]["clean"]["teacher"]]
    assert len(set(hashes)) == 5 and hashes != teachers

    tool = ("tools/train_net.py", "--eval-only", "--engine", "native", "--config", small_config)
    two = run(*TORCHRUN, 2, *tool, *SETTINGS, "OUTPUT_DIR", folders[2])
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("scores 0-100") == 1  # one of them prints
    assert results(folders[2]) == expected
    files = sorted(path.name for path in (folders[2] / "inference").glob("*.jsonl"))
    assert files == [f"{name}.{k}.jsonl" for name in ("clean", "contrast-3") for k in (0, 1)]

    # Killed, and gone on with by four: one file is lost and another one's last line torn.
    folder = folders[2] / "inference"
    (folder / "results.json").unlink()
    (folder / "contrast-3.1.jsonl").unlink()
    torn = folder / "clean.0.jsonl"
    kept = torn.read_text().splitlines(keepends=True)
    torn.write_text("".join(kept[:-1]) + kept[-1][:300])
    done = {path: path.read_bytes() for path in folder.glob("*.jsonl")}
    left = 10 - sum(len(parse_line(t)) for p in done for t in p.read_text().splitlines())
    four = run(
        *tool[:1], "--num-gpus", 4, "--resume", *tool[1:], *SETTINGS, "OUTPUT_DIR", folders[2]
    )
    assert four.returncode == 0, four.stderr
    assert f"{10 - left} of 10 images done" in four.stdout
    assert results(folders[2]) == expected
    entries = [
        (path.name.split(".")[0], entry["image_id"])
        for path in folder.glob("*.jsonl")
        for text in path.read_text().splitlines()
        for entry in parse_line(text)
    ]
    assert len(entries) == len(set(entries)) == 10  # nothing twice
    for path, content in done.items():
        assert path.read_bytes().startswith(content)  # nothing rewritten


def _child(rank: int, count: int, port: int, function, sender) -> None:
    os.environ |= {
        **{"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
    }
    with launch.joined():
        try:
            sender.send(function())
        except InputError as error:
            sender.send(error)


def in_processes(count: int, function) -> list:
    """What a function returns or raises in several processes that have joined, by rank."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    children = [
        context.Process(target=_child, args=(rank, count, port, function, pipes[rank][1]))
        for rank in range(count)
    ]
    for child in children:
        child.start()
    result = [receiver.recv() if receiver.poll(60) else None for receiver, _ in pipes]
    for child in children:
        child.join(10)
        child.kill()
    return result


def test_processes_hear_each_other():
    assert in_processes(3, lambda: launch.gather(launch.rank())) == [[0, 1, 2]] * 3


def test_bad_input_of_one_process_ends_all_and_the_main_one_says_it():
    def failing():
        with launch.together():
            if launch.rank() > 0:
                raise InputError(f"process {launch.rank()} has no data")

    result = in_processes(3, failing)
    assert [str(error) for error in result] == ["process 1 has no data"] * 3
    assert [type(error) for error in result] == [InputError, PeerError, PeerError]


def test_a_process_that_has_ended_is_said(capfd):
    def leaving():
        return launch.rank() == 1 or launch.gather(None)

    result = in_processes(2, leaving)
    assert result[1] is True
    assert isinstance(result[0], PeerError) and "ended early" in str(result[0])


def test_processes_refuse_another_run_together(tmp_path):
    ResultStore(tmp_path, {"methods": "x"}, ["clean"])
    result = in_processes(
        2, lambda: ResultStore(tmp_path, {"methods": "y"}, ["clean"], resume=True)
    )
    assert [type(error) for error in result] == [InputError, PeerError]
    assert all("another configuration" in str(error) for error in result)
    result = in_processes(2, lambda: ResultStore(tmp_path, {"rank": launch.rank()}, ["clean"]))
    assert all("process 1 does not find its own run" in str(error) for error in result)


def test_a_disk_that_is_full_for_one_process_leaves_the_main_one_all_results(tmp_path):
    records = [{"image_id": k} for k in range(31)]

    def filling():
        store = ResultStore(tmp_path, {}, ["clean"])
        if launch.rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        batches = store.shard(records, 2)
        for batch in batches:
            store.append("clean", [{**r, "value": [r["image_id"]] * 50} for r, _ in batch])
        store.finish(records)
        done = [record["image_id"] for batch in batches for record, _ in batch]
        return done, sorted(store.results("clean")), store.complaint

    result = in_processes(3, filling)
    assert sorted(key for done, _, _ in result for key in done) == list(range(31))
    assert [kept for _, kept, _ in result] == [list(range(31))] * 3
    assert all("File too large" in complaint for _, _, complaint in result)
    assert 6 < len(ResultStore(tmp_path, {}, ["clean"], resume=True).results("clean")) < 31


def test_several_machines_need_an_address():
    with pytest.raises(InputError, match="--dist-url must be tcp://HOST:PORT"):
        launch.start(["x.py"], 2, machines=2, machine=1)


COUNT_FAULTS = """
import resource
from lqn_seg.engine.launch import keep_memory
if {keep}:
    keep_memory()
for turn in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    piece = bytearray(1 << 26)
    for page in range(0, len(piece), 4096):
        piece[page] = 1
    del piece
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    faults = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for keep in (True, False)
    }
    assert faults[True] < 100 < faults[False]  # of 16384 pages

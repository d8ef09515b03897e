"""Several processes at one evaluation, as a user starts them: the same numbers, the same masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lqn_seg.engine import launch
from lqn_seg.engine.run import evaluate
from lqn_seg.engine.sharded import format_line, parse_line

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
    found = json.loads((folder / "inference" / "results.json").read_text())
    assert found.pop("environment")["threads"] == "1"
    return _without_times(found)


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
    assert two.stdout.count("PQ by condition") == 1  # one of them prints
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


def test_bad_input_of_several_processes_is_one_sentence(small_config, tmp_path):
    folder = tmp_path / "output" / "inference"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"methods": "another"}')
    (folder / "clean.0.jsonl").write_text(format_line([{"image_id": 0}]))
    tool = ("tools/train_net.py", "--eval-only", "--engine", "native", "--resume", "--num-gpus", 2)
    result = run(*tool, "--config", small_config)
    assert result.returncode == 2
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.stderr
    assert "results of another configuration" in result.stderr
    assert (folder / "clean.0.jsonl").exists()


def test_several_machines_need_an_address():
    with pytest.raises(launch.InputError, match="--dist-url must be tcp://HOST:PORT"):
        launch.start(["x.py"], 2, machines=2, machine=1)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), launch.fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before

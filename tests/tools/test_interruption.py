"""Ctrl-C: what is done stays, one sentence says so, and the exit status is 130."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lqn_seg.cli import evaluate

ROOT = Path(__file__).parents[2]
DEMO = "configs/demo_lqn.yaml"
# tool, its arguments, and what Ctrl-C comes in
INTERRUPTED = [
    ("train_net", ["--eval-only", "--config", DEMO], "lqn_seg.lab.report.run.evaluate"),
    ("train_net", ["--config", DEMO], "lqn_seg.engine.training.train.TeacherTrainer.__init__"),
    ("classify", ["--config", DEMO], "lqn_seg.lab.report.run.classify"),
    (
        "classify",
        ["--config", "configs/classification/demo.yaml", "--calibrate", "x"],
        "lqn_seg.engine.classify.calibrate_clip",
    ),
    ("study", ["configs/study/quick.yaml"], "lqn_seg.lab.study.study_report.run_study"),
    (
        "calibrate",
        ["--images", ".", "--config", DEMO],
        "lqn_seg.engine.calibrate.calibrate_teacher",
    ),
    (
        "train_clip",
        ["--config", "configs/classification/demo.yaml"],
        "lqn_seg.engine.training.train_clip.ClipTrainer.__init__",
    ),
    ("benchmark", [], "lqn_seg.lab.benchmark.benchmark.Benchmark.run"),
    ("visualize", ["tokens", "--output", "out"], "lqn_seg.engine.studio.Studio"),
    ("explore", [], "lqn_seg.lab.explorer.server.open_explorer"),
    ("convert_checkpoint", ["in", "out"], "lqn_seg.teachers.eomt.load_eomt"),
    ("validate_dataset", ["demo_panoptic_val"], "lqn_seg.lab.validate.validate.validate"),
]


@pytest.mark.parametrize(
    ("tool", "arguments", "where"), INTERRUPTED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_tool_ends_with_a_sentence(
    tool, arguments, where, script, like_the_repository, monkeypatch, capsys
):
    module = script("tools", tool)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *arguments])
    if tool == "benchmark":
        monkeypatch.setattr("lqn_seg.lab.benchmark.benchmark.Benchmark.__init__", _no_teacher)
    assert module.main() == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted: ") and said.count("\n") == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_detectron2s_engine_promises_no_resume(monkeypatch, capsys, processes):

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_in_detectron2", interrupt)
    monkeypatch.setattr("lqn_seg.cli.parser.start_processes", interrupt)
    arguments = [DEMO, "--engine", "detectron2", "--num-gpus", str(processes)]
    assert evaluate.main(arguments) == 130
    said = capsys.readouterr().err
    assert said == f"interrupted: {evaluate.LEFT}\n" and "--resume" not in said


def _no_teacher(self, *_: object) -> None:
    self.results = {}


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        # A shell starts what is in its background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupted(process: subprocess.Popen[str], ready, seconds: float = 250) -> tuple[str, str]:
    """Press Ctrl-C when `ready()`; what the process said to that."""
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=seconds)
    assert process.returncode == 130, error
    assert "Traceback" not in error and error.count("interrupted: ") == 1
    return out, error[error.index("interrupted: ") :]


def test_an_evaluation_keeps_its_images_and_goes_on(small_config, tmp_path):
    slow = ["MODEL.LQN.PRESET", "distill", "MODEL.LQN.FIT.STEPS", "2000"]
    common = ["tools/train_net.py", "--eval-only", "--config", small_config]
    kept = tmp_path / "output" / "inference"

    def one_image_is_done() -> bool:
        return any(path.stat().st_size for path in kept.glob("*.jsonl"))

    _, said = interrupted(start(*common, *slow), one_image_is_done)
    done, total = map(int, said.removeprefix("interrupted: ").split(" images")[0].split(" of "))
    assert 0 < done < total == 10 and said.endswith("continue with --resume\n")
    lines = [line for path in kept.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == done and all(json.loads(line) for line in lines)  # none is torn


def test_a_training_ends_after_a_whole_iteration(
    small_config, tmp_path, script, monkeypatch, capsys
):
    from lqn_seg.engine.training.train import TeacherTrainer

    whole = TeacherTrainer.step

    def pressed_in_the_third(self) -> float:
        if self.iteration == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(self)

    monkeypatch.setattr(TeacherTrainer, "step", pressed_in_the_third)
    shape = ROOT / "configs" / "teachers" / "demo_eomt_small.json"
    overrides = [
        *("MODEL.LQN.TEACHER.CONFIG", str(shape), "MODEL.LQN.TEACHER.WEIGHTS", "", "SEED", "0"),
        *("DATASETS.TRAIN", '("demo_panoptic_train",)', "SOLVER.MAX_ITER", "50"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1"),
    ]
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config", str(small_config), *overrides])
    assert script("tools", "train_net").main() == 130
    checkpoint = tmp_path / "output" / "checkpoint.pt"
    said = f"interrupted: 3 of 50 iterations are in {checkpoint}; continue with --resume\n"
    assert capsys.readouterr().err.endswith(said) and checkpoint.is_file()


def test_a_data_set_is_judged_by_the_images_that_were_read(
    scenes_root, script, monkeypatch, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes_root))
    from lqn_seg.lab.validate import validate as module

    read, seen = module.read_ground_truth, []

    def reading(*arguments):
        seen.append(1)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return read(*arguments)

    monkeypatch.setattr(module, "read_ground_truth", reading)
    monkeypatch.setattr(sys, "argv", ["validate_dataset.py", "demo_panoptic_val"])
    assert script("tools", "validate_dataset").main() == 130
    said = capsys.readouterr()
    assert "SUBSET of 5: 2 images, 0 problems" in said.out and said.out.count("100.000000") >= 8
    assert said.err.endswith("interrupted: 2 of 5 images were checked\n")

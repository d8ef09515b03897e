"""`lqn-seg`: its sub-commands, and what they hand on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lqn_seg
from lqn_seg.cli import COMMANDS, command_of, main

ROOT = Path(__file__).parents[2]


def said(capsys, *words: str) -> tuple[int, str, str]:
    try:
        status = main(words)
    except SystemExit as end:
        status = int(end.code or 0)
    out, error = capsys.readouterr()
    return status, out, error


def test_the_commands_are_listed(capsys):
    status, out, _ = said(capsys, "--help")
    listed = re.findall(r"^  (\w+) {2,}\S", out, re.MULTILINE)
    assert status == 0 and listed[-len(COMMANDS) :] == [*COMMANDS]
    assert said(capsys)[0] == 2
    assert said(capsys, "--version")[1] == f"lqn-seg {lqn_seg.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    status, out, _ = said(capsys, command, "--help")
    assert status == 0 and out.startswith(f"usage: lqn-seg {command} ")
    assert re.search(rf"Examples:\n    lqn-seg {command}\b", out)


def test_a_wrong_command_is_one_sentence(capsys):
    status, _, error = said(capsys, "evla", "demo")
    assert status == 2 and "did you mean eval?" in error and error.count("\n") == 1


def test_a_configuration_stands_alone_or_behind_an_option(capsys):
    from lqn_seg.cli.evaluate import parse_arguments

    for words in (["demo"], ["--config", "demo"], ["--methods", "lqn", "demo"]):
        assert parse_arguments([*words, "SEED", "3"]).config_file == "demo"
    for words in ([], ["demo", "--config", "ade20k"]):
        with pytest.raises(SystemExit):
            parse_arguments(words)
    assert "name a configuration" in capsys.readouterr().err


def test_a_teacher_is_trained_by_what_its_configuration_names():
    from lqn_seg.cli.train import trainer_for
    from lqn_seg.config.nodes import load_any_cfg

    kinds = {
        "demo_teacher": "TeacherTrainer",
        "cityscapes256_linear": "LinearTrainer",
        "classification/demo_teacher": "ClipTrainer",
    }
    for name, kind in kinds.items():
        assert trainer_for(load_any_cfg(name, device="cpu")).__name__ == kind


def test_a_training_says_first_what_it_will_do():
    from lqn_seg.cli.train import plan
    from lqn_seg.config.nodes import load_any_cfg

    backbone = ["MODEL.LQN.TRAIN.BACKBONE", "facebook/dinov2-small"]
    text = plan(load_any_cfg("demo_teacher", device="cpu"))
    assert "training: an EoMT, from random weights (configs/teachers/demo_eomt.json)" in text
    for words in ("data: demo_panoptic_train", "4800 of 32 images", "every 200 iterations"):
        assert words in text
    for words in ("output/demo_teacher/checkpoint.pt", "output/demo_teacher/teacher"):
        assert words in text
    linear = plan(load_any_cfg("cityscapes256_linear", backbone, "cpu"))
    assert "a linear head on a frozen DINOv2, from facebook/dinov2-small" in linear


def test_tools_are_doors_to_the_same_functions(script):
    doors = {path.stem: path for path in (ROOT / "tools").glob("*.py")}
    mains = {command_of(name) for name in COMMANDS}
    for name in doors.keys() - {"train_net"}:
        assert script("tools", name).main in mains


def test_predict_says_what_is_missing_before_it_loads(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("lqn_seg.api.loading.load", None)
    status, _, error = said(capsys, "predict", "no.jpg", "--out", str(tmp_path))
    assert (status, error) == (2, "error: there is no file, folder or match of no.jpg\n")
    code = "import sys; from lqn_seg.cli.predict import main; status = main(sys.argv[1:]); "
    code += "print(status, 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "no.jpg", "--out", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "2 False\n"


def test_predict_predicts(capsys, tmp_path):
    scene = ROOT / "datasets" / "demo" / "val" / "000000.png"
    (tmp_path / "cut.png").write_bytes(b"")
    words = ["--out", str(tmp_path / "out"), "--method", "teacher", "--threads", "1"]
    status, out, error = said(capsys, "predict", str(scene), str(tmp_path / "cut.png"), *words)
    assert status == 2 and "1 file predicted, 0 already there, 1 left out" in out
    assert "is empty (0 bytes)" in error
    assert (tmp_path / "out" / "000000_overlay.png").is_file()
    status, out, _ = said(capsys, "predict", str(scene), "--resume", *words)
    assert status == 0 and "0 files predicted, 1 already there" in out

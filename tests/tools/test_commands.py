"""The commands as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data import catalog
from lqn_seg.teachers import eomt

ROOT = Path(__file__).parents[2]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def typed(script, monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run` without the seconds that a process of its own takes to start."""

    def call(file: str, *arguments: object, **environment: str):
        folder, name = file.split("/")
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        capsys.readouterr()
        try:
            status = script(folder, Path(name).stem).main()
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess([file], status, said.out, said.err)

    return call


SCRIPTS = [*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")]


@pytest.mark.parametrize("path", sorted(SCRIPTS), ids=lambda p: p.name)
def test_every_tool_explains_itself(path, typed):
    result = typed(f"{path.parent.name}/{path.name}", "--help")
    assert result.returncode == 0, result.stderr
    command = "lqn-seg " if path.parent.name == "tools" else f"python datasets/{path.name}"
    assert f"Examples:\n    {command}" in result.stdout
    unexplained = re.findall(r"^  (-[^ ]+(?: [A-Z{]\S*)?)$\n(?!    )", result.stdout, re.MULTILINE)
    assert not unexplained, unexplained


def test_missing_data_of_a_real_config_is_one_sentence(tmp_path, typed):
    config = "configs/ade20k_lqn.yaml"
    result = typed(
        "tools/train_net.py", "--eval-only", "--config", config, DETECTRON2_DATASETS=str(tmp_path)
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "ADEChallengeData2016" in result.stderr and str(tmp_path) in result.stderr


def test_missing_weights_of_a_real_config_are_one_sentence(tmp_path):
    images = tmp_path / "ADEChallengeData2016" / "images" / "validation"
    labels = tmp_path / "ADEChallengeData2016" / "annotations" / "validation"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(images / "ADE_val_00000001.jpg")
    Image.fromarray(np.ones((30, 40), np.uint8)).save(labels / "ADE_val_00000001.png")
    result = run(
        "tools/train_net.py",
        "--eval-only",
        "--config",
        "configs/ade20k_lqn.yaml",
        DETECTRON2_DATASETS=str(tmp_path),
        HF_HOME=str(tmp_path),
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "tue-mps/ade20k_semantic_eomt_large_512 could not be loaded" in result.stderr
    shape = "configs/teachers/ade20k_semantic_512.json"
    override = f"MODEL.LQN.TEACHER.WEIGHTS '' MODEL.LQN.TEACHER.CONFIG {shape}"
    assert override in result.stderr and (ROOT / shape).is_file()


def test_visualize_draws_ones_own_images_and_names_bad_ones(small_config, tmp_path, typed):
    own = tmp_path / "own"
    own.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(own / "photo.jpg")
    (own / "cut.png").write_bytes(b"\x89PNG\r\n")
    output = tmp_path / "out"
    result = typed(
        "tools/visualize.py",
        "panels",
        *("--config", small_config, "--input", own, "--output", output),
        *("--methods", "teacher,lqn"),
    )
    assert result.returncode == 2  # one of the two could not be read
    assert "cut.png" in result.stderr and "Traceback" not in result.stderr
    listed = re.findall(r"^written: (\S+)", result.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(map(str, output.iterdir()))
    panel = np.asarray(Image.open(output / "panel_photo.png"))
    assert panel.shape[1] > 3 * 90  # image, teacher, LQN, difference side by side
    assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 50


def test_visualize_names_an_empty_folder(small_config, tmp_path, typed):
    (tmp_path / "empty").mkdir()
    result = typed(
        "tools/visualize.py",
        "panels",
        *("--config", small_config, "--input", tmp_path / "empty", "--output", tmp_path),
    )
    assert result.returncode == 2 and "holds no image" in result.stderr


def test_the_detectron2_engine_is_named_where_it_is_missing(small_config, typed):
    with contextlib.suppress(ImportError):
        import detectron2.config  # noqa: F401

        pytest.skip("Detectron2 is installed here")
    result = typed(
        "tools/train_net.py", "--eval-only", "--engine", "detectron2", "--config", small_config
    )
    assert result.returncode == 2 and "needs Detectron2" in result.stderr


def test_a_wrong_study_is_one_sentence(tmp_path, typed):
    path = tmp_path / "wrong.yaml"
    path.write_text("DATASETS: demo_panoptic_val\n")
    result = typed("tools/study.py", path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "did you mean 'DATASET'" in result.stderr


def test_calibrate_writes_a_file_or_one_sentence(small_config, scenes_root, tmp_path, typed):
    actual, empty = tmp_path / "found.safetensors", tmp_path / "empty"
    empty.mkdir()
    common = ("tools/calibrate.py", "--config", small_config, "--output", actual, "--images")
    result = typed(*common, empty)
    assert result.returncode == 2
    assert result.stderr == f"error: folder {empty} holds no image\n"
    result = typed(*common, scenes_root / "demo" / "train", "--max", 6)
    assert result.returncode == 0 and "3 passes" in result.stderr and actual.is_file()
    assert result.stdout.startswith("teacher: eomt from ")
    *_, path, cost = result.stdout.splitlines()
    assert path == f"calibration: {actual}"
    number = r"[\d.]+"
    assert re.fullmatch(
        rf"6 images in {number} s, {number} images/s, {number} GMACs/s; "
        rf"about \d+ s for an EoMT-L at 512 px on this machine",
        cost,
    )


def test_validate_dataset_prints_100_and_names_what_is_wrong(
    scenes_root, tmp_path, script, monkeypatch, capsys, typed
):
    monkeypatch.setattr(catalog, "_registered", {})
    demo = tmp_path / "demo"
    shutil.copytree(scenes_root / "demo", demo)
    entry = {
        "NAME": "mine",
        "IMAGE_DIR": str(demo / "val"),
        "PANOPTIC_DIR": str(demo / "panoptic_val"),
        "PANOPTIC_JSON": str(demo / "annotations" / "panoptic_val.json"),
    }
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({"MODEL": {"LQN": {"DATASETS": [entry]}}}))
    tool = script("tools", "validate_dataset")
    command = ["validate_dataset.py", "mine", "--config-file", str(config)]
    monkeypatch.setattr(sys, "argv", command)
    assert tool.main() == 0
    printed = capsys.readouterr().out
    assert "mine: 5 images, 0 problems" in printed and printed.count("100.000000") >= 8
    (demo / "panoptic_val" / "000001.png").unlink()
    assert tool.main() == 1
    assert "problem: image file" in capsys.readouterr().out
    result = typed("tools/validate_dataset.py", "miner")
    assert result.returncode == 2 and result.stderr.startswith("error: unknown data set 'miner'")


def test_convert_writes_a_directory_or_one_sentence(teacher_folder, tmp_path, typed):
    output = tmp_path / "deep" / "converted"
    result = typed(
        "tools/convert_checkpoint.py", teacher_folder, output, "--image-size", "32", "64"
    )
    assert result.returncode == 0, result.stderr
    assert "32x64 px" in result.stdout and "masked attention off" in result.stdout
    assert (output / "model.safetensors").is_file()
    assert list(output.parent.iterdir()) == [output]  # nothing is left of the work
    again = typed("tools/convert_checkpoint.py", teacher_folder, output)
    assert again.returncode == 2 and "already exists" in again.stderr
    missing = typed("tools/convert_checkpoint.py", tmp_path / "nowhere.bin", tmp_path / "other")
    assert missing.returncode == 2 and missing.stderr.startswith("error: INPUT: ")


def test_what_is_converted_keeps_what_it_says_of_its_pixels(teacher_for, tmp_path, typed):
    folder, said = teacher_for(tmp_path / "in", 3), {"image_mean": [0.5] * 3, "resample": 3}
    said |= {"image_std": [0.25] * 3, "size": {"shortest_edge": 32}, "do_split_image": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    result = typed("tools/convert_checkpoint.py", folder, tmp_path / "out")
    assert "bicubic, mean 0.5 0.5 0.5, std 0.25 0.25 0.25" in result.stdout, result.stderr
    assert (
        eomt.load_eomt(str(tmp_path / "out")).preprocessing
        == eomt.load_eomt(str(folder)).preprocessing
    )


def test_what_is_converted_is_whole_or_not_there(teacher_folder, tmp_path, typed, monkeypatch):
    command = ("tools/convert_checkpoint.py", teacher_folder)
    load, loaded = eomt.load_eomt, []

    def another_the_second_time(*arguments):
        loaded.append(load(*arguments))
        if len(loaded) == 2:
            loaded[1].model.class_predictor.bias.data += 1
        return loaded[-1]

    before = os.umask(0o027)
    try:
        assert typed(*command, tmp_path / "group").returncode == 0
        monkeypatch.setattr(eomt, "load_eomt", another_the_second_time)
        result = typed(*command, tmp_path / "other")
    finally:
        os.umask(before)
    assert (tmp_path / "group").stat().st_mode & 0o777 == 0o750  # as the user's umask has it
    assert result.returncode == 2 and "would not give the same logits as INPUT" in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "group"]
    (tmp_path / "file").write_text("")
    result = typed(*command, tmp_path / "file" / "output")
    assert result.returncode == 2 and "OUTPUT: cannot write" in result.stderr


def test_classification_methods_from_the_command_line(tmp_path, typed):
    result = typed(
        "tools/classify.py",
        "--config",
        "configs/classification/demo.yaml",
        "--methods",
        "lqn,zero",
        *("MODEL.LQN.EVAL.MAX_IMAGES", 2, "CLASSIFICATION.VIEWS", 4),
        *("MODEL.LQN.EVAL.CORRUPTIONS", "('fog',)", "OUTPUT_DIR", tmp_path),
        LQN_SEG_CACHE=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    for shown in ("LQN ", "ZERO", "zero-shot, one prompt", "teacher patch mean", "mean of corr"):
        assert shown in result.stdout
    assert (tmp_path / "inference" / "results.json").is_file()
    assert list((tmp_path / "text").glob("*.safetensors"))


def test_classification_without_its_data_or_weights_is_one_sentence(tmp_path, typed):
    config = "configs/classification/imagenet_vit_b16.yaml"
    result = typed("tools/classify.py", "--config", config, DETECTRON2_DATASETS=str(tmp_path))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "imagenet/images/val" in result.stderr and str(tmp_path) in result.stderr
    result = run(
        *("tools/classify.py", "--config", config, "DATASETS.TEST", "('demo_objects_val',)"),
        HF_HOME=str(tmp_path),
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "ViT-B-16-quickgelu (openai) could not be loaded" in result.stderr

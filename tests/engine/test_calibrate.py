"""Calibration from a configuration and a folder of images."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from datetime import date, datetime, timezone
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lqn_seg import __version__
from lqn_seg.adapt.calibration import FILE_NAME, calibrate
from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.images import read_image
from lqn_seg.engine import calibrate as calibrate_module
from lqn_seg.engine.build import build_calibration, build_teacher
from lqn_seg.engine.calibrate import calibrate_teacher
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import PaddedWindow
from lqn_seg.teachers.files import checkpoint_hash


@pytest.fixture
def folder(tmp_path, scenes_root) -> Path:
    """Eight scenes in folders of their own, and something that is no image."""
    scenes = sorted(p for p in (scenes_root / "demo" / "train").rglob("*.png"))
    scenes = [p for p in scenes if read_image(p).std() > 0][:8]
    for number, scene in enumerate(scenes):
        (tmp_path / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(scene, tmp_path / "images" / str(number % 2) / f"{number}.PNG")
    (tmp_path / "images" / "notes.txt").write_text("no image\n")
    return tmp_path / "images"


def test_a_folder_is_calibrated_as_its_images_are_evaluated(small_config, folder, tmp_path):
    output = tmp_path / "found.safetensors"
    made = calibrate_teacher(str(small_config), folder, quantile=0.1, output=output)
    assert (made.path, made.images, made.inputs, made.sizes) == (output, 8, 8, {(96, 96)})
    cfg = load_cfg(str(small_config), ["MODEL.LQN.CALIBRATION", str(output)])
    teacher = build_teacher(cfg)
    result = build_calibration(cfg, teacher)
    crops = []
    for path in sorted(folder.rglob("*.PNG")):
        image = torch.from_numpy(read_image(path)).movedim(2, 0)
        layout = PaddedWindow.of((image.shape[1], image.shape[2]), teacher.image_size)
        crops.append(layout.crops(image).float() / 255)
    direct = calibrate(teacher, lambda: [torch.cat(crops)], 0.1)
    assert len(crops) == 8 and result.layers.keys() == direct.layers.keys()
    assert result.undamaged == pytest.approx(direct.undamaged, rel=1e-3)
    torch.testing.assert_close(result.pixels, direct.pixels)
    for layer, clean in result.layers.items():
        torch.testing.assert_close(clean.gain, direct.layers[layer].gain)
    with safe_open(output, "pt") as file:
        about = json.loads(file.metadata()["calibration"])
    assert about["images"] == 8 and about["inference"] == "pad" and about["quantile"] == 0.1


def test_images_at_equal_distances_are_used(small_config, folder, tmp_path):
    files = [tmp_path / "three", tmp_path / "whole"]
    calibrate_teacher(str(small_config), folder, most=3, output=files[0])
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png")
    for path in {*images} - {images[k * len(images) // 3] for k in range(3)}:
        path.unlink()
    calibrate_teacher(str(small_config), folder, output=files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_file_lies_beside_local_weights_and_is_found_there(
    small_config, folder, teacher_folder, tmp_path
):
    weights = tmp_path / "weights"
    shutil.copytree(teacher_folder, weights)
    overrides = ["MODEL.LQN.TEACHER.WEIGHTS", str(weights)]
    cfg = load_cfg(str(small_config), overrides)
    assert build_calibration(cfg, build_teacher(cfg)) is None
    made = calibrate_teacher(str(small_config), folder, overrides)
    assert made.path == weights / FILE_NAME
    assert build_calibration(cfg, build_teacher(cfg)) is not None


def test_what_is_missing_is_named(small_config, folder, tmp_path):
    with pytest.raises(InputError, match="holds no image"):
        calibrate_teacher(str(small_config), tmp_path / "nowhere", output=tmp_path / "a")
    with pytest.raises(InputError, match="--output is required"):
        calibrate_teacher(str(small_config), folder, ["MODEL.LQN.TEACHER.WEIGHTS", "some/hub-id"])
    with pytest.raises(InputError, match="at least two images, not 1"):
        calibrate_teacher(str(small_config), folder, most=1, output=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    cfg = load_cfg(str(small_config), ["MODEL.LQN.CALIBRATION", str(tmp_path / "a")])
    with pytest.raises(InputError, match=r"MODEL\.LQN\.CALIBRATION: there is no file"):
        build_calibration(cfg, build_teacher(cfg))


def test_a_file_says_where_it_is_from_and_warns_at_another_checkpoint_or_precision(
    small_config, folder, teacher_folder, tmp_path
):
    found = tmp_path / "found.safetensors"
    Image.open(folder / "0" / "0.PNG").crop((0, 0, 64, 48)).save(folder / "0" / "small.png")
    calibrate_teacher(str(small_config), folder, output=found)
    with safe_open(found, "pt") as file:
        about = json.loads(file.metadata()["calibration"])
    weights = teacher_folder / "model.safetensors"
    made_for = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    assert about["checkpoint"] == made_for and about["from"] == "images"
    assert (about["images"], about["height"], about["width"]) == (9, [48, 96], [64, 96])
    assert about["version"] == __version__
    assert abs(date.fromisoformat(about["date"]) - datetime.now(timezone.utc).date()).days < 2

    def use(weights: Path, precision: str = "float32") -> list[str]:
        overrides = ["MODEL.LQN.TEACHER.WEIGHTS", str(weights), "MODEL.LQN.CALIBRATION", str(found)]
        overrides += ["MODEL.LQN.TEACHER.PRECISION", precision]
        cfg = load_cfg(str(small_config), overrides)
        teacher = build_teacher(cfg)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert build_calibration(cfg, teacher) is not None
        return [str(warning.message) for warning in caught]

    assert use(teacher_folder) == use(weights.parent) == []
    (sentence,) = use(teacher_folder, "bfloat16")
    assert "was made in float32, and the teacher runs in bfloat16" in sentence
    other = tmp_path / "other"
    shutil.copytree(teacher_folder, other)
    state = load_file(weights)
    save_file({name: tensor + 1e-3 for name, tensor in state.items()}, other / weights.name)
    (sentence,) = use(other)
    assert str(found) in sentence and str(other / weights.name) in sentence
    assert made_for in sentence and "\n" not in sentence
    tensors = load_file(found)  # an older file does not know its checkpoint
    del about["checkpoint"]
    save_file(tensors, found, {"calibration": json.dumps(about)})
    assert use(other) == []


@pytest.mark.parametrize("teacher", ["demo", "demo_objects"])
def test_shipped_calibrations_are_of_their_teachers(teacher):
    folder = Path(__file__).parents[2] / "datasets" / teacher / "teacher"
    with safe_open(folder / FILE_NAME, "pt") as file:
        about = json.loads(file.metadata()["calibration"])
    assert about["checkpoint"] == checkpoint_hash(folder) != ""
    assert about["images"] == 2048 and {"height", "width", "date", "version"} <= about.keys()


@pytest.mark.parametrize("batch", [1, 3])
def test_what_cannot_be_read_is_named_and_left_out(
    small_config, folder, tmp_path, capsys, monkeypatch, batch
):
    monkeypatch.setattr(calibrate_module, "BATCH", batch)
    whole, spoilt = tmp_path / "whole.st", tmp_path / "spoilt.st"
    calibrate_teacher(str(small_config), folder, output=whole)
    (folder / "0" / "0a.jpg").touch()
    (folder / "0" / "folder.tiff").mkdir()
    (folder / "1" / "zz.webp").symlink_to(folder / "nowhere.webp")
    (folder / "1" / "._1.PNG").write_bytes(b"\x00\x05\x16\x07")
    capsys.readouterr()
    calibrate_teacher(str(small_config), folder, output=spoilt)
    printed = capsys.readouterr().err
    for words in (
        *("0a.jpg is empty", "folder.tiff is a folder", "zz.webp does not exist", "._1.PNG"),
        "3 of 11 images LEFT OUT",
    ):
        assert printed.count(words) == 1  # though there are three passes
    assert spoilt.read_bytes() == whole.read_bytes()
    with pytest.raises(InputError, match=r"hidden files, .*_1\.PNG"):
        calibrate_teacher(str(small_config), folder, output=spoilt, strict=True)
    (folder / "1" / "._1.PNG").unlink()
    with pytest.raises(InputError, match=r"0a\.jpg is empty"):
        calibrate_teacher(str(small_config), folder, output=spoilt, strict=True)


def test_images_of_a_data_set_must_have_their_records_size(
    small_config, scenes_root, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "data"
    shutil.copytree(scenes_root, root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    first = get_dataset("demo_panoptic_train").records()[0]
    Image.open(first["file_name"]).crop((0, 0, 96, 60)).save(first["file_name"])
    calibrate_teacher(str(small_config), "demo_panoptic_train", output=tmp_path / "a")
    printed = capsys.readouterr().err
    assert "is 60 x 96 (height x width), but its annotation says 96 x 96" in printed
    assert "1 of 8 images LEFT OUT" in printed

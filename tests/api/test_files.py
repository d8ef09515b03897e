"""Files, folders, globs and videos; what is broken, what is there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import lqn_seg
from lqn_seg.api.files import predict_files
from lqn_seg.api.model import Model
from lqn_seg.data.images import read_image
from lqn_seg.data.inputs import find_files
from lqn_seg.errors import InputError


@pytest.fixture
def photos(scenes, tmp_path) -> Path:
    """Two images, one of them in a folder below, and a broken one."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    shutil.copy(scenes[0], folder / "a.png")
    shutil.copy(scenes[1], folder / "below" / "b.png")
    (folder / "cut.png").write_bytes(scenes[0].read_bytes()[:200])
    return folder


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of the images that a model has seen."""
    seen: list[str] = []
    whole = Model.results

    def counting(self, pictures):
        seen.extend(picture.file for picture in pictures)
        return whole(self, pictures)

    monkeypatch.setattr(Model, "results", counting)
    return seen


def test_files_folders_and_globs_are_found_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    inputs = ["a.png", str(photos), "below/*.png", "**/b.png"]
    assert [file.name for file in find_files(inputs)] == ["a.png", "below/b.png", "cut.png"]
    with pytest.raises(InputError, match=r"there is no file, folder or match of no\*.png"):
        find_files(["no*.png"])
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no image and no video"):
        find_files(["empty"])


def test_a_broken_file_is_left_out_and_named(demo, photos, tmp_path, capsys, counted):
    summary = predict_files(demo, [str(photos)], tmp_path / "out")
    assert (summary.done, summary.failed) == (2, 1)
    assert "left out: image file" in (said := capsys.readouterr().err) and "cut.png" in said
    records = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    assert [record["file"] for record in records] == ["a.png", "below/b.png"] == counted
    with pytest.raises(InputError, match=r"cut.png"):
        predict_files(demo, [str(photos)], tmp_path / "strict", strict=True)
    with pytest.raises(InputError, match="no file could be predicted"):
        predict_files(demo, [str(photos / "cut.png")], tmp_path / "none")


def test_a_run_goes_on_where_it_was_left(demo, photos, scenes, tmp_path, counted):
    out = tmp_path / "out"
    (photos / "cut.png").unlink()
    predict_files(demo, [str(photos / "a.png")], out)
    summary = predict_files(demo, [str(photos)], out, resume=True)
    assert (summary.done, summary.skipped, counted) == (1, 1, ["a.png", "below/b.png"])
    shutil.copy(scenes[2], photos / "a.png")
    next(out.glob("below-b-*_labels.png")).unlink()
    summary = predict_files(demo, [str(photos)], out, resume=True)
    assert (summary.done, summary.skipped) == (2, 0)  # one has changed, one lacks a file
    assert predict_files(demo, [str(photos)], out, resume=True).skipped == 2
    other = lqn_seg.load("demo", compare=demo.about.methods, overrides=("MODEL.LQN.FIT.STEPS", 9))
    with pytest.raises(InputError, match=r"of another run \(it differs in: settings\)"):
        predict_files(other, [str(photos)], out, resume=True)


def test_what_is_done_stays_after_ctrl_c(demo, photos, tmp_path, monkeypatch):
    whole, calls = Model.results, []

    def pressed(self, pictures):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, pictures)

    monkeypatch.setattr(Model, "results", pressed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(demo, [str(photos)], tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["images"]) == 1


def test_a_video_becomes_a_video_and_json(demo, scenes, tmp_path, counted):
    video, out = tmp_path / "drive.avi", tmp_path / "out"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 96))
    for scene in (*scenes, scenes[0]):
        writer.write(read_image(scene)[..., ::-1])
    writer.release()
    assert predict_files(demo, [str(video)], out, every=2).done == 1
    content = json.loads((out / "drive.json").read_text())
    assert [(f["frame"], f["seconds"]) for f in content["frames"]] == [(0, 0.0), (2, 0.2)]
    assert all(f["segments"] and f["mean_confidence"] > 0.5 for f in content["frames"])
    reader = cv2.VideoCapture(str(out / "drive_overlay.mp4"))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 2 and reader.get(cv2.CAP_PROP_FPS) == 5
    _, frame = reader.read()
    difference = np.abs(frame[..., ::-1].astype(int) - demo(read_image(scenes[0])).overlay)
    assert difference.mean() < 25  # two lossy codecs; another frame is 60 away
    assert predict_files(demo, [str(video)], out, resume=True, every=2).skipped == 1
    assert len(counted) == 3
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="no file could be predicted"):
        predict_files(demo, [str(tmp_path / "broken.mp4")], out)

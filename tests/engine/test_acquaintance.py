"""What a teacher cannot know is said: its classes, and pictures unlike all it was calibrated on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from lqn_seg.adapt.familiarity import NEAR, UNLIKE, UNLIKE_DAMAGE, Familiarity
from lqn_seg.data.corruptions import CORRUPTIONS, corrupt
from lqn_seg.data.images import read_image
from lqn_seg.engine.probe import UNLIKE as WORDS
from lqn_seg.engine.probe import Probe, is_unlike, known_classes
from lqn_seg.engine.studio import Studio
from lqn_seg.lab.explorer.server import open_explorer
from lqn_seg.lab.inspect.visualize import draw_panels
from lqn_seg.visualization.files import png_bytes
from lqn_seg.visualization.panels import broken, captioned

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs" / "demo_lqn.yaml")
SCENES = sorted((ROOT / "datasets" / "demo" / "val").glob("*.png"))


@pytest.fixture(scope="module")
def demo():
    studio = Studio(DEMO)
    return studio.teacher, studio.calibration


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).movedim(2, 0)


def scribble(seed: int) -> np.ndarray:
    """No scene of the demo: sixty lines of any colours across one another."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (96, 96), (60, 70, 90))
    for _ in range(60):
        color = tuple(random.integers(0, 256, 3).tolist())
        ImageDraw.Draw(picture).line(random.integers(0, 96, 4).tolist(), color, 2)
    return np.asarray(picture)


def tiles(seed: int) -> np.ndarray:
    """Neither: large tiles of one colour each, which no corruption makes of a scene."""
    colors = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.repeat(np.repeat(colors, 16, 0), 16, 1)


def test_scenes_are_known_whatever_is_done_to_them(demo):
    for k, path in enumerate(SCENES[:16]):
        scene = read_image(path)
        assert not is_unlike(*demo, tensor(scene))
        name = CORRUPTIONS[k % len(CORRUPTIONS)]
        assert not is_unlike(*demo, tensor(corrupt(scene, name, 5, 0))), name


def test_what_is_no_scene_is_not_known(demo):
    assert all(is_unlike(*demo, tensor(scribble(seed))) for seed in range(5))
    assert all(is_unlike(*demo, tensor(tiles(seed))) for seed in range(5))
    teacher, calibration = demo
    assert not is_unlike(teacher, None, tensor(scribble(0)))  # nobody has measured anything
    unmeasured = replace(calibration, distance=float("inf"))
    assert not is_unlike(teacher, unmeasured, tensor(scribble(0)))


def test_photographs_are_mostly_not_known(demo):
    folder = Path(os.environ.get("LQN_SEG_REAL_DATA", ""), "coco", "train2017")
    if "LQN_SEG_REAL_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("LQN_SEG_REAL_DATA names no folder with photographs")
    photographs = sorted(folder.glob("*.jpg"))[:40]
    assert sum(is_unlike(*demo, tensor(read_image(path))) for path in photographs) > 16


def test_the_distance_is_that_of_the_formula(demo):
    """Written out: components of aligned tokens in units of the clean variance, median, mean."""
    teacher, calibration = demo
    familiarity, aligned = Familiarity(calibration), {}

    def hook(layer, tokens):
        aligned[layer] = familiarity(layer, tokens)
        return aligned[layer]

    scene = read_image(SCENES[0])[:64]  # 8 of the 12 rows of tokens
    probe = Probe(teacher, [tensor(scene)], hook=hook)
    assert probe.shown == (8, 12)
    typical = []
    for layer in sorted(calibration.layers)[1:]:
        clean = calibration.layers[layer]
        parts = (aligned[layer][0].double() - clean.centre) @ clean.basis.double()
        low, high = clean.mean.double()
        log_deviation = clean.deviation.double().mean(0)
        variance = (2 * log_deviation).exp() + ((high - low) / 4) ** 2
        units = ((parts - (low + high) / 2) ** 2 / variance)[:8, :, clean.signal]
        typical.append(units.mean(-1).flatten().median())
    expected = torch.stack(typical).mean()
    assert familiarity.distance((8, 12)).item() == pytest.approx(expected.item(), rel=1e-4)
    damage = familiarity.damage.item()
    most = UNLIKE * calibration.distance + UNLIKE_DAMAGE * damage
    assert bool(familiarity.unlike((8, 12))) == (expected.item() > most or damage > 2.5)
    assert 0 < NEAR < 1


def test_classes_in_words():
    assert known_classes(["a", "b"]) == "this teacher knows only 2 classes: a, b"
    text = known_classes([str(k) for k in range(1000)], "this run")
    assert text.startswith("this run knows only 1000 classes") and text.endswith("and 984 more")


def test_a_panel_of_ones_own_picture_says_what_the_teacher_knows(tmp_path, capsys):
    for name, pixels in (("tiles", scribble(0)), ("scene", read_image(SCENES[0]))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    inputs = [str(tmp_path / f"{name}.png") for name in ("tiles", "scene")]
    list(draw_panels(Studio(DEMO, tmp_path, inputs, methods=["teacher", "restore"])))
    printed = "".join(capsys.readouterr())
    assert "this teacher knows only 13 classes: disc, ball, ring" in printed
    assert f"tiles: {WORDS}" in printed and f"scene: {WORDS}" not in printed
    tall, short = (np.asarray(Image.open(tmp_path / f"panel_{n}.png")) for n in ("tiles", "scene"))
    red = (tall.astype(int)[..., 0] - tall[..., 1] > 120)[:30]
    assert tall.shape[0] > short.shape[0] and red.any()


def test_the_explorer_says_it():
    explorer = open_explorer(DEMO, {}, "", ["MODEL.LQN.FIT.STEPS", "1"])
    reply = explorer.post("/api/upload", png_bytes(scribble(0)), "tiles.png")
    upload = json.loads(reply[1])["upload"]
    for request, unlike in (
        ({"upload": upload}, True),
        ({"scene": next(iter(explorer.scenes))}, False),
    ):
        job = explorer.jobs[explorer.run(request)]
        job.work.thread.join()
        status = job.status()
        assert (WORDS in status["unlike"]) == bool(status["unlike"]) == unlike
        assert status["warnings"] == []
        assert status["known"].startswith("this teacher knows only 13 classes")


def test_captions_are_broken_to_the_width():
    font = ImageFont.load_default(14)
    lines = broken("one two three " * 20, font, 150)
    assert " ".join(lines).split() == ("one two three " * 20).split()
    assert max(font.getlength(line) for line in lines) <= 150 < sum(map(font.getlength, lines))
    assert broken("unbreakable" * 9, font, 50) == ["unbreakable" * 9]
    picture = np.zeros((20, 200, 3), np.uint8)
    assert captioned(picture, []) is picture
    drawn = captioned(picture, ["a sentence of several words, longer than the picture is wide"])
    assert drawn.shape[0] > 20 + 2 * 14 and (drawn[-20:] == 0).all() and drawn.dtype == np.uint8

"""Segmentation in three lines, held against the parts that it is made of."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lqn_seg
from lqn_seg.adapt.ineffective import IneffectiveMethodWarning, _said
from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.config.nodes import load_cfg, method_config, register_method
from lqn_seg.data.corruptions import corrupt
from lqn_seg.data.images import read_image
from lqn_seg.engine.calibrate import calibrate_teacher
from lqn_seg.errors import InputError
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "datasets" / "demo" / "teacher"


def same(first, second) -> bool:
    parts = [(r.semantic, r.confidence, r.panoptic.ids) for r in (first, second)]
    return all(np.array_equal(a, b) for a, b in zip(*parts))


@pytest.fixture(scope="module")
def output(scenes):
    """What the teacher and its head say of the first scene, without a configuration."""
    teacher = load_eomt(str(TEACHER))
    config = SegmentationConfig(instances=True)
    segmenter = Segmenter(
        teacher, EomtHead(teacher.model), {"t": None}, frozenset(range(8)), config
    )
    image = torch.from_numpy(read_image(scenes[0])).movedim(2, 0)
    return segmenter([image])[0]["t"].output


def test_a_result_is_what_teacher_and_head_say(demo, scenes, output):
    result = demo(scenes[0]).compared["teacher"]
    scores = output["sem_seg"].numpy()
    assert np.array_equal(result.semantic, scores.argmax(0))
    assert np.allclose(result.confidence, scores.max(0) / scores.sum(0), atol=1e-6)
    ids, segments = output["panoptic_seg"]
    assert np.array_equal(result.panoptic.ids, ids.numpy())
    for ours, theirs in zip(result.panoptic.segments, segments, strict=True):
        assert theirs.items() <= ours.items()
        assert ours["class"] == result.classes[theirs["category_id"]]
        assert ours["area"] == int((ids == theirs["id"]).sum())
    assert torch.equal(result.instances.pred_masks, output["instances"].pred_masks)
    assert torch.equal(result.instances.scores, output["instances"].scores)


def test_every_kind_of_image_is_the_same_image(demo, scenes, tmp_path):
    pixels = read_image(scenes[0])
    turned = Image.fromarray(np.rot90(pixels))
    turned.getexif()[0x0112] = 6  # turn it clockwise to see it upright
    kinds = [str(scenes[0]), Image.open(scenes[0]), pixels, torch.from_numpy(pixels), turned]
    expected = demo(scenes[0])
    for image in kinds:
        assert same(demo(image), expected)


def test_what_is_shipped_is_found_from_anywhere(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = "datasets/demo/val/000000.png"
    model = lqn_seg.load("datasets/demo/teacher", method="teacher", threads=1)
    assert len(model.classes) == 13 and demo(scene).file == model(scene).file == "000000.png"


def test_images_of_different_sizes_come_in_lists(demo, scenes):
    pixels = read_image(scenes[1])
    images = [scenes[0], pixels[:60, :90], Image.fromarray(pixels[:80])]
    together = demo(images)
    assert [r.semantic.shape for r in together] == [(96, 96), (60, 90), (80, 96)]
    assert [r.file for r in together] == ["000000.png", "image-1.png", "image-2.png"]
    assert all(same(result, demo(image)) for result, image in zip(together, images))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("nowhere.jpg", "image file nowhere.jpg does not exist"),
        ("datasets/demo/val", "val is a folder: pass a list of its files"),
        (3, "an image must be a path, a PIL image, an array or a tensor, not int"),
        (np.zeros((4, 4, 3)), r"must be \(height, width, 3\) uint8 RGB, got float64 \(4, 4, 3\)"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), r"channels come last: .permute\(1, 2, 0\)"),
        (np.zeros((3, 4, 5), np.uint8), r"channels come last: .transpose\(1, 2, 0\)"),
    ],
)
def test_what_is_no_image_is_one_sentence(demo, image, said):
    with pytest.raises(InputError, match=said):
        demo(image)
    with pytest.raises(InputError, match=said):
        demo([image])


def test_methods_stand_side_by_side(demo, scenes):
    foggy = corrupt(read_image(scenes[0]), "contrast", 3)
    result = demo(foggy)
    assert result.method == "lqn" and list(result.compared) == ["teacher", "restore", "lqn"]
    assert result.compared["lqn"] is result
    assert not same(result, result.compared["teacher"])
    width = result.alone().picture.shape[1]
    assert result.picture.shape[1] > 3 * width  # image, three methods, difference
    assert str(result).startswith("image-0.png by lqn: ")


def test_large_images_are_segmented_smaller_and_enlarged(scenes):
    model = lqn_seg.load("demo", method="teacher", threads=1, max_side=48)
    result = model(scenes[0])
    maps = (result.semantic, result.panoptic.ids, result.confidence)
    for values in (*maps, *result.instances.pred_masks.numpy()):
        assert values.shape == (96, 96)
        assert np.array_equal(values, values[::2, ::2].repeat(2, 0).repeat(2, 1))
    assert sum(s["area"] for s in result.panoptic.segments) == (result.panoptic.ids > 0).sum()


def test_a_folder_without_calibration_warns_once_until_it_has_one(
    scenes, teacher_folder, tmp_path, monkeypatch
):
    _said.clear()
    small = ("MODEL.LQN.STUDENT.INPUT_SIZE", 32, "MODEL.LQN.STUDENT.STRIDE", 8)
    model = lqn_seg.load(teacher_folder, threads=1, overrides=small)
    assert len(model.classes) == 13 and not model.is_calibrated
    with pytest.warns(IneffectiveMethodWarning, match="calibrate"):
        model(scenes[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(scenes[0])
    file = tmp_path / "found.safetensors"
    assert model.calibrate(scenes[0].parent, save=file, most=6) is model and model.is_calibrated
    expected = calibrate_teacher(
        "Base-LQN.yaml",
        scenes[0].parent,
        ["MODEL.LQN.TEACHER.WEIGHTS", str(teacher_folder)],
        most=6,
        output=tmp_path / "expected.safetensors",
    )
    again = lqn_seg.load(teacher_folder, threads=1, overrides=small, calibration=file)
    command = lqn_seg.load(teacher_folder, threads=1, overrides=small, calibration=expected.path)
    damaged = corrupt(read_image(scenes[1]), "contrast", 3)
    assert same(model(damaged), again(damaged)) and same(model(damaged), command(damaged))


def test_a_method_of_ones_own_and_settings_are_taken(scenes):
    register_method("earlier", _earlier)
    result = lqn_seg.load("demo", method="earlier", compare=["teacher"], threads=1)(scenes[0])
    assert result.method == "earlier" and not same(result, result.compared["teacher"])
    model = lqn_seg.load("demo", overrides=("MODEL.LQN.FIT.STEPS", 7), batch=2)
    expected = method_config(load_cfg("demo"), "lqn")
    assert model.runner.methods["lqn"] == replace(expected, fit=replace(expected.fit, steps=7))
    assert model.runner.config.batch == 2


def _earlier(teacher, images, tokens):
    return tokens[:, -4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "no such thing"}, "'no such thing' is neither a folder or file nor"),
        ({"model": "demo", "method": "lqm"}, "unknown method 'lqm': did you mean 'lqn'"),
        ({"model": "demo", "compare": ("teacher", "amp")}, "unknown method 'amp'"),
        ({"model": "demo", "calibration": "no.st"}, "there is no file no.st"),
        ({"model": "demo", "device": "gpu"}, "must be auto, cpu, cuda or mps"),
        ({"model": "demo", "batch": 0}, "BATCH must be at least 1"),
        ({"model": str(TEACHER), "classes": ["a"]}, "classes: 1 names, .* has 13"),
        ({"model": "demo", "overrides": ("MODEL.LQN.FIT.STPES", 1)}, "did you mean .*STEPS"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(arguments, said):
    with pytest.raises(InputError, match=said):
        lqn_seg.load(**arguments)


def test_a_model_says_what_it_is(demo):
    assert repr(demo).startswith("teacher: eomt from datasets/demo/teacher on cpu")
    assert repr(demo).endswith("13 classes; methods: teacher, restore, lqn")

"""Calibration of a small EoMT: against its own tokens, on disk and back, and bad files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lqn_seg.adapt.calibration import RangeBuilder, calibrate, load_calibration, save_calibration
from lqn_seg.adapt.denoise import noise_deviation
from lqn_seg.adapt.noise import residual
from lqn_seg.core.alignment import Aligner, Calibration
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import normalise
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt

IMAGES = 20


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> EomtTeacher:
    return load_eomt(str(teacher_folder))


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """(B, 3, 32, 32) smooth images in 0..1."""
    coarse = torch.rand(IMAGES, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (32, 32), mode="bilinear")


@pytest.fixture(scope="module")
def calibration(teacher, crops) -> Calibration:
    return calibrate(teacher, lambda: crops.split(8), 0.1)


def inputs(teacher: EomtTeacher, crops: torch.Tensor) -> torch.Tensor:
    return normalise(crops, teacher.pixel_mean, teacher.pixel_std)


def test_ranges_are_those_of_the_teachers_tokens(teacher, crops, calibration):
    assert sorted(calibration.layers) == [0, 1, 2]  # the embedding and the first two of four layers
    images = inputs(teacher, crops)
    field, _ = teacher.encode(images)
    blank = teacher.embed(torch.zeros(1, 3, 32, 32))[0]
    torch.testing.assert_close(calibration.layers[0].centre, blank)
    for layer, clean in calibration.layers.items():
        tokens = teacher.embed(images) if layer == 0 else field[:, layer - 1]
        builder = RangeBuilder(blank if layer == 0 else None)
        builder.observe(tokens)
        builder.measure(tokens)
        direct = builder.finish(0.1)
        torch.testing.assert_close(clean.centre, direct.centre, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clean.gain, direct.gain, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(clean.deviation, direct.deviation, atol=1e-3, rtol=1e-3)
        plain = replace(clean, style=None)
        for ours, theirs in zip(plain.align(3 * tokens), direct.align(3 * tokens)):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_damage_and_residual_are_those_of_clean_images(teacher, crops, calibration):
    images = inputs(teacher, crops)
    _, damage = calibration.layers[0].align(teacher.embed(images))
    assert calibration.undamaged == pytest.approx(np.quantile(damage.numpy(), 0.95), rel=1e-3)
    assert calibration.undamaged > 0
    noise = noise_deviation(crops)
    assert calibration.noise == pytest.approx(np.quantile(noise.numpy(), 0.95), rel=1e-5)
    field, _ = teacher.encode(images, Aligner(calibration))
    assert calibration.residual == pytest.approx(residual(field).sort().values[9].item(), rel=1e-3)
    flat = crops.flatten(2).double().numpy()
    expected = [flat.mean(2).mean(0), np.log(flat.std(2, ddof=1)).mean(0)]
    np.testing.assert_allclose(calibration.pixels, expected, atol=1e-5)


def test_order_and_batches_of_the_images_do_not_matter(teacher, crops, calibration):
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    images = inputs(teacher, noise)
    aligner = Aligner(calibration)
    field, _ = teacher.encode(images, aligner)
    for batches in (crops[order].split(8), crops.split(3)):
        other = Aligner(calibrate(teacher, lambda b=batches: b, 0.1))
        again, _ = teacher.encode(images, other)
        torch.testing.assert_close(again, field, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(other.damage, aligner.damage, atol=1e-4, rtol=1e-4)
        assert other.calibration.undamaged == pytest.approx(calibration.undamaged, rel=1e-2)


def test_images_may_lie_on_another_device_than_the_teacher(teacher, crops, calibration, elsewhere):
    other = calibrate(teacher, lambda: [elsewhere(part) for part in crops.split(8)], 0.1)
    assert (
        torch.equal(other.pixels, calibration.pixels) and other.undamaged == calibration.undamaged
    )
    for layer, clean in calibration.layers.items():
        assert torch.equal(other.layers[layer].deviation, clean.deviation)


def test_clean_images_pass_and_noise_does_not(teacher, crops):
    whole = calibrate(teacher, lambda: crops.split(8), 0.0)
    plain = {layer: replace(clean, style=None) for layer, clean in whole.layers.items()}
    whole = replace(whole, layers=plain)  # of a style, one in twenty clean images has too much
    images = inputs(teacher, crops)
    aligner = Aligner(whole)
    torch.testing.assert_close(
        teacher.encode(images, aligner)[0], teacher.encode(images)[0], atol=1e-3, rtol=1e-3
    )
    assert aligner.damage.max() < 1e-4
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    teacher.encode(inputs(teacher, noise), aligner)
    assert aligner.damage.item() > 0.1


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_named(teacher, crops, count):
    with pytest.raises(InputError, match=f"at least two images, not {count}"):
        calibrate(teacher, lambda: [crops[:count]] if count else [])


# --- files


def test_a_calibration_comes_back_bit_for_bit(tmp_path, teacher, calibration):
    path = tmp_path / "calibration.safetensors"
    save_calibration(path, calibration, {"images": 20, "from": "here"})
    read = load_calibration(path, teacher)
    assert (read.undamaged, read.residual) == (calibration.undamaged, calibration.residual)
    assert torch.equal(read.pixels, calibration.pixels)
    assert list(read.layers) == list(calibration.layers)
    for layer, clean in calibration.layers.items():
        assert clean.style is not None
        for ours, theirs in ((clean, read.layers[layer]), (clean.style, read.layers[layer].style)):
            for name, tensor in vars(ours).items():
                same = name == "style" or torch.equal(getattr(theirs, name), tensor)
                assert same, name
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["calibration"])
    readings = {"undamaged": calibration.undamaged, "residual": calibration.residual}
    readings |= {"distance": calibration.distance, "noise": calibration.noise}
    assert read.distance == calibration.distance < math.inf
    assert read.noise == calibration.noise < math.inf
    assert about == {"images": 20, "from": "here", **readings}
    teacher.encode(torch.zeros(1, 3, 32, 32), Aligner(read))
    # A file from before there were these: nothing is unlike it, or noisier.
    save_calibration(path, replace(calibration, distance=math.inf, noise=math.inf), {})
    older = load_calibration(path, teacher)
    assert older.distance == older.noise == math.inf


def refusal(path: Path, teacher) -> str:
    with pytest.raises(InputError) as caught:
        load_calibration(path, teacher)
    message = str(caught.value)
    assert message.startswith("MODEL.LQN.CALIBRATION: ") and "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize(
    "gone, about",
    [
        ((), None),
        ((), {"calibration": "{"}),
        ((), {"calibration": "{}"}),
        (("pixels",), ...),
        (("layer1.basis",), ...),
    ],
)
def test_a_file_of_other_tensors_or_metadata_is_refused(
    tmp_path, teacher, calibration, gone, about
):
    path = tmp_path / "bad.safetensors"
    save_calibration(path, calibration, {})
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() if about is ... else about
    save_file({name: t for name, t in tensors.items() if name not in gone}, path, metadata)
    assert "is no calibration" in refusal(path, teacher)


def test_a_file_that_is_missing_or_damaged_is_refused(tmp_path, teacher, calibration):
    path = tmp_path / "bad.safetensors"
    assert "there is no file" in refusal(path, teacher)
    path.write_text("no calibration\n")
    assert "is no calibration" in refusal(path, teacher)
    save_calibration(path, calibration, {})
    path.write_bytes(path.read_bytes()[:-100])
    assert "is no calibration" in refusal(path, teacher)
    for wrong in (
        {"centre": torch.zeros(4, 5, 16)},
        {"basis": torch.zeros(16)},
        {"basis": torch.zeros(16, 3)},
        {name: torch.zeros(16) for name in ("mean", "deviation")},
        {name: torch.zeros(3, 16) for name in ("mean", "deviation")},
    ):
        layers = {**calibration.layers, 1: replace(calibration.layers[1], **wrong)}
        save_calibration(path, replace(calibration, layers=layers), {})
        assert "another shape than 4x4x16" in refusal(path, teacher)

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
from lqn_seg.core.alignment import Calibration, Restorer, residual
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
def found(teacher, crops) -> Calibration:
    return calibrate(teacher, lambda: crops.split(8), 0.1)


def inputs(teacher: EomtTeacher, crops: torch.Tensor) -> torch.Tensor:
    return normalise(crops, teacher.pixel_mean, teacher.pixel_std)


def test_ranges_are_those_of_the_teachers_tokens(teacher, crops, found):
    assert sorted(found.layers) == [0, 1, 2]  # the embedding and the first two of four layers
    images = inputs(teacher, crops)
    field, _ = teacher.encode(images)
    blank = teacher.embed(torch.zeros(1, 3, 32, 32))[0]
    torch.testing.assert_close(found.layers[0].centre, blank)
    for layer, clean in found.layers.items():
        tokens = teacher.embed(images) if layer == 0 else field[:, layer - 1]
        builder = RangeBuilder(blank if layer == 0 else None)
        builder.observe(tokens)
        builder.measure(tokens)
        direct = builder.finish(0.1)
        torch.testing.assert_close(clean.centre, direct.centre, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clean.gain, direct.gain, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(clean.deviation, direct.deviation, atol=1e-3, rtol=1e-3)
        for ours, theirs in zip(clean.restore(3 * tokens), direct.restore(3 * tokens)):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_undamaged_is_what_95_of_100_clean_images_stay_below(teacher, crops, found):
    _, damage = found.layers[0].restore(teacher.embed(inputs(teacher, crops)))
    assert found.undamaged == pytest.approx(np.quantile(damage.numpy(), 0.95), rel=1e-3)
    assert found.undamaged > 0


def test_residual_is_the_median_of_clean_images(teacher, crops, found):
    field, _ = teacher.encode(inputs(teacher, crops), Restorer(found))
    assert found.residual == pytest.approx(residual(field).sort().values[9].item(), rel=1e-3)


def test_pixels_are_quantiles_of_mean_and_log_deviation(crops, found):
    flat = crops.flatten(1).double().numpy()
    ends = [0.1, 0.9]
    expected = [np.quantile(flat.mean(1), ends), np.quantile(np.log(flat.std(1, ddof=1)), ends)]
    np.testing.assert_allclose(found.pixels, np.transpose(expected), atol=1e-5)


def test_order_and_batches_of_the_images_do_not_matter(teacher, crops, found):
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    images = inputs(teacher, noise)
    restorer = Restorer(found)
    field, _ = teacher.encode(images, restorer)
    for batches in (crops[order].split(8), crops.split(3)):
        other = Restorer(calibrate(teacher, lambda b=batches: b, 0.1))
        again, _ = teacher.encode(images, other)
        torch.testing.assert_close(again, field, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(other.damage, restorer.damage, atol=1e-4, rtol=1e-4)
        assert other.calibration.undamaged == pytest.approx(found.undamaged, rel=1e-2)


def test_images_may_lie_on_another_device_than_the_teacher(teacher, crops, found, elsewhere):
    other = calibrate(teacher, lambda: [elsewhere(part) for part in crops.split(8)], 0.1)
    assert torch.equal(other.pixels, found.pixels) and other.undamaged == found.undamaged
    for layer, clean in found.layers.items():
        assert torch.equal(other.layers[layer].deviation, clean.deviation)


def test_clean_images_pass_and_noise_does_not(teacher, crops):
    whole = calibrate(teacher, lambda: crops.split(8), 0.0)
    images = inputs(teacher, crops)
    restorer = Restorer(whole)
    torch.testing.assert_close(
        teacher.encode(images, restorer)[0], teacher.encode(images)[0], atol=1e-3, rtol=1e-3
    )
    assert restorer.damage.max() < 1e-4
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    teacher.encode(inputs(teacher, noise), restorer)
    assert restorer.damage.item() > 0.1


def test_nothing_calibrated_is_nothing_changed(teacher, crops):
    images = inputs(teacher, crops[:3])
    nothing = Restorer(Calibration({}, 0.1, 0.4, torch.zeros(2, 2)))
    field, context = teacher.encode(images)
    same, same_context = teacher.encode(images, nothing)
    assert torch.equal(same, field)
    assert torch.equal(same_context.prefix, context.prefix)
    assert torch.equal(same_context.queries, context.queries)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_named(teacher, crops, count):
    with pytest.raises(InputError, match=f"at least two images, not {count}"):
        calibrate(teacher, lambda: [crops[:count]] if count else [])


# --- files


def test_a_calibration_comes_back_bit_for_bit(tmp_path, teacher, found):
    path = tmp_path / "calibration.safetensors"
    save_calibration(path, found, {"images": 20, "from": "here"})
    read = load_calibration(path, teacher)
    assert (read.undamaged, read.residual) == (found.undamaged, found.residual)
    assert torch.equal(read.pixels, found.pixels)
    assert list(read.layers) == list(found.layers)
    for layer, clean in found.layers.items():
        for name, tensor in vars(clean).items():
            assert torch.equal(getattr(read.layers[layer], name), tensor), name
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["calibration"])
    readings = {"undamaged": found.undamaged, "residual": found.residual}
    readings["distance"] = found.distance
    assert read.distance == found.distance < math.inf
    assert about == {"images": 20, "from": "here", **readings}
    teacher.encode(torch.zeros(1, 3, 32, 32), Restorer(read))
    # A file from before there was a distance: it is not known, and nothing is unlike it.
    save_calibration(path, replace(found, distance=math.inf), {})
    assert load_calibration(path, teacher).distance == math.inf


def spoiled(path: Path, change: str) -> None:
    """Spoil a good file in one way."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if change == "missing":
        path.unlink()
        return
    if change == "text":
        path.write_text("no calibration\n")
        return
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if change == "no metadata":
        metadata = None
    elif change == "other metadata":
        metadata = {"calibration": "{"}
    elif change == "no number":
        metadata = {"calibration": "{}"}
    elif change == "weights":
        tensors, metadata = {"encoder.weight": torch.zeros(2)}, metadata
    elif change == "shape":
        tensors["layer1.centre"] = torch.zeros(4, 5, 16)
    else:
        del tensors[change]
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change, reason",
    [
        ("missing", "there is no file"),
        ("text", "is no calibration"),
        ("cut", "is no calibration"),
        ("no metadata", "is no calibration"),
        ("other metadata", "is no calibration"),
        ("no number", "is no calibration"),
        ("weights", "is no calibration"),
        ("pixels", "is no calibration"),
        ("layer1.basis", "is no calibration"),
        ("shape", "another shape than 4x4x16"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, teacher, found, change, reason):
    path = tmp_path / "bad.safetensors"
    save_calibration(path, found, {})
    spoiled(path, change)
    with pytest.raises(InputError, match=reason) as caught:
        load_calibration(path, teacher)
    message = str(caught.value)
    assert message.startswith("MODEL.LQN.CALIBRATION: ") and "\n" not in message
    assert "bad.safetensors" in message


def test_a_calibration_of_another_teacher_is_refused(tmp_path, teacher, found):
    layers = {
        layer: replace(clean, centre=clean.centre[..., :8]) for layer, clean in found.layers.items()
    }
    save_calibration(tmp_path / "a.safetensors", replace(found, layers=layers), {})
    with pytest.raises(InputError, match="another shape"):
        load_calibration(tmp_path / "a.safetensors", teacher)

"""What is held in memory: of fields once, of images nothing, and how both are measured."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from lqn_seg.adapt.calibration import alarmed, calibrate
from lqn_seg.adapt.journey import adapt
from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.config.nodes import load_cfg
from lqn_seg.core.config import PRESETS, StudentConfig
from lqn_seg.core.random import RandomKey
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.evaluate import Evaluation
from lqn_seg.errors import InputError
from lqn_seg.lab.benchmark import growth, memory
from lqn_seg.lab.benchmark.teachers import eomt_head, random_eomt
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.report.wording import WIDTH
from lqn_seg.segmentation.segmenter import Segmenter

SIDE = 128
SMALL = StudentConfig(
    input_size=28, stride=14, widths=(16,), position_dim=16, init="he", guide=0.125
)


@pytest.fixture(autouse=True)
def small_student(monkeypatch):
    default = PRESETS["default"]
    fit = replace(default.fit, steps=3, positions_per_step=6)
    monkeypatch.setitem(PRESETS, "default", replace(default, student=SMALL, fit=fit))


def teacher_of(layers: int, side: int = SIDE):
    return random_eomt("eomt-tiny", side, num_hidden_layers=layers, num_blocks=1)


def fields_held(run) -> float:
    """By how many fields the peak of ``run(teacher)`` grows where the field grows by one."""
    peaks, sizes = [], []
    for layers in (16, 32):
        teacher = teacher_of(layers)
        peaks.append(run(teacher))
        sizes.append(4 * layers * math.prod(teacher.grid) * teacher.width)
    return (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])


@pytest.mark.parametrize("last", [False, True])
def test_a_teacher_holds_its_field_once(last):
    images = torch.rand(1, 3, SIDE, SIDE)
    held = fields_held(lambda t: measure(lambda: t.encode(images, last=last)).peak_bytes)
    assert held < 0.1 if last else 0.9 < held < 1.1


def test_the_last_layer_alone_is_that_of_the_field():
    teacher, images = teacher_of(4), torch.rand(2, 3, SIDE, SIDE)
    field, context = teacher.encode(images)
    alone, same = teacher.encode(images, last=True)
    assert torch.equal(alone, field[:, -1:]) and torch.equal(same.last, context.last)
    assert torch.equal(same.prefix, context.prefix)


@pytest.mark.parametrize(("method", "views", "fields"), [("field", 2, 0), ("lqn", 2, 2)])
def test_a_method_holds_the_field_of_each_view_once_or_not_at_all(method, views, fields):
    """Up to its tokens: what the head makes of them depends on no layer."""
    image = memory.random_image(SIDE, SIDE)[None].float() / 255

    def peak(teacher) -> int:
        calibration = calibrate(teacher, lambda: [torch.cat([image, image.flip(-1)])])
        calibration = replace(alarmed(calibration), noise=math.inf)  # its removal comes before
        recipes, config = {method: memory.recipe(method)}, SegmentationConfig()
        parts = teacher, eomt_head(teacher), recipes, frozenset(), config, calibration
        segmenter = Segmenter(*parts)
        images = segmenter._seen_in(views, image, [RandomKey(0)], None)
        adapted = []
        cost = measure(lambda: adapted.append(adapt(segmenter.adapters[method], images)))
        assert method != "lqn" or adapted[0].fit_ms > 0
        return cost.peak_bytes

    assert fields - 0.2 < fields_held(peak) < fields + 0.2


def test_gradients_flow_through_all_layers_of_a_field():
    teacher = teacher_of(3, 48)
    images = torch.rand(1, 3, 48, 48, requires_grad=True)
    field, _ = teacher.forward(images)
    for layer in field.unbind(1):
        (gradient,) = torch.autograd.grad(layer.sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert field.detach().equal(teacher.encode(images.detach())[0])


def test_an_evaluation_keeps_nothing_of_an_image(small_config, monkeypatch):
    """Neither samples nor tensors: as many live after the fifth image as after the second."""
    samples, tensors = [], []
    read, append = Evaluation._read, None

    def watched_read(self, *arguments):
        sample = read(self, *arguments)
        samples.append(weakref.ref(sample))
        return sample

    def watched_append(*arguments):
        append(*arguments)
        gc.collect()
        tensors.append(sum(type(x) is torch.Tensor for x in gc.get_objects()))

    monkeypatch.setattr(Evaluation, "_read", watched_read)
    cfg = load_cfg(str(small_config), ["MODEL.LQN.EVAL.CORRUPTIONS", "()", "MODEL.LQN.BATCH", "1"])
    evaluation = Evaluation(cfg, get_dataset("demo_panoptic_val"))
    append = evaluation.store.append
    monkeypatch.setattr(evaluation.store, "append", watched_append)
    evaluation.run(progress=False)
    gc.collect()
    assert len(samples) == len(tensors) == 5
    assert not any(reference() for reference in samples)
    assert tensors[1] == tensors[-1]


def test_the_memory_of_a_process_is_measured(tmp_path):
    config = memory.MemoryConfig("eomt-tiny", precision="float32")
    path = tmp_path / "calibration.safetensors"
    memory._write_calibration(config, path)
    loaded, peak = memory._peak(config, path, "lqn")
    assert 100 < loaded <= peak
    found = [
        {"method": "teacher", "loaded_mib": 100.0, "peak_mib": 200.0},
        {"method": "lqn", "loaded_mib": 100.0, "peak_mib": 250.0},
    ]
    text = memory.memory_text({"settings": vars(config), "peaks": found})
    assert text.splitlines()[-1].split() == ["lqn", "100", "250", "1.25"]
    with pytest.raises(InputError, match="the memory of an EoMT is measured"):
        memory.MemoryConfig("clip-b16")


def test_a_slope_is_that_of_a_regression():
    stats = pytest.importorskip("scipy.stats")
    values, costs = [1, 2, 5, 9], [3.0, 4.1, 8.2, 22.0]
    expected = stats.linregress(np.log(values), np.log(costs))
    found = growth.Slope.of(values, costs)
    assert found.exponent == pytest.approx(expected.slope)
    assert found.error == pytest.approx(expected.stderr)
    assert str(growth.Slope.of([1, 2], [3, 12])) == "2.00"
    assert str(growth.Slope.of([1, 2, 4], [3, math.nan, math.nan])) == "-"


def test_growth_is_told_in_a_table_and_a_plot(tmp_path):
    axes = {"layers": ((2, 4, 8), ("teacher", "lqn")), "images": ((1, 2, 4), ("teacher",))}
    points = growth.growth(1, axes, lambda _: None)
    assert len(points) == 9
    text = growth.growth_text(points)
    assert max(map(len, text.splitlines())) <= WIDTH
    images = [p for p in points if p["axis"] == "images"]
    slope = growth.Slope.of([p["value"] for p in images], [p["gmacs"] for p in images])
    assert slope.exponent == pytest.approx(1) and len({p["peak_mib"] for p in images}) == 1
    from lqn_seg.visualization.growth import draw_growth

    files = draw_growth(points, tmp_path / "growth")
    assert all(file.stat().st_size for file in files) and len(files) == 2

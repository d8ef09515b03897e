from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lqn_seg.core.positions import grid_rows, grid_table, tabulate
from lqn_seg.core.student import Students, image_patches, parameter_count, parameter_shapes

from lqn_seg.core.config import PRESETS, StudentConfig, with_variant
from lqn_seg.core.random import CounterRandom, RandomKey
from lqn_seg.errors import InputError

GRID = (3, 4, 5)  # L, H, W
FEATURES = 7
BASE = StudentConfig(12, 4, (24, 16, 20), 20, init="he")
CONFIGS = {
    "lqn": BASE,
    "lqn-src": replace(BASE, source=False),
    "apm": replace(BASE, source=False, axes=2),
    "added": replace(BASE, combine="add"),
    "one hidden layer": replace(BASE, widths=(16,)),
    "guided": replace(BASE, guide=0.5),
    "guided lqn-src": replace(BASE, guide=0.5, source=False),
    "guided apm": replace(BASE, guide=1.0, source=False, axes=2),
    "guided added": replace(BASE, guide=0.1, combine="add"),
}


def addresses(batch: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    layers, rows, columns = GRID
    high = torch.tensor([rows, columns, layers])
    return (torch.rand(batch, count, 3, generator=generator) * (high + 1)).long()


def guiding(batch: int, count: int, seed: int) -> torch.Tensor:
    """(B, count, D) tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, FEATURES, generator=generator)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_and_gradients_are_those_of_the_plain_student(reference, name, batch):
    config = CONFIGS[name]
    students = Students(config, FEATURES, batch)
    students.reset(CounterRandom([RandomKey(0, b) for b in range(batch)]))
    with torch.no_grad():  # biases start at zero; let the test see them
        noise = torch.Generator().manual_seed(0)
        shift = torch.randn(students.parameters.shape, generator=noise)
        students.parameters.add_(0.05 * shift)
    images = torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    source, destination = addresses(batch, 30, 2), addresses(batch, 30, 3)
    weight = torch.randn(batch, 30, FEATURES, generator=torch.Generator().manual_seed(4))
    guide = guiding(batch, 10, 5) if config.guide else None  # each for three queries

    table = grid_table(GRID, config.position_dim, config.axes)
    rows = students.rows(
        table,
        grid_rows(source, GRID, config.axes) if config.source else None,
        grid_rows(destination, GRID, config.axes),
    )
    tokens = students(image_patches(images, config.stride), table, rows, guide)
    (flat,) = torch.autograd.grad((weight * tokens).sum(), students.parameters)

    assert flat.data_ptr() == students.gradients.data_ptr()  # no copy on the way
    for b in range(batch):
        plain = reference.Student(config, FEATURES).load(students.weights, b)
        near = None if guide is None else guide[b].double().repeat(3, 1)
        expected = plain(images[b].double(), source[b], destination[b], near)
        (weight[b] * expected).sum().backward()
        assert relative_error(tokens[b], expected.detach()) < 1e-5
        theirs = plain.gradients()
        assert theirs.keys() == students._gradients.keys()
        for layer in {name.split(".")[0] for name in theirs}:
            names = [name for name in theirs if name.split(".")[0] == layer]
            ours = torch.cat([students._gradients[name][b].flatten() for name in names])
            expected = torch.cat([theirs[name].flatten() for name in names])
            assert relative_error(ours, expected) < 1e-5, layer


def test_fractional_addresses_are_those_of_the_plain_student(reference):
    students = Students(BASE, FEATURES)
    students.reset(CounterRandom([RandomKey(0)]))
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, 12, 12, generator=generator)
    positions = torch.rand(2, 1, 9, 3, generator=generator) * 5
    table, rows = tabulate(positions, BASE.position_dim)
    tokens = students(image_patches(image, 4), table, students.rows(table, *rows))
    plain = reference.Student(BASE, FEATURES).load(students.weights)
    expected = plain(image[0].double(), positions[0, 0], positions[1, 0])
    assert relative_error(tokens[0].detach(), expected.detach()) < 1e-5


@pytest.mark.parametrize(
    "preset, variant, features, count",
    [
        # 2560*4096 + 2*4096^2 + 4096*2048 + 2048*1024 + 1024*768, biases, 588 + 1 of the filter
        ("paper", "lqn", 768, 55_329_101),
        ("paper", "lqn-src", 768, 52_183_373),
        ("paper", "apm", 768, 52_183_373),
        ("paper", "lqn", 1024, 55_591_501),
        ("slim", "lqn", 768, 21_766_477),
        ("slim", "lqn-src", 768, 18_620_749),
    ],
)
def test_parameter_counts(preset, variant, features, count):
    assert parameter_count(with_variant(PRESETS[preset], variant).student, features) == count


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count_is_that_of_the_plain_student(reference, name):
    plain = reference.Student(CONFIGS[name], FEATURES)
    count = parameter_count(CONFIGS[name], FEATURES)
    assert count == sum(p.numel() for p in plain.parameters())
    shapes = parameter_shapes(CONFIGS[name], FEATURES)
    assert count == sum(torch.Size(shape).numel() for shape in shapes.values())


def test_a_guide_costs_one_more_input_for_each_feature():
    for widths in ((24, 16, 20), (16,)):
        plain = replace(BASE, widths=widths)
        more = parameter_count(replace(plain, guide=0.125), 768) - parameter_count(plain, 768)
        assert more == 768 * widths[0]
    # 2560 + 768 inputs: as [conv | src | dest | guide] of Table 4's sizes
    shipped = replace(PRESETS["default"].student, input_size=448, stride=14, position_dim=768)
    inputs, outputs = 32 * 32 + 2 * 768 + 768, 768
    linear = inputs * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * outputs + outputs
    assert parameter_count(shipped, 768) == linear + 588 + 1


def test_he_initialisation_counts_the_guide():
    students = Students(StudentConfig(28, 14, (256,), 96, guide=0.5, init="he"), 64)
    students.reset(CounterRandom([RandomKey(0)]))
    expected = (2 / (4 + 2 * 96 + 64)) ** 0.5
    for block in ("source", "destination", "guide"):
        deviation = students.weights[f"first.{block}"].std().item()
        assert deviation == pytest.approx(expected, rel=0.03)


def test_initial_weights():
    config = StudentConfig(28, 14, (256, 512), 96)
    for init, first, hidden, output in (
        ("normal", 0.01, 0.01, 0.01),
        ("he", (2 / (4 + 2 * 96)) ** 0.5, (2 / 256) ** 0.5, 0.1 * (2 / 512) ** 0.5),
    ):
        students = Students(replace(config, init=init), 64)
        students.reset(CounterRandom([RandomKey(0)]))
        w = students.weights
        assert w["first.source"].std().item() == pytest.approx(first, rel=0.03)
        assert w["first.destination"].std().item() == pytest.approx(first, rel=0.03)
        assert w["hidden1.weight"].std().item() == pytest.approx(hidden, rel=0.03)
        assert w["output.weight"].std().item() == pytest.approx(output, rel=0.03)
        assert all((w[name] == 0).all() for name in w if name.endswith("bias"))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"input_size": 13}, "multiple of stride"),
        ({"widths": ()}, "widths"),
        ({"combine": "mean"}, "combine"),
        ({"axes": 4}, "axes"),
        ({"init": "xavier"}, "init"),
        ({"position_dim": 21}, "position_dim"),
        ({"guide": -0.1}, "guide"),
        ({"guide": 1.1}, "guide"),
    ],
)
def test_bad_architectures(change, reason):
    with pytest.raises(InputError, match=reason):
        replace(BASE, **change)

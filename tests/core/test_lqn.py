"""The algorithm against the plain port, in float64 and of torch's own layers; independence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lqn_seg.core.config import (
    PRESETS,
    FitConfig,
    LQNConfig,
    StudentConfig,
    with_variant,
)
from lqn_seg.core.lqn import (
    DESTINATION,
    SOURCE,
    FittedStudents,
    StudentFitter,
    Table,
    axis_code,
)
from lqn_seg.core.random import RandomKey
from lqn_seg.core.view import View
from lqn_seg.errors import InputError
from tests.core.conftest import make_fields

GRID = (4, 5, 6)  # L, H, W
FEATURES = 8
SIDE = 12
KEYS = [RandomKey(0, 101), RandomKey(0, 202), RandomKey(0, 303)]
SMALL = LQNConfig(
    StudentConfig(SIDE, 4, (32, 24), 20, init="he"),
    FitConfig(
        steps=6, learning_rate=1e-3, positions_per_step=16, target_norm="layer", precision="float32"
    ),
)
GUIDED = replace(SMALL, student=replace(SMALL.student, guide=0.5))
IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
FIELDS = make_fields(3, GRID, FEATURES)
# Of answers: alone or beside others, the sums of a matrix product are split differently.
ROUNDING = {"rtol": 1e-3, "atol": 1e-3}


def changed(config: LQNConfig, student: dict | None = None, **fit) -> LQNConfig:
    student = replace(config.student, **student or {})
    return replace(config, student=student, fit=replace(config.fit, **fit))


def fit(config, images=IMAGES, fields=FIELDS, keys=KEYS, **options) -> FittedStudents:
    fitter = StudentFitter(config, tuple(fields.shape[1:4]), FEATURES)
    return fitter.fit(images, fields, keys[: len(images)], **options)


def alone(b: int) -> tuple[torch.Tensor, torch.Tensor, list[RandomKey]]:
    return IMAGES[b : b + 1], FIELDS[b : b + 1], KEYS[b : b + 1]


def untrained(config) -> FittedStudents:
    """Students as they start, but for their biases, which at 0 could hide a mistake."""
    students = fit(changed(config, steps=0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in students.students.weights.items():
            if name.endswith("bias"):
                weight.normal_(0, 0.1, generator=generator)
    return students


def plain_student(reference, students: FittedStudents, b: int):
    weights = {name: w.detach() for name, w in students.students.weights.items()}
    return reference.Student(students.students.config, FEATURES).load(weights, b)


def indices_of(config, b: int) -> torch.Tensor:
    """(1 or 3, N, n) places that student b visits."""
    return StudentFitter(config, GRID, FEATURES).uniform(b, KEYS[b])


def addresses_of(config, indices: torch.Tensor) -> torch.Tensor:
    """Places among the fitted tokens, layer by layer and row by row, to (..., 3) addresses."""
    layer, cell = indices // 30, indices % 30
    layers = torch.tensor(config.fit.fitted_layers(GRID[0]))
    return torch.stack((cell // 6 + 1, cell % 6 + 1, layers[layer]), -1)


def guide_of(reference, config, b: int) -> torch.Tensor | None:
    """(H, W, D) of the plain port, at the depth that the recipe names."""
    layer = max(1, round(config.student.guide * GRID[0]))
    return reference.standardised(FIELDS[b, layer - 1]) if config.student.guide else None


def whole_layer(layer: float) -> torch.Tensor:
    i, j = torch.meshgrid(torch.arange(1.0, 6), torch.arange(1.0, 7), indexing="ij")
    return torch.stack((i, j, torch.full_like(i, layer)), -1).flatten(0, 1)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.detach().double() - theirs.detach()).norm() / theirs.norm()).item()


def error_over_variance(answer: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Mean squared error of (B, H, W, D) tokens over the field's variance across positions."""
    error = (answer - field).square().mean(dim=(1, 2, 3))
    return error / field.var(dim=(1, 2), correction=0).mean(dim=1)


# --- addresses


def test_an_axis_is_coded_as_sines_and_cosines():
    values = torch.tensor([0.0, 1.0, 2.5])
    code = axis_code(values, 4)
    expected = [[f(v * r) for r in (1.0, 0.01) for f in (torch.sin, torch.cos)] for v in values]
    torch.testing.assert_close(code, torch.tensor(expected))
    assert code[0].tolist() == [0, 1, 0, 1]  # of src0


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("flag", [SOURCE, DESTINATION])
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_rows_of_a_table_add_up_to_the_plain_ports_code(reference, axes, flag, fraction):
    values = [torch.arange(n + 1.0) + fraction for n in (64, 40, 24)[:axes]]
    table = Table.of(values, 26, flag)
    rows = table.rows(torch.eye(26)[None])
    assert rows.shape == (1, sum(map(len, values)), 26)
    generator = torch.Generator().manual_seed(0)
    addresses = (torch.rand(2, 50, 3, generator=generator) * 24).floor() + fraction
    names = table.names(addresses)
    assert torch.equal(names.sum(-1), torch.full((2, 50), float(axes)))
    result = names @ rows
    for b in range(2):
        expected = reference.encode(addresses[b], 26, flag, axes)
        torch.testing.assert_close(result[b].double(), expected, atol=1e-5, rtol=0)


# --- one pass of the students


@pytest.mark.parametrize(
    "variant, student",
    [
        ("lqn", {}),
        ("lqn", {"widths": (16,)}),
        ("lqn", {"guide": 0.5}),
        ("lqn-src", {}),
        ("apm", {}),
        ("apm", {"guide": 1.0}),
    ],
)
def test_tokens_and_gradients_are_the_plain_students(reference, variant, student):
    config = changed(with_variant(SMALL, variant), student)
    student = config.student
    students = untrained(config).students
    generator = torch.Generator().manual_seed(1)
    source, dest = (torch.rand(2, 3, 30, 3, generator=generator) * 6).unbind(0)
    weight = torch.randn(3, 30, FEATURES, generator=generator)
    guide = torch.randn(3, 10, FEATURES, generator=generator) if student.guide else None
    both = torch.cat((source, dest))
    known = [both[..., axis].unique() for axis in range(student.axes)]
    tables = students.tables(known, known)
    view = View.of(IMAGES, FIELDS, config, (4,), (3, *GRID, FEATURES))
    tokens = students(view.patches, tables, source, dest, guide)
    (weight * tokens).sum().backward()
    for b in range(3):
        plain = reference.Student(student, FEATURES)
        plain.load({name: w.detach() for name, w in students.weights.items()}, b)
        near = None if guide is None else guide[b].double().repeat(3, 1)
        expected = plain(IMAGES[b].double(), source[b], dest[b], near)
        assert relative_error(tokens[b], expected) < 1e-5
        (weight[b] * expected).sum().backward()
        for weight_name, gradient in plain.gradients().items():
            assert relative_error(students.weights[weight_name].grad[b], gradient) < 2e-5


@pytest.mark.parametrize("config", [SMALL, GUIDED], ids=["lqn", "guided"])
def test_the_gradient_of_the_loss_is_its_finite_difference(reference, config):
    """Along a random direction, of the plain port's float64 loss."""
    config = changed(config, target_norm="none")
    students = untrained(config)
    indices = torch.stack([indices_of(config, b)[:, 0] for b in range(3)], 1)
    loss = students.loss(students.view, indices)
    loss.sum().backward()
    generator = torch.Generator().manual_seed(2)
    for b in range(3):
        plain, guide = plain_student(reference, students, b), guide_of(reference, config, b)
        tensors, steps = plain.tensors(), [addresses_of(config, indices[:, b])]
        along = {n: torch.randn(t.shape, generator=generator).double() for n, t in tensors.items()}
        gradients = {name: w.grad[b].double() for name, w in students.students.weights.items()}
        slope = sum((along[name] * gradients[name]).sum() for name in tensors)
        values = []
        for sign in (-1, 0, 1):
            moved = {name: t + 1e-5 * sign * along[name] for name, t in tensors.items()}
            student = reference.Student(config.student, FEATURES).load(
                {name: t[None] for name, t in moved.items()}
            )
            views = [(IMAGES[b].double(), FIELDS[b].double())]
            (value,) = reference.fit(student, views, steps, config.fit, guide)
            values.append(value)
        assert loss[b].item() == pytest.approx(values[1], rel=1e-5)
        assert slope.item() == pytest.approx((values[2] - values[0]) / 2e-5, rel=1e-3)


# --- the fit


@pytest.mark.parametrize(
    "variant, student, options",
    [
        ("lqn", {}, {}),
        ("lqn", {}, {"alpha": 0.0}),
        ("lqn", {}, {"layers": (3, 1), "alpha": 0.2, "target_norm": "none"}),
        ("lqn", {"guide": 0.5}, {"target_norm": "none"}),
        ("lqn", {"guide": 0.01}, {"alpha": 0.0, "layers": "last"}),
        ("lqn-src", {}, {}),
        ("lqn-src", {"guide": 1.0}, {"layers": (2, 3)}),
        ("apm", {}, {"betas": (0.8, 0.99), "eps": 1e-6, "learning_rate": 1e-2}),
        ("apm", {"guide": 0.75}, {"target_norm": "none"}),
    ],
)
def test_a_fit_is_the_plain_ports(reference, variant, student, options):
    config = changed(with_variant(SMALL, variant), student, **options)
    ours, start = fit(config), fit(changed(config, steps=0))
    for b in range(3):
        field = FIELDS[b].double()
        mean, deviation = (
            field.mean((1, 2), keepdim=True),
            field.std((1, 2), keepdim=True, correction=0),
        )
        targets = (field - mean) / deviation if config.fit.target_norm == "layer" else field
        indices = indices_of(config, b)
        assert len(indices) == (3 if variant == "lqn" and config.fit.alpha else 1)
        steps = [addresses_of(config, step) for step in indices.unbind(1)]
        plain, guide = plain_student(reference, start, b), guide_of(reference, config, b)
        curve = reference.fit(plain, [(IMAGES[b].double(), targets)], steps, config.fit, guide)
        assert ours.loss_curve[b].tolist() == pytest.approx(curve, rel=2e-5)
        # What is queried afterwards is what the plain student has become.
        layer, near = (
            config.fit.fitted_layers(4)[-1],
            None if guide is None else guide.flatten(0, 1),
        )
        dest = whole_layer(layer)
        expected = plain(IMAGES[b].double(), torch.zeros_like(dest), dest, near)
        if config.fit.target_norm == "layer":
            expected = expected * deviation[layer - 1, 0] + mean[layer - 1, 0]
        result = ours.query_layer(layer)[b].flatten(0, 1).double()
        torch.testing.assert_close(result, expected.detach(), rtol=1e-3, atol=1e-3)


def test_views_are_looked_at_in_turn_and_the_image_is_queried(reference):
    config = changed(SMALL, target_norm="none")
    views = [
        (IMAGES.flip(-1), make_fields(3, GRID, FEATURES, 1), ()),
        (IMAGES / 2, FIELDS.flip(2), [torch.arange(1.5, side + 1) for side in GRID[1:]]),
    ]
    ours, start = fit(config, views=views), fit(changed(config, steps=0))
    for b in range(3):
        seen = [(x[b].double(), f[b].double()) for x, f, _ in [(IMAGES, FIELDS, ()), *views]]
        steps = [addresses_of(config, step) for step in indices_of(config, b).unbind(1)]
        between = torch.tensor([0.5, 0.5, 0.0])  # where the third view's tokens lie
        steps = [step + between * (k % 3 == 2) for k, step in enumerate(steps)]
        curve = reference.fit(plain_student(reference, start, b), seen, steps, config.fit)
        assert ours.loss_curve[b].tolist() == pytest.approx(curve, rel=2e-5)
    # Targets in the units of each view, answers in those of the image.
    moved = [(images, 64 * fields + 512, where) for images, fields, where in views]
    answers = [fit(SMALL, views=given).query_layer(4) for given in (views, moved)]
    torch.testing.assert_close(*answers, **ROUNDING)


def test_indices_are_uniform_over_the_fitted_tokens_and_their_streams_differ():
    config = changed(SMALL, steps=100, positions_per_step=600, layers=(2, 4))
    indices = indices_of(config, 0)
    assert indices.shape == (3, 100, 600)
    cells = torch.bincount(indices.flatten(), minlength=60).double()
    assert len(cells) == 60  # two layers of 30
    expected = indices.numel() / 60
    assert ((cells - expected) ** 2 / expected).sum() < 59 + 4 * (2 * 59) ** 0.5
    draws = [indices[k, step] for k in range(3) for step in (0, 1)] + [indices_of(config, 1)[0, 0]]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_image_and_key_both_matter():
    images, fields, (key,) = alone(0)
    curves = [fit(SMALL, images, fields, [key]), fit(SMALL, IMAGES[1:2], fields, [key])]
    for other in (KEYS[1], key._replace(seed=7), key._replace(window=1)):
        curves.append(fit(SMALL, images, fields, [other]))
    assert len({tuple(students.loss_curve[0].tolist()) for students in curves}) == 5


# --- queries


def test_fractional_addresses_and_any_source(reference):
    config = changed(SMALL, target_norm="none")
    students = untrained(config)
    generator = torch.Generator().manual_seed(1)
    addresses = torch.rand(3, 9, 3, generator=generator) * 5
    for source in ((0.0, 0.0, 0.0), (2.0, 3.5, 1.0), addresses.flip(1)):
        result = students.query(addresses, source)
        for b in range(3):
            plain = plain_student(reference, students, b)
            each = torch.as_tensor(source).expand(3, 9, 3)[b]
            expected = plain(IMAGES[b].double(), each, addresses[b])
            torch.testing.assert_close(result[b].double(), expected.detach(), atol=1e-4, rtol=1e-4)
    assert torch.equal(students.query(addresses), students.query(addresses, (0.0, 0.0, 0.0)))


@pytest.mark.parametrize("config", [SMALL, GUIDED], ids=["lqn", "guided"])
def test_a_layer_is_its_addresses_whole_or_in_pieces(config, monkeypatch):
    students = fit(config)
    whole = students.query_layer(4)
    assert whole.shape == (3, 5, 6, FEATURES)
    assert whole.dtype == torch.float32 and not whole.requires_grad
    for addresses in (whole_layer(4), whole_layer(4).expand(3, -1, 3)):
        torch.testing.assert_close(students.query(addresses).view_as(whole), whole, **ROUNDING)
    monkeypatch.setattr("lqn_seg.core.lqn.QUERY_FLOATS", 3 * 32 * 7)
    torch.testing.assert_close(students.query_layer(4), whole, **ROUNDING)


def test_the_guide_between_positions_is_bilinear_and_at_the_edge_the_edges(reference):
    students = untrained(changed(GUIDED, target_norm="none"))
    inside = torch.tensor([[2.5, 3.0, 1.0], [2.0, 3.5, 4.0], [2.25, 3.75, 2.0]])
    corners = torch.tensor([[0.0, 0.0, 1.0], [9.0, 9.0, 1.0]])
    result = students.query(torch.cat((inside, corners)))
    for b in range(3):
        guide = guide_of(reference, GUIDED, b)
        halfway = [(guide[1, 2] + other) / 2 for other in (guide[2, 2], guide[1, 3])]
        rows = [0.25 * guide[row, 2] + 0.75 * guide[row, 3] for row in (1, 2)]
        near = torch.stack([*halfway, torch.lerp(*rows, 0.25), guide[0, 0], guide[-1, -1]])
        plain, dest = plain_student(reference, students, b), torch.cat((inside, corners))
        expected = plain(IMAGES[b].double(), torch.zeros_like(dest), dest, near)
        torch.testing.assert_close(result[b].double(), expected.detach(), atol=1e-4, rtol=1e-4)


def test_statistics_between_and_beyond_fitted_layers():
    levels = torch.tensor([1.0, 5.0, 2.0, 100.0])
    fields = levels.view(1, 4, 1, 1, 1).expand(3, *GRID, FEATURES)
    students = fit(changed(SMALL, layers=(1, 2, 3)), fields=fields)
    for layer, level in ((1, 1.0), (1.25, 2.0), (2, 5.0), (2.5, 3.5), (3, 2), (4, 2), (9, 2)):
        answer = students.query_layer(layer)
        torch.testing.assert_close(answer, torch.full_like(answer, level), atol=1e-4, rtol=0)
    # Several layers in one query, per student or shared.
    mixed = torch.tensor([[1.0, 1.0, 1.25], [2.0, 1.0, 2.0], [1.0, 3.0, 9.0]])
    expected = torch.tensor([2.0, 5.0, 2.0])[None, :, None].expand(3, 3, FEATURES)
    for addresses in (mixed, mixed.expand(3, 3, 3)):
        torch.testing.assert_close(students.query(addresses), expected, atol=1e-4, rtol=0)


def test_layers_that_are_held_out_lend_nothing():
    """Depth extrapolation: the layers that are not fitted can be queried, and are not looked at."""
    config, other = changed(SMALL, layers=(2, 1)), FIELDS.clone()
    other[:, 2:] = 1e3
    students = fit(config), fit(config, fields=other)
    for layer in (1, 1.5, 3, 4):
        assert torch.equal(*(s.query_layer(layer) for s in students))
    # A guided student reads its guide (layer 2 of 4) and the fitted layer.
    config, other = changed(GUIDED, layers="last"), FIELDS.clone()
    other[:, [0, 2]] = 1e3
    answer = fit(config).query_layer(4)
    assert torch.equal(fit(config, fields=other).query_layer(4), answer)
    other[:, 1] = FIELDS[:, 1].flip(1)
    assert not torch.equal(fit(config, fields=other).query_layer(4), answer)


def test_coordinates_say_where_rows_and_columns_lie():
    usual = torch.arange(1.0, 6), torch.arange(1.0, 7)
    shifted = usual[0], torch.tensor([1.0, 2.0, 3.0, 2.5, 3.5, 4.5])  # two windows that overlap
    plain, same, other = (fit(SMALL, coordinates=c) for c in ((), usual, shifted))
    assert torch.equal(plain.loss_curve, same.loss_curve)
    assert not torch.equal(plain.loss_curve, other.loss_curve)
    addresses = whole_layer(4).view(5, 6, 3).clone()
    addresses[..., 1] = shifted[1]
    result = other.query(addresses.flatten(0, 1)).unflatten(1, (5, 6))
    torch.testing.assert_close(result, other.query_layer(4), **ROUNDING)


# --- independence


@pytest.mark.parametrize("config", [SMALL, GUIDED], ids=["lqn", "guided"])
def test_students_side_by_side_are_the_students_alone(config):
    together = fit(config)
    for b in range(3):
        single = fit(config, *alone(b))
        torch.testing.assert_close(together.loss_curve[b], single.loss_curve[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(together.query_layer(4)[b], single.query_layer(4)[0], **ROUNDING)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_of_the_last_image_is_left(precision):
    """Bit for bit, even after an image that broke its student."""
    config = changed(SMALL, precision=precision)
    fitter, poison = StudentFitter(config, GRID, FEATURES), torch.full_like(FIELDS[:1], torch.nan)
    assert not fitter.fit(IMAGES[:1], poison, KEYS[:1]).finite.any()
    for b in (2, 0, 1):
        after, fresh = fitter.fit(*alone(b)), fit(config, *alone(b))
        assert torch.equal(after.loss_curve, fresh.loss_curve) and after.finite.all()
        assert torch.equal(after.query_layer(4), fresh.query_layer(4))


def test_a_student_that_diverges_is_named_and_leaves_the_others_alone():
    sound, broken = fit(SMALL), FIELDS.clone()
    broken[1, 2, 0, 0, 0] = torch.nan
    result = fit(SMALL, fields=broken)
    assert sound.finite.tolist() == [True] * 3 and result.finite.tolist() == [True, False, True]
    for b in (0, 2):
        assert torch.equal(result.loss_curve[b], sound.loss_curve[b])
        assert torch.equal(result.query_layer(4)[b], sound.query_layer(4)[b])


# --- precision and the caller's modes


def test_bfloat16_stays_near_float32():
    full, low = (fit(changed(SMALL, precision=p, steps=30)) for p in ("float32", "bfloat16"))
    torch.testing.assert_close(low.loss_curve, full.loss_curve, rtol=0.1, atol=0.02)
    assert not torch.equal(low.loss_curve, full.loss_curve)
    assert low.query_layer(4).dtype == torch.float32


def test_the_callers_autocast_and_grad_mode_change_nothing():
    plain, modes = fit(GUIDED), (torch.no_grad(), torch.autocast("cpu", torch.bfloat16))
    for mode in modes:
        with mode:
            grad = torch.is_grad_enabled()
            students = fit(GUIDED)
            assert torch.equal(students.query_layer(4), plain.query_layer(4))
            assert torch.is_grad_enabled() == grad
            addresses = whole_layer(2.5)
            result = students.query(addresses)
        assert torch.equal(result, plain.query(addresses))


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_inference_mode_is_refused_and_its_tensors_are_not(norm):
    config = changed(GUIDED, target_norm=norm)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"torch\.inference_mode forbids"):
            fit(config)
        made_there = IMAGES.clone(), FIELDS.clone()
    assert torch.equal(fit(config, *made_there).query_layer(4), fit(config).query_layer(4))


# --- recipes


def test_the_default_recipe_learns_a_field_that_is_linear_in_position():
    i, j = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    slopes = torch.randn(4, 3, FEATURES, generator=torch.Generator().manual_seed(0))
    field = torch.stack([i[..., None] * a + j[..., None] * b + 3 * c for a, b, c in slopes])[None]
    config = replace(PRESETS["default"], student=replace(SMALL.student, widths=(128, 128)))
    config = changed(config, steps=150, learning_rate=3e-3)
    students = fit(config, IMAGES[:1], field)
    assert error_over_variance(students.query_layer(4), field[:, -1]).item() < 0.1
    assert students.loss_curve.shape == (1, 150)


def test_the_papers_recipe_hardly_depends_on_the_address():
    config = replace(PRESETS["paper"], student=replace(SMALL.student, init="normal"))
    answer = fit(config).query_layer(4)
    spread = answer.var(dim=(1, 2)).mean() / FIELDS[:, -1].var(dim=(1, 2)).mean()
    assert spread < 1e-3
    assert (error_over_variance(answer, FIELDS[:, -1]) > 0.9).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", [SMALL, GUIDED], ids=["lqn", "guided"])
def test_on_a_gpu_students_learn_as_on_a_cpu(config):
    config = changed(config, steps=60)
    students = StudentFitter(config, GRID, FEATURES, "cuda").fit(IMAGES, FIELDS.cuda(), KEYS)
    again = StudentFitter(config, GRID, FEATURES, "cuda").fit(IMAGES, FIELDS.cuda(), KEYS)
    assert torch.equal(students.query_layer(4), again.query_layer(4))
    ratio = students.loss_curve[:, -10:].mean().cpu() / fit(config).loss_curve[:, -10:].mean()
    assert 0.8 < ratio < 1.25


# --- bad input


def test_what_cannot_be_fitted_is_refused():
    for variant in ("restore", "kernel", "teacher"):
        with pytest.raises(InputError, match="no student"):
            StudentFitter(with_variant(SMALL, variant), GRID, FEATURES)
    with pytest.raises(InputError, match=r"1\.\.4"):
        StudentFitter(changed(SMALL, layers=(1, 5)), GRID, FEATURES)


def test_bad_shapes_are_named():
    fitter = StudentFitter(SMALL, GRID, FEATURES)
    for bad, reason in (
        ((IMAGES[:2], FIELDS, KEYS), r"images must have shape \(3, 3, 12, 12\), got \(2, 3,"),
        ((IMAGES, FIELDS[:, :-1], KEYS), r"fields must have shape \(3, 4, 5, 6, 8\), got \(3, 3,"),
        ((IMAGES[:0], FIELDS[:0], []), "no image"),
        ((IMAGES, FIELDS, KEYS, [(IMAGES, FIELDS[:, :2], ())]), "fields must have shape"),
    ):
        with pytest.raises(InputError, match=reason):
            fitter.fit(*bad)
    students = fit(SMALL)
    for shape in ((4, 2), (2, 4, 3), (3,)):
        with pytest.raises(InputError, match=r"addresses must be \(Q, 3\) or \(3, Q, 3\), got"):
            students.query(torch.zeros(shape))
    with pytest.raises(InputError, match="only layer 4, not layer 3"):
        fit(with_variant(SMALL, "apm")).query_layer(3)


def test_scattered_addresses_are_asked_for_in_pieces_of_their_own(make_fields):
    """Their tables would grow with their number: 3000 of them, each of its own coordinates."""
    config = LQNConfig(
        StudentConfig(16, 4, (24,), 20, init="he", guide=0.5),
        FitConfig(steps=2, positions_per_step=8, precision="float32"),
    )
    fields = make_fields(1, (3, 4, 5), 8)
    fitted = StudentFitter(config, (3, 4, 5), 8).fit(
        torch.randn(1, 3, 16, 16), fields, [RandomKey(0)]
    )
    addresses = 1 + 2 * torch.rand(3000, 3)
    whole = fitted.query(addresses)
    some = fitted.query(addresses[1500:1510])
    torch.testing.assert_close(whole[:, 1500:1510], some, atol=1e-5, rtol=1e-5)

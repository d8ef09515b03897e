from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lqn_seg.core.fit import (
    Adam,
    StudentFitter,
    _Inputs,
    fit_student,
    fitted_layers,
    guiding_tokens,
)
from lqn_seg.core.positions import AddressTable, grid_positions
from lqn_seg.core.sampling import Draw, sample_apart, sample_positions

from lqn_seg.core.config import (
    PRESETS,
    VARIANTS,
    FitConfig,
    LQNConfig,
    StudentConfig,
    preset,
    with_variant,
)
from lqn_seg.core.precision import resolve_precision
from lqn_seg.core.random import CounterRandom, RandomKey
from lqn_seg.errors import InputError

GRID = (4, 5, 6)  # L, H, W
FEATURES = 8
SIDE = 12
KEYS = [RandomKey(0, 101), RandomKey(0, 202), RandomKey(0, 303)]
SMALL = LQNConfig(
    StudentConfig(SIDE, 4, (32, 24), 20, init="he"),
    FitConfig(
        steps=8, learning_rate=1e-3, positions_per_step=16, target_norm="layer", precision="float32"
    ),
)


def changed(config: LQNConfig, **fit) -> LQNConfig:
    return replace(config, fit=replace(config.fit, **fit))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def fields(make_fields) -> torch.Tensor:
    return make_fields(3, GRID, FEATURES)


def fitted(config, images, fields, keys=KEYS, classify=None):
    fitter = StudentFitter(config, GRID, FEATURES)
    return fitter.fit(images, fields, keys[: len(images)], classify)


def error_over_variance(answer: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Mean squared error of (B, H, W, D) tokens over the field's variance across positions."""
    error = (answer - field).square().mean(dim=(1, 2, 3))
    return error / field.var(dim=(1, 2), correction=0).mean(dim=1)


# --- against the plain student, torch.optim.Adam and float64


@pytest.mark.parametrize(
    "variant, student, fit",
    [
        ("lqn", {}, {}),
        ("lqn-src", {}, {}),
        ("apm", {}, {}),
        ("lqn", {"combine": "add"}, {}),
        ("lqn", {}, {"layers": (1, 3), "alpha": 0.2}),
        ("lqn", {}, {"alpha": 0.0}),
        ("lqn", {"guide": 0.5}, {}),
        ("lqn", {"guide": 0.01, "combine": "add"}, {"alpha": 0.0}),
        ("lqn-src", {"guide": 1.0}, {"layers": (2, 3)}),
        ("apm", {"guide": 0.75}, {}),
    ],
)
def test_loss_curve_is_that_of_the_plain_student(reference, images, fields, variant, student, fit):
    config = with_variant(SMALL, variant)
    config = changed(config, target_norm="none", **fit)
    config = replace(config, student=replace(config.student, **student))
    ours = fitted(config, images, fields)
    start = StudentFitter(changed(config, steps=0), GRID, FEATURES)
    weights = start.fit(images, fields, KEYS).weights
    layers = {"apm": (4,)}.get(variant, config.fit.layers)
    for b, key in enumerate(KEYS):
        random = CounterRandom([key])
        draws = [
            [
                sample_positions(random, GRID, 16, layers, step, draw)[0]
                for draw in (Draw.DESTINATION, Draw.SOURCE_1, Draw.SOURCE_2)
            ]
            for step in range(config.fit.steps)
        ]
        plain = reference.Student(config.student, FEATURES).load(weights, b)
        guide = at_grid = None
        if config.student.guide:  # a share of four layers, at least the first
            layer = {0.01: 1, 0.5: 2, 0.75: 3, 1.0: 4}[config.student.guide]
            guide = reference.standardised(fields[b, layer - 1])
            at_grid = guide.flatten(0, 1)
        looks = [(images[b].double(), fields[b].double())]
        curve = reference.fit(plain, looks, draws, config.fit, guide)
        curve = torch.tensor(curve, dtype=torch.float64)
        torch.testing.assert_close(ours.loss_curve[b].double(), curve, rtol=2e-5, atol=0)
        # and what is queried afterwards is what the plain student has become
        positions = grid_positions(*GRID[1:], 4)
        expected = plain(images[b].double(), torch.zeros_like(positions), positions, at_grid)
        torch.testing.assert_close(
            ours.query(positions)[b].double(), expected.detach(), rtol=1e-3, atol=1e-4
        )


def plain_curve(reference, config, looks, draws, b, classify=None) -> torch.Tensor:
    """Losses of the plain student that starts where student `b` of three starts.

    `looks` are (images, fields) of each view, `draws` of each step.
    """
    bare = changed(config, steps=0, objective="l2", views=1, sampling="uniform")
    start = StudentFitter(bare, GRID, FEATURES)
    weights = start.fit(*looks[0], KEYS).weights
    plain = reference.Student(config.student, FEATURES).load(weights, b)
    own = [(images[b].double(), fields[b].double()) for images, fields in looks]
    curve = reference.fit(plain, own, draws, config.fit, classify=classify)
    return torch.tensor(curve, dtype=torch.float64)


def drawn(b: int, step: int, draw: Draw) -> torch.Tensor:
    return sample_positions(CounterRandom([KEYS[b]]), GRID, 16, None, step, draw)


def test_views_are_looked_at_in_turn_and_the_image_is_asked(reference, images, fields, make_fields):
    config = changed(SMALL, target_norm="none", views=3)
    looks = [(images, fields)]
    for seed in (1, 2):
        other = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        looks.append((other, make_fields(3, GRID, FEATURES, seed)))
    fitter = StudentFitter(config, GRID, FEATURES)
    ours = fitter.fit(*looks[0], KEYS, views=looks[1:])
    kinds = (Draw.DESTINATION, Draw.SOURCE_1, Draw.SOURCE_2)
    for b in range(3):
        draws = [[drawn(b, step, kind)[0] for kind in kinds] for step in range(8)]
        expected = plain_curve(reference, config, looks, draws, b)
        torch.testing.assert_close(ours.loss_curve[b].double(), expected, rtol=2e-5, atol=0)
    # targets in the units of each view, answers in those of the image
    standardised = StudentFitter(changed(config, target_norm="layer"), GRID, FEATURES)
    moved = [(seen, 64 * field + 512) for seen, field in looks[1:]]
    found = [standardised.fit(*looks[0], KEYS, views=v).query_layer(4) for v in (looks[1:], moved)]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_segments_keep_sources_and_destination_apart(reference, images, fields):
    config = changed(SMALL, target_norm="none", sampling="segments")
    segments = torch.arange(30).view(1, 5, 6).expand(3, -1, -1) // 7
    fitter = StudentFitter(config, GRID, FEATURES)
    assert fitter.needs_segments
    ours = fitter.fit(images, fields, KEYS, segments=segments)
    for b in range(3):
        random, draws = CounterRandom([KEYS[b]]), []
        for step in range(8):
            taken = [drawn(b, step, Draw.DESTINATION)]
            for kind in (Draw.SOURCE_1, Draw.SOURCE_2):
                apart = sample_apart(random, GRID, segments[:1], taken, None, step, kind)
                taken.append(apart)
            draws.append([t[0] for t in taken])
        expected = plain_curve(reference, config, [(images, fields)], draws, b)
        torch.testing.assert_close(ours.loss_curve[b].double(), expected, rtol=2e-5, atol=0)
    assert not StudentFitter(changed(config, alpha=0.0), GRID, FEATURES).needs_segments
    assert not StudentFitter(with_variant(config, "lqn-src"), GRID, FEATURES).needs_segments


@pytest.mark.parametrize("layers", [None, (1, 2)])
def test_entropy_is_that_of_the_whole_last_layer(reference, images, fields, layers):
    head = torch.randn(FEATURES, 5, generator=torch.Generator().manual_seed(0))
    config = changed(SMALL, target_norm="none", objective="entropy", layers=layers)
    heads = 1 + torch.arange(30)[:, None] % 4  # a classifier that tells positions apart
    ours = fitted(config, images, fields, classify=lambda t: heads * (t @ head))
    whole = grid_positions(*GRID[1:], 4).long()
    for b in range(3):
        random = CounterRandom([KEYS[b]])
        draws = [
            [
                whole,
                *(
                    sample_positions(random, GRID, 30, layers, step, kind)[0]
                    for kind in (Draw.SOURCE_1, Draw.SOURCE_2)
                ),
            ]
            for step in range(8)
        ]
        expected = plain_curve(
            reference, config, [(images, fields)], draws, b, lambda t: heads * (t @ head.double())
        )
        torch.testing.assert_close(ours.loss_curve[b].double(), expected, rtol=2e-5, atol=0)


def test_adam_is_torch_optim_adam():
    generator = torch.Generator().manual_seed(0)
    config = FitConfig(learning_rate=1e-2, betas=(0.8, 0.99), eps=1e-6)
    start = torch.randn(2, 40, generator=generator)
    flat, theirs = start.clone(), torch.nn.Parameter(start.clone())
    adam = Adam(flat, config)
    optimizer = torch.optim.Adam([theirs], lr=1e-2, betas=(0.8, 0.99), eps=1e-6, foreach=False)
    for _ in range(20):
        theirs.grad = torch.randn(2, 40, generator=generator)
        adam.step(theirs.grad.clone())
        optimizer.step()
    torch.testing.assert_close(flat, theirs.detach(), atol=1e-6, rtol=1e-6)


def test_a_student_whose_gradients_overflow_waits_alone():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 40, generator=generator)
    flat, theirs = start.clone(), torch.nn.Parameter(start[1:].clone())
    adam = Adam(flat, FitConfig())
    optimizer = torch.optim.Adam([theirs], lr=1e-4)
    scale = torch.tensor([1024.0, 512.0])
    for _ in range(3):
        gradients = torch.randn(2, 40, generator=generator)
        theirs.grad = gradients[1:].clone()
        gradients[0, 7] = float("inf")
        adam.scaled_step(gradients * scale.unsqueeze(1), scale)
        optimizer.step()
    assert torch.equal(flat[0], start[0]) and adam.steps.tolist() == [0, 3]
    torch.testing.assert_close(flat[1:], theirs.detach(), atol=1e-6, rtol=1e-6)
    assert scale.tolist() == [128.0, 512.0]


# --- nothing survives an image


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_student_fitted_after_another_image_is_equal_bit_for_bit(images, fields, precision):
    config = changed(SMALL, precision=precision)
    fitter = StudentFitter(config, GRID, FEATURES)
    poison = torch.full_like(fields[:1], float("nan"))
    assert not fitter.fit(images[:1], poison, KEYS[:1]).finite.any()
    for b in (2, 0, 1):
        after = fitter.fit(images[b : b + 1], fields[b : b + 1], KEYS[b : b + 1])
        alone = fit_student(images[b], fields[b], KEYS[b], config)
        assert torch.equal(after.loss_curve, alone.loss_curve)
        assert torch.equal(after.query_layer(4), alone.query_layer(4))


def test_students_are_gone_once_their_fitter_fits_again(images, fields):
    fitter = StudentFitter(SMALL, GRID, FEATURES)
    first = fitter.fit(images, fields, KEYS)
    curve = first.loss_curve.clone()
    first.query_layer(4)
    fitter.fit(images, fields, KEYS)
    with pytest.raises(RuntimeError, match="gone"):
        first.query_layer(4)
    assert torch.equal(first.loss_curve, curve)


def test_students_side_by_side_are_the_students_alone(images, fields):
    together = fitted(SMALL, images, fields)
    for b in range(3):
        alone = fit_student(images[b], fields[b], KEYS[b], SMALL)
        torch.testing.assert_close(together.loss_curve[b], alone.loss_curve[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(
            together.query_layer(4)[b], alone.query_layer(4)[0], rtol=1e-3, atol=1e-3
        )


def test_a_student_that_diverges_is_told_and_leaves_the_others_alone(images, fields):
    sound = fitted(SMALL, images, fields)
    broken = fields.clone()
    broken[1, 2, 0, 0, 0] = float("nan")
    result = fitted(SMALL, images, broken)
    assert sound.finite.tolist() == [True] * 3 and result.finite.tolist() == [True, False, True]
    for b in (0, 2):
        assert torch.equal(result.loss_curve[b], sound.loss_curve[b])


def test_image_and_key_both_matter(images, fields):
    base = fit_student(images[0], fields[0], KEYS[0], SMALL).loss_curve
    assert not torch.equal(base, fit_student(images[1], fields[0], KEYS[0], SMALL).loss_curve)
    for key in (KEYS[1], KEYS[0]._replace(seed=7), KEYS[0]._replace(window=1)):
        assert not torch.equal(base, fit_student(images[0], fields[0], key, SMALL).loss_curve)


# --- the guide

GUIDED = replace(SMALL, student=replace(SMALL.student, guide=0.5))


def test_the_guide_is_the_layers_token_and_the_mean_halfway(fields):
    guide = guiding_tokens(fields, 0.5)
    inputs = _Inputs(torch.zeros(0), AddressTable(*torch.zeros(2, 0)), None, guide)
    whole = grid_positions(*GRID[1:], 3.0)
    for positions in (whole, whole.expand(3, -1, 3)):
        at = inputs.guide_at(positions).unflatten(1, GRID[1:])
        torch.testing.assert_close(at, guide, atol=1e-5, rtol=1e-5)
    below = whole.unflatten(0, GRID[1:]) + torch.tensor([0.5, 0, 0])
    right = whole.unflatten(0, GRID[1:]) + torch.tensor([0, 0.5, 0])
    at = inputs.guide_at(below[:-1].flatten(0, 1)).unflatten(1, (GRID[1] - 1, GRID[2]))
    torch.testing.assert_close(at, (guide[:, :-1] + guide[:, 1:]) / 2, atol=1e-5, rtol=1e-5)
    at = inputs.guide_at(right[:, :-1].flatten(0, 1)).unflatten(1, (GRID[1], GRID[2] - 1))
    torch.testing.assert_close(at, (guide[:, :, :-1] + guide[:, :, 1:]) / 2, atol=1e-5, rtol=1e-5)
    # beyond the edge: the edge; and each student its own positions
    corners = torch.tensor([[[0.0, 0, 1]], [[9.0, 9, 1]], [[2.25, 3.75, 1]]])
    mixed = torch.stack([guide[2, 1, 2:4], guide[2, 2, 2:4]])  # rows 2 and 3, columns 3 and 4
    shares = torch.outer(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75]))
    between = torch.einsum("rc,rcd->d", shares, mixed)
    expected = torch.stack([guide[0, 0, 0], guide[1, -1, -1], between])[:, None]
    torch.testing.assert_close(inputs.guide_at(corners), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share, layer", [(0.01, 1), (0.25, 1), (0.5, 2), (0.7, 3), (1.0, 4)])
def test_guiding_tokens_are_the_layers_standardised(reference, fields, share, layer):
    found = guiding_tokens(fields, share)
    for b in range(3):
        expected = reference.standardised(fields[b, layer - 1]).float()
        torch.testing.assert_close(found[b], expected, atol=1e-4, rtol=1e-4)
    constant = torch.full_like(fields, 3.0)
    assert torch.equal(guiding_tokens(constant, share), torch.zeros_like(found))


def test_a_guided_student_reads_only_its_guide_and_the_layers_it_fits(images, fields):
    config = changed(GUIDED, layers="last")
    answer = fitted(config, images, fields).query_layer(4)
    other = fields.clone()
    other[:, [0, 2]] = 1e3
    assert torch.equal(fitted(config, images, other).query_layer(4), answer)
    other[:, 1] = fields[:, 1].flip(1)
    assert not torch.equal(fitted(config, images, other).query_layer(4), answer)


def test_a_guided_student_is_alone_with_its_image(images, fields):
    together = fitted(GUIDED, images, fields)
    for b in range(3):
        alone = fit_student(images[b], fields[b], KEYS[b], GUIDED)
        torch.testing.assert_close(together.loss_curve[b], alone.loss_curve[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(
            together.query_layer(4)[b], alone.query_layer(4)[0], rtol=1e-3, atol=1e-3
        )


def test_a_guide_tells_what_no_address_does(images):
    """A last layer that is a function of the guide, over a guide without any order in space."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, *GRID[1:], FEATURES, generator=generator)
    mix = torch.randn(FEATURES, FEATURES, generator=generator)
    field = torch.stack([first, first, first, (first @ mix).tanh()], 1)
    errors = {}
    for share in (0.0, 0.25):
        config = changed(SMALL, steps=60, learning_rate=3e-3, layers="last")
        config = replace(config, student=replace(config.student, guide=share))
        students = fitted(config, images[:1], field)
        errors[share] = error_over_variance(students.query_layer(4), field[:, -1]).item()
    assert errors[0.25] < 0.5 * errors[0.0]


def test_guided_queries_in_pieces_and_per_student(images, fields, monkeypatch):
    students = fitted(GUIDED, images, fields)
    whole = students.query_layer(4)
    each = grid_positions(*GRID[1:], 4).expand(3, -1, 3)
    torch.testing.assert_close(students.query(each).view_as(whole), whole, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("lqn_seg.core.fit._QUERY_FLOATS", 3 * 32 * 7)
    torch.testing.assert_close(students.query_layer(4), whole, rtol=1e-5, atol=1e-5)


# --- the caller's modes


def test_works_under_no_grad_and_outer_autocast_and_leaves_them_be(images, fields):
    plain = fitted(SMALL, images, fields)
    with torch.no_grad():
        quiet = fitted(SMALL, images, fields)
        assert not torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        cast = fitted(SMALL, images, fields)
        cast_answer = cast.query_layer(4)
    answer = plain.query_layer(4)
    assert torch.equal(answer, quiet.query_layer(4)) and torch.equal(answer, cast_answer)
    assert answer.dtype == torch.float32 and not answer.requires_grad


def test_says_why_it_cannot_under_inference_mode(images, fields):
    fitter = StudentFitter(SMALL, GRID, FEATURES)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*no_grad"):
        fitter.fit(images, fields, KEYS)
    with torch.inference_mode():
        made_there = fields.clone(), images.clone()
    for norm in ("layer", "none"):
        config = changed(SMALL, target_norm=norm)
        outside = fitted(config, made_there[1], made_there[0]).query_layer(4)
        assert torch.equal(outside, fitted(config, images, fields).query_layer(4))


# --- recipes


def test_default_recipe_learns_a_field_that_is_linear_in_position(images):
    i, j = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(4, 3, FEATURES, generator=generator)
    field = torch.stack([i[..., None] * a + j[..., None] * b + 3 * c for a, b, c in slopes])
    config = replace(PRESETS["default"], student=replace(SMALL.student, widths=(128, 128)))
    config = changed(config, steps=200, learning_rate=3e-3)
    for variant in ("lqn", "lqn-src", "apm"):
        students = fit_student(images[0], field, KEYS[0], with_variant(config, variant))
        error = error_over_variance(students.query_layer(4), field[None, -1]).item()
        assert error < 0.1, variant
        assert students.loss_curve.shape == (1, 200) and students.finite.all()
        assert students.fit_ms > 0


def test_literal_recipe_hardly_depends_on_the_address(images, fields):
    config = replace(PRESETS["paper"], student=replace(SMALL.student, init="normal"))
    students = fitted(config, images, fields)
    answer = students.query_layer(4)
    spread = answer.var(dim=(1, 2)).mean() / fields[:, -1].var(dim=(1, 2)).mean()
    assert spread < 1e-3
    assert (error_over_variance(answer, fields[:, -1]) > 0.9).all()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_stays_near_float32(images, fields, precision):
    full, low = (
        fitted(changed(SMALL, precision=p, steps=30), images, fields)
        for p in ("float32", precision)
    )
    torch.testing.assert_close(low.loss_curve, full.loss_curve, rtol=0.1, atol=0.02)
    assert not torch.equal(low.loss_curve, full.loss_curve)
    assert low.query_layer(4).dtype == torch.float32


def test_auto_precision_is_one_of_the_two():
    assert resolve_precision("auto", torch.device("cpu")) in ("bfloat16", "float32")
    assert resolve_precision("float16", torch.device("cpu")) == "float16"
    with pytest.raises(InputError, match="not 'float8'"):
        resolve_precision("float8", torch.device("cpu"))


def test_layers_that_are_held_out_lend_nothing(images, fields):
    config = changed(SMALL, layers=(2, 1))
    other = fields.clone()
    other[:, 2:] = 1e3
    for layer in (1, 1.5, 3, 4):
        assert torch.equal(
            fitted(config, images, fields).query_layer(layer),
            fitted(config, images, other).query_layer(layer),
        )


def test_statistics_between_and_beyond_fitted_layers(images):
    levels = torch.tensor([1.0, 5.0, 2.0, 100.0])
    fields = levels.view(1, 4, 1, 1, 1).expand(3, *GRID, FEATURES)
    students = fitted(changed(SMALL, layers=(1, 2, 3)), images, fields)
    for layer, expected in ((1, 1.0), (1.25, 2.0), (2, 5.0), (2.5, 3.5), (3, 2), (4, 2), (9, 2)):
        answer = students.query_layer(layer)
        torch.testing.assert_close(answer, torch.full_like(answer, expected), atol=1e-4, rtol=0)
    # several layers in one query, per student or shared
    mixed = torch.tensor([[1.0, 1.0, 1.25], [2.0, 1.0, 2.0], [1.0, 3.0, 9.0]])
    expected = torch.tensor([2.0, 5.0, 2.0])[None, :, None].expand(3, 3, FEATURES)
    for positions in (mixed, mixed.expand(3, 3, 3)):
        torch.testing.assert_close(students.query(positions), expected, atol=1e-4, rtol=0)


def test_standardised_targets_make_units_irrelevant(images, fields):
    scaled = fields * 64 + 512  # exact in float32, so that only standardisation rounds
    a, b = (fitted(SMALL, images, f) for f in (fields, scaled))
    torch.testing.assert_close(a.loss_curve, b.loss_curve, rtol=1e-3, atol=0)
    torch.testing.assert_close(a.query_layer(4) * 64 + 512, b.query_layer(4), rtol=1e-3, atol=0.3)


def test_readout_sources(images, fields):
    answers = {
        source: fitted(changed(SMALL, readout_source=source), images, fields).query_layer(4)
        for source in ("anchor", "random", (0.0, 0.0, 0.0), (2.0, 3.0, 1.0))
    }
    assert torch.equal(answers["anchor"], answers[(0.0, 0.0, 0.0)])
    assert not torch.equal(answers["anchor"], answers[(2.0, 3.0, 1.0)])
    assert not torch.equal(answers["anchor"], answers["random"])
    again = fitted(changed(SMALL, readout_source="random"), images, fields).query_layer(4)
    assert torch.equal(again, answers["random"])


def test_entropy_objective(images, fields):
    head = torch.randn(FEATURES, 5, generator=torch.Generator().manual_seed(0))
    config = changed(SMALL, objective="entropy", layers="last", steps=40, alpha=0.1)
    for norm in ("layer", "none"):
        students = fitted(
            changed(config, target_norm=norm), images, fields, classify=lambda t: t @ head
        )
        assert (students.loss_curve[:, -1] < students.loss_curve[:, 0]).all()
    with pytest.raises(InputError, match="classify"):
        fitted(config, images, fields)
    with pytest.raises(InputError, match="classify"):
        fitted(SMALL, images, fields, classify=lambda t: t)


def test_long_queries_are_answered_in_pieces(images, fields, monkeypatch):
    students = fitted(SMALL, images, fields)
    whole = students.query_layer(4)
    monkeypatch.setattr("lqn_seg.core.fit._QUERY_FLOATS", 3 * 32 * 7)
    torch.testing.assert_close(students.query_layer(4), whole, rtol=1e-5, atol=1e-5)


def test_schedule_does_not_depend_on_how_much_is_drawn_at_once(images, fields, monkeypatch):
    whole = fitted(SMALL, images, fields).loss_curve
    monkeypatch.setattr("lqn_seg.core.fit._ROWS_AT_ONCE", 3 * 3 * 16 * 3)
    assert torch.equal(fitted(SMALL, images, fields).loss_curve, whole)


# --- names and bad input


def test_variants_by_name():
    paper = preset("paper")
    assert [with_variant(paper, name).fit.variant for name in VARIANTS] == list(VARIANTS)
    assert with_variant(paper, "two-word") == with_variant(paper, "lqn") == paper
    src = with_variant(paper, "lqn-src")
    assert (src.student.source, src.student.axes, src.fit.layers) == (False, 3, None)
    apm = with_variant(paper, "apm")
    assert (apm.student.source, apm.student.axes) == (False, 2)
    assert fitted_layers(apm.fit, 4) == (4,)
    kept = with_variant(changed(paper, layers=(1, 2)), "lqn-src")
    assert kept.fit.layers == (1, 2)


@pytest.mark.parametrize("layers", [None, "last", (1, 3)])
def test_a_variant_and_back_is_the_recipe_again(layers):
    recipe = changed(preset("default"), layers=layers)
    for name in ("lqn-src", "apm", "kernel", "teacher"):
        assert with_variant(with_variant(recipe, name), "lqn") == recipe
    assert fitted_layers(with_variant(recipe, "apm").fit, 4) == (4,)


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: with_variant(SMALL, "lqn-scr"), "did you mean 'lqn-src'"),
        (lambda: preset("papper"), "did you mean 'paper'"),
        (lambda: FitConfig(precision="bf16"), "did you mean 'bfloat16'"),
        (lambda: FitConfig(objective="entropie"), "did you mean 'entropy'"),
        (lambda: FitConfig(target_norm="layers"), "did you mean 'layer'"),
        (lambda: FitConfig(readout_source="ancor"), "did you mean 'anchor'"),
        (lambda: FitConfig(readout_source=(1, 2)), "address"),
        (lambda: FitConfig(layers="lost"), "did you mean 'last'"),
        (lambda: FitConfig(steps=-1), "steps"),
        (lambda: FitConfig(views=0), "views"),
        (lambda: FitConfig(views=0.5), "views"),
        (lambda: FitConfig(sampling="segment"), "did you mean 'segments'"),
        (lambda: FitConfig(views=2, sampling="segments"), "not of other views"),
        (lambda: FitConfig(positions_per_step=0), "positions_per_step"),
        (lambda: changed(SMALL, variant="apm"), "with_variant"),
        (lambda: StudentFitter(with_variant(SMALL, "restore"), GRID, 8), "no student"),
        (lambda: StudentFitter(with_variant(SMALL, "kernel"), GRID, 8), "no student"),
        (lambda: StudentFitter(with_variant(SMALL, "teacher"), GRID, 8), "no student"),
        (lambda: StudentFitter(changed(SMALL, layers=(1, 5)), GRID, 8), r"1\.\.4"),
        (lambda: StudentFitter(changed(SMALL, layers=()), GRID, 8), r"1\.\.4"),
    ],
)
def test_bad_names_and_numbers(call, reason):
    with pytest.raises(InputError, match=reason):
        call()


def test_bad_shapes(images, fields):
    fitter = StudentFitter(SMALL, GRID, FEATURES)
    for bad, name in (
        ((images[:2], fields, KEYS), "images"),
        ((images[..., :-1], fields, KEYS), "images"),
        ((images, fields[:, :-1], KEYS), "fields"),
        ((images[:0], fields[:0], []), "no image"),
    ):
        with pytest.raises(InputError, match=name):
            fitter.fit(*bad)
    with pytest.raises(InputError, match="field"):
        fit_student(images[0], fields, KEYS[0], SMALL)
    segments = torch.zeros(3, 5, 6, dtype=torch.int64)
    apart = StudentFitter(changed(SMALL, sampling="segments"), GRID, FEATURES)
    several = StudentFitter(changed(SMALL, views=2), GRID, FEATURES)
    view = (images, fields)
    for one, extras, reason in (
        (fitter, {"segments": segments}, "segments"),
        (fitter, {"views": [view]}, "1 views were asked for, 2 given"),
        (several, {}, "2 views were asked for, 1 given"),
        (several, {"views": [(images, fields[:, :2])]}, "fields"),
        (apart, {}, "segments"),
        (apart, {"segments": segments[:, :4]}, "segments"),
    ):
        with pytest.raises(InputError, match=reason):
            one.fit(images, fields, KEYS, **extras)
    students = fitter.fit(images, fields, KEYS)
    for shape in ((4, 2), (2, 4, 3), (3,)):
        with pytest.raises(InputError, match="positions"):
            students.query(torch.zeros(shape))
    apm = fitted(with_variant(SMALL, "apm"), images, fields)
    with pytest.raises(InputError, match="only layer 4"):
        apm.query_layer(3)

"""The journey by a stand-in for a method and a teacher, and then by students before an EoMT."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lqn_seg.adapt.denoise import remove_noise
from lqn_seg.adapt.journey import Answer, Images, Method, adapt
from lqn_seg.adapt.lqn import LQN, students
from lqn_seg.adapt.noise import residual
from lqn_seg.adapt.registry import make_method
from lqn_seg.core.alignment import Aligner
from lqn_seg.core.config import AdaptConfig, with_variant
from lqn_seg.core.lqn import StudentFitter
from lqn_seg.core.random import image_key
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from tests.adapt.conftest import CLEAN, NOISY, RECIPE, adapted, noise


class StandIn:
    """A teacher of two layers whose tokens are the pixels, with one context token."""

    num_layers, width, grid, device = 2, 3, (4, 4), torch.device("cpu")
    pixel_mean, pixel_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        self.passes = 0

    def encode(self, images, hook=None, last=False):
        self.passes += 1
        tokens = images.movedim(1, -1)  # (B, H, W, D)
        field = torch.stack([tokens, 2 * tokens], 1)
        return field, SimpleNamespace(last=tokens.mean((1, 2))[:, None])


class Says(Method):
    """Answers as it is told to."""

    student = True

    def __init__(self, teacher, weight, answer, layer=0) -> None:
        super().__init__(teacher, layer=layer)
        self.weight, self.answer, self.fits = weight, answer, 0

    def mixing_weight(self, images, seen):
        return self.weight

    def fit(self, images, seen):
        self.fits += 1
        return (lambda: self.answer) if isinstance(self.answer, Answer) else self.answer


@pytest.fixture
def images() -> Images:
    pixels = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return Images(StandIn(), pixels, [])


TOKENS = torch.randn(3, 4, 4, 3, generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(2))


def test_the_teacher_takes_normalised_pixels_once_for_all_methods(images):
    assert torch.equal(images.encode().field[:, 0], (4 * images.pixels - 2).movedim(1, -1))
    plain, aligned = images.encode(), images.encode(aligned=True)
    assert plain is aligned and images.teacher.passes == 1  # without a calibration
    assert plain.ms > 0 and plain.damage is None and not images.damaged().any()
    images.encode_pixels(images.pixels)
    assert images.teacher.passes == 2
    assert torch.equal(plain.tokens(1), plain.field[:, 0])
    last = replace(plain, last=TOKENS)
    assert last.tokens(2) is TOKENS and torch.equal(last.tokens(1), plain.field[:, 0])


def test_a_method_without_an_answer_is_the_teacher(images):
    result = adapt(Method(images.teacher), images)
    assert torch.equal(result.tokens, images.encode().field[:, -1])
    assert torch.equal(result.context, images.encode().context.last)
    assert result.weight is None and result.fallback.tolist() == [False] * 3
    assert result.fit_ms == result.query_ms == 0
    first = adapt(Method(images.teacher, layer=1), images)
    assert torch.equal(first.tokens, images.encode().field[:, 0])


def test_weight_0_leaves_the_teacher_bit_for_bit_and_fits_nothing(images):
    method = Says(images.teacher, torch.zeros(3), Answer(TOKENS))
    result = adapt(method, images)
    assert torch.equal(result.tokens, images.encode().field[:, -1]) and method.fits == 0
    assert result.query_ms == 0 and not result.fallback.any()
    # Beside images of other weights, and an answer of no number, too.
    answer = Answer(TOKENS / torch.tensor([0.0, 1, 1]).view(3, 1, 1, 1), CONTEXT)
    mixed = adapt(Says(images.teacher, torch.tensor([0.0, 0.5, 1.0]), answer), images)
    assert torch.equal(mixed.tokens[0], result.tokens[0]) and not mixed.fallback.any()
    assert torch.equal(mixed.context[0], result.context[0])


def test_tokens_and_context_are_mixed_by_their_weight(images):
    weight = torch.tensor([1.0, 0.25, 0.75])
    result = adapt(Says(images.teacher, weight, Answer(TOKENS, CONTEXT)), images)
    seen = images.encode()
    assert torch.equal(result.tokens[0], TOKENS[0]) and torch.equal(result.context[0], CONTEXT[0])
    for b in (1, 2):
        w = weight[b].item()
        expected = (1 - w) * seen.field[b, -1] + w * TOKENS[b]
        torch.testing.assert_close(result.tokens[b], expected)
        expected = (1 - w) * seen.context.last[b] + w * CONTEXT[b]
        torch.testing.assert_close(result.context[b], expected)
    assert result.fit_ms > 0 and result.query_ms > 0 and torch.equal(result.weight, weight)
    alone = adapt(Says(images.teacher, weight, Answer(TOKENS)), images)
    assert torch.equal(alone.context, seen.context.last)


def test_images_beyond_the_students_keep_the_teachers_tokens(images):
    result = adapt(Says(images.teacher, torch.ones(2), Answer(TOKENS[:2], CONTEXT[:2])), images)
    assert torch.equal(result.tokens[:2], TOKENS[:2]) and torch.equal(
        result.context[:2], CONTEXT[:2]
    )
    assert torch.equal(result.tokens[2], images.encode().field[2, -1])
    assert torch.equal(result.context[2], images.encode().context.last[2])
    assert result.fallback.tolist() == [False, False]


@pytest.mark.parametrize("where", ["tokens", "fit"])
def test_what_is_not_finite_falls_back_alone(images, where):
    tokens, finite = TOKENS.clone(), torch.tensor([True, where == "tokens", True])
    if where == "tokens":
        tokens[1, 2, 3, 0] = torch.inf
    result = adapt(Says(images.teacher, torch.ones(3), Answer(tokens, CONTEXT, finite)), images)
    assert result.fallback.tolist() == [False, True, False]
    assert torch.equal(result.tokens[1], images.encode().field[1, -1])
    assert torch.equal(result.context[1], images.encode().context.last[1])
    assert torch.equal(result.tokens[[0, 2]], TOKENS[[0, 2]])


def out_of_memory_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory")


def out_of_memory_on_a_cpu():
    torch.empty(1 << 60)  # what torch raises here is what has to be recognised


def broken():
    raise RuntimeError("a bug")


@pytest.mark.parametrize("exhausted", [out_of_memory_on_a_gpu, out_of_memory_on_a_cpu])
def test_running_out_of_memory_loses_no_image(images, exhausted, monkeypatch):
    weight = torch.tensor([1.0, 0.0, 0.5])
    asked = Says(images.teacher, weight, exhausted)
    fitted = Says(images.teacher, weight, Answer(TOKENS))
    monkeypatch.setattr(fitted, "fit", lambda *_: exhausted())
    for method in (asked, fitted):  # in the query, and in the fit
        result = adapt(method, images)
        assert result.fallback.tolist() == [True, False, True]
        assert torch.equal(result.tokens, images.encode().field[:, -1])
    with pytest.raises(RuntimeError, match="a bug"):
        adapt(Says(images.teacher, weight, broken), images)


# --- students before an EoMT


def before(eomt, pixels, calibration=None, views=1) -> Images:
    keys = [image_key(0, image) for image in pixels]
    return Images(eomt, torch.stack(pixels).float() / 255, keys, calibration, views=views)


def encode(eomt, pixels, calibration=None) -> tuple[torch.Tensor, Aligner | None]:
    """By hand: the field of one image, and what aligned it."""
    aligner, pixels = None, pixels[None].float() / 255
    if calibration:
        aligner, pixels = Aligner(calibration), remove_noise(pixels, calibration.noise)
    inputs = normalise(pixels, eomt.pixel_mean, eomt.pixel_std)
    return eomt.encode(inputs, aligner)[0], aligner


def test_noise_is_removed_before_an_aligned_teacher_and_no_other(eomt, calibration):
    images = before(eomt, [CLEAN, NOISY], calibration)
    pixels = remove_noise(images.pixels, calibration.noise)
    assert (pixels - images.pixels).abs().amax((1, 2, 3))[1] > 0.1
    for aligned, seen in ((False, images.pixels), (True, pixels)):
        aligner = Aligner(calibration) if aligned else None
        expected = eomt.encode(normalise(seen, eomt.pixel_mean, eomt.pixel_std), aligner)[0]
        assert torch.equal(images.encode(aligned).field, expected)


def student(recipe, field, pixels) -> torch.Tensor:
    """By hand: the answer of a student of this image."""
    fitter = StudentFitter(recipe, (4, 4, 4), 16)
    small = normalise(pixels[None].float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    return fitter.fit(small, field, [image_key(0, pixels)]).query_layer(4)


def run(recipe, images):
    with torch.no_grad():
        return adapt(make_method(recipe, images.teacher), images)


@pytest.mark.parametrize("align", [False, True])
def test_a_student_is_fitted_to_the_tokens_aligned_or_not(eomt, calibration, align):
    result = run(adapted(align=align), before(eomt, [NOISY], calibration))
    field, aligner = encode(eomt, NOISY, calibration if align else None)
    assert torch.equal(result.seen.field, field)
    assert torch.equal(result.tokens, student(adapted(), field, NOISY))  # bit for bit
    assert result.weight.tolist() == [1.0]
    if align:
        assert torch.equal(result.seen.damage, aligner.damage) and result.seen.damaged.all()


def test_alignment_without_a_student(eomt, calibration):
    result = run(with_variant(adapted(), "restore"), before(eomt, [NOISY], calibration))
    field, _ = encode(eomt, NOISY, calibration)
    assert torch.equal(result.tokens, field[:, -1]) and result.weight is None
    assert not torch.equal(result.tokens, encode(eomt, NOISY)[0][:, -1])
    teacher = run(with_variant(adapted(), "teacher"), before(eomt, [NOISY], calibration))
    assert torch.equal(teacher.tokens, encode(eomt, NOISY)[0][:, -1])


@pytest.mark.parametrize("align", [False, True])
def test_the_mixing_weight_is_the_noise_fraction(eomt, calibration, align):
    field, _ = encode(eomt, NOISY, calibration if align else None)
    settings = replace(calibration, residual=0.7 * residual(field).item())
    recipe = adapted(mix_by_noise=True, align=align)
    result = run(recipe, before(eomt, [NOISY], settings))
    assert result.weight.item() == pytest.approx(0.3, rel=1e-4)
    expected = 0.7 * field[:, -1] + 0.3 * student(recipe, field, NOISY)
    torch.testing.assert_close(result.tokens, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("align", [False, True])
def test_an_image_that_is_not_damaged_has_weight_0(eomt, calibration, align):
    settings = replace(calibration, undamaged=0.05, residual=0.1)
    recipe = adapted(mix_by_noise=True, align=align)
    result = run(recipe, before(eomt, [CLEAN, NOISY], settings))
    assert result.weight[0] == 0 and 0.5 < result.weight[1] < 1
    assert torch.equal(result.tokens[0], result.seen.field[0, -1])
    assert not torch.equal(result.tokens[1], result.seen.field[1, -1])
    assert not result.fallback.any()


def test_nothing_is_fitted_where_the_weight_is_0(eomt, calibration, monkeypatch):
    monkeypatch.setattr(StudentFitter, "fit", lambda *_, **__: broken())
    as_clean = replace(calibration, residual=9.0)  # as predictable as clean images
    for settings in (None, as_clean):
        result = run(adapted(mix_by_noise=True), before(eomt, [NOISY], settings))
        assert result.weight.tolist() == [0.0] and not result.fallback.any()
        assert torch.equal(result.tokens, encode(eomt, NOISY, settings)[0][:, -1])


def test_a_student_that_diverges_falls_back_to_the_aligned_teacher(eomt, calibration):
    wild = replace(adapted(), fit=replace(adapted().fit, learning_rate=1e38))
    result = run(wild, before(eomt, [NOISY], calibration))
    assert result.fallback.tolist() == [True]
    assert torch.equal(result.tokens, encode(eomt, NOISY, calibration)[0][:, -1])


def test_an_untrained_student_answers_with_the_mean_token_nearly(eomt):
    untrained = replace(adapted(align=False), fit=replace(adapted().fit, steps=0))
    result = run(untrained, before(eomt, [NOISY]))
    last = result.seen.field[:, -1]
    mean = last.mean((1, 2), keepdim=True)
    left = (result.tokens - mean).square().mean() / (last - mean).square().mean()
    assert 0 < left < 0.1


def test_of_several_views_the_image_or_all_have_students(eomt, calibration):
    settings = replace(calibration, undamaged=-1.0, residual=0.01)
    pixels = [noise(seed) for seed in range(4)]  # two images, two views of each
    for mix_by_noise, count in ((True, 2), (False, 4)):
        images = before(eomt, pixels, settings, views=2)
        assert students(adapted(mix_by_noise=mix_by_noise), images) == count
        result = run(adapted(mix_by_noise=mix_by_noise), images)
        assert len(result.weight) == len(result.fallback) == count
        same = [torch.equal(t, last) for t, last in zip(result.tokens, result.seen.field[:, -1])]
        assert same == [False] * count + [True] * (4 - count)


def test_the_students_input_is_its_own_size_and_normalisation(eomt):
    recipe = replace(RECIPE, student=replace(RECIPE.student, input_size=16), adapt=AdaptConfig())
    pixels = torch.full((2, 3, 32, 32), 0.5)
    result = LQN(recipe, eomt).student_input(pixels)
    expected = normalise(pixels[..., :16, :16], IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(result, expected)

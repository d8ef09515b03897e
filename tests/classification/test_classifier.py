"""The classifier against open_clip, literal poolings, and what must hold for every method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from lqn_seg.adapt.calibration import calibrate
from lqn_seg.adapt.classification_methods import BASELINES, CONTROLS, Adaptation
from lqn_seg.adapt.ineffective import IneffectiveMethodWarning
from lqn_seg.adapt.journey import Images, adapt
from lqn_seg.adapt.views import centre_view, corner_view
from lqn_seg.classification.classifier import Classifier, ClassifierConfig
from lqn_seg.classification.pooling import image_features, method_for
from lqn_seg.classification.prompts import templates, text_features
from lqn_seg.config.methods import adaptation, register_method
from lqn_seg.config.nodes import load_classification_cfg
from lqn_seg.core.config import AdaptConfig, with_variant
from lqn_seg.core.lqn import StudentFitter
from lqn_seg.core.random import image_key
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import normalise
from lqn_seg.teachers.clip import ClipTeacher
from tests.adapt.conftest import RECIPE as LQN
from tests.classification.conftest import NAMES


def photo(seed: int, height: int = 40, width: int = 36) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def text(teacher) -> dict[str, torch.Tensor]:
    single = text_features(teacher, NAMES, templates("single"))
    ensemble = text_features(teacher, NAMES, templates("ensemble"))
    return {"zero-shot": single, "ensemble": ensemble, "text": ensemble}


@pytest.fixture(scope="session")
def calibration(teacher):
    clean = torch.stack([centre_view(photo(seed), teacher) for seed in range(40)]).float() / 255
    return calibrate(teacher, lambda: [clean])


@pytest.fixture
def build(teacher, text):
    def make(methods, calibration=None, **config) -> Classifier:
        settings = ClassifierConfig(**{"views": 6, **config})
        return Classifier(teacher, NAMES, text, methods, settings, calibration)

    return make


def encode(teacher, image):
    pixels = normalise(
        centre_view(image, teacher)[None].float() / 255, teacher.pixel_mean, teacher.pixel_std
    )
    return pixels, *teacher.encode(pixels)


def test_plain_methods_are_open_clips_own(build, teacher, text):
    image = photo(0)
    pixels, field, _ = encode(teacher, image)
    (got,) = build({"zero-shot": None, "ensemble": None, **dict.fromkeys(CONTROLS)})([image])
    with torch.no_grad():
        features = teacher.model.encode_image(pixels, normalize=True)
        scale = teacher.model.logit_scale.exp()
        for name in ("zero-shot", "ensemble"):
            expected = (scale * features @ text[name].T).softmax(-1)[0]
            torch.testing.assert_close(got[name].probabilities, expected)
        visual = teacher.model.visual
        patches = visual.ln_post(field[0, -1].flatten(0, 1)) @ visual.proj
        mean = F.normalize(F.normalize(patches, dim=-1).mean(0), dim=-1)
        expected = (scale * mean @ text["ensemble"].T).softmax(-1)
    torch.testing.assert_close(got["teacher patch mean"].probabilities, expected)
    assert torch.equal(got["teacher CLS"].probabilities, got["ensemble"].probabilities)
    assert not torch.equal(got["zero-shot"].probabilities, got["ensemble"].probabilities)


METHODS = {
    "lqn": Adaptation(LQN),
    "lqn:mean": Adaptation(LQN, "mean", views=2),
    "lqn-src:mean_cls": Adaptation(with_variant(LQN, "lqn-src"), "mean_cls"),
    "apm:text": Adaptation(with_variant(LQN, "apm"), "text"),
    "lqn:reentry": Adaptation(LQN, "reentry", 2),
    **{name: None for name in BASELINES if name != "tda"},
}


def test_an_answer_does_not_depend_on_order_or_company(build):
    images = [photo(seed) for seed in range(5)]
    alone = [build(METHODS, batch=2)([image])[0] for image in images]
    together = build(METHODS, batch=2)(images)
    backwards = build(METHODS, batch=2)(images[::-1])[::-1]
    for name in METHODS:
        answers = [a[name].probabilities for a in alone]
        for other in (together, backwards):
            assert all(torch.equal(b[name].probabilities, p) for b, p in zip(other, answers)), name
        assert len({p.numpy().tobytes() for p in answers}) > 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_every_method_runs_with_a_teacher_in_half_precision(precision, teacher, text, calibration):
    """Near what the teacher in float32 says, and a distribution, whatever the method."""
    half = ClipTeacher(teacher.model, teacher.tokenizer, precision)
    restored = replace(LQN, adapt=AdaptConfig(align=True, mix_by_noise=True))
    methods = {"zero-shot": None, "default": Adaptation(restored, views=2), **METHODS}
    config = ClassifierConfig(views=6)
    by_precision = [
        Classifier(one, NAMES, text, methods, config, calibration)([photo(1)])[0]
        for one in (half, teacher)
    ]
    for name in methods:
        low, full = (result[name].probabilities for result in by_precision)
        assert low.dtype == torch.float32 and low.sum().item() == pytest.approx(1, abs=1e-5)
        if name not in ("zero", "tpt"):  # a vote flips, and so does the sign of AdamW's first step
            torch.testing.assert_close(low, full, atol=0.08, rtol=0)
    assert not torch.equal(*(result["zero-shot"].probabilities for result in by_precision))


def test_tda_depends_on_what_came_before_until_it_is_reset(build):
    images = [photo(seed) for seed in range(6)]
    classifier = build({"tda": None}, batch=4)
    first = [p["tda"].probabilities for p in classifier(images)]
    again = [p["tda"].probabilities for p in classifier(images)]
    classifier.reset()
    fresh = [p["tda"].probabilities for p in classifier(images)]
    one_by_one = build({"tda": None}, batch=1)
    singly = [one_by_one([image])[0]["tda"].probabilities for image in images]
    assert all(torch.equal(a, b) for a, b in zip(first, fresh))
    assert not all(torch.equal(a, b) for a, b in zip(first, again))
    # The images that fill up a batch are not part of the stream.
    torch.testing.assert_close(torch.stack(first), torch.stack(singly), atol=1e-5, rtol=1e-4)


def adapted(adaptation, teacher, text, pixels, image, calibration=None, view=0):
    """Features (E,) of one image by the journey alone, and what came of it."""
    images = Images(teacher, pixels, [image_key(0, image, view)], calibration)
    method = method_for(adaptation, teacher)
    with torch.no_grad():
        result = adapt(method, images)
        pooled = image_features(result, adaptation.pooling, method.layer, teacher, text["text"])
    return pooled[0], result


@pytest.mark.parametrize("pooling", ["cls", "mean", "mean_cls", "text", "reentry"])
def test_with_weight_0_every_pooling_has_the_teachers_answer(pooling, teacher, text):
    """A literal answer from the tokens of the teacher."""
    image = photo(3)
    silent = replace(LQN, adapt=AdaptConfig(mix_by_noise=True))
    pixels = centre_view(image, teacher)[None].float() / 255
    features, _ = adapted(Adaptation(silent, pooling, 2), teacher, text, pixels, image)
    _, field, context = encode(teacher, image)
    patches, cls = teacher.project(field[0, -1].flatten(0, 1)), teacher.project(context.cls[0])
    sure = (teacher.logit_scale * patches @ text["text"].T).softmax(-1).amax(-1)
    expected = {
        "cls": cls,
        "reentry": cls,
        "mean": patches.mean(0),
        "mean_cls": torch.cat([patches, cls[None]]).mean(0),
        "text": (sure[:, None] * patches).mean(0),
    }[pooling]
    torch.testing.assert_close(features, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_with_weight_1_the_tokens_of_the_student_answer(pooling, teacher, text):
    image = photo(4)
    pixels, key = centre_view(image, teacher)[None].float() / 255, image_key(0, image)
    features, seen = adapted(Adaptation(LQN, pooling), teacher, text, pixels, image)
    run, field = seen.seen, seen.seen.field
    if pooling == "cls":  # one more row, the CLS token of every layer in each of its columns
        row = run.context.prefix[:, 1:].unsqueeze(3).expand(-1, -1, -1, 4, -1)
        field = torch.cat([field, row.reshape(1, 3, 1, 4, 32)], 2)
    fitter = StudentFitter(LQN, tuple(field.shape[1:4]), 32)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    tokens = fitter.fit(normalise(pixels, mean, std), field, [key]).query_layer(3)[0]
    if pooling == "cls":
        expected = teacher.project(tokens[4].mean(0))
    else:
        expected = F.normalize(teacher.project(tokens.flatten(0, 1)).mean(0), dim=-1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


def test_what_does_nothing_says_so_once_in_python(build, calibration):
    """Once in a process for each name."""
    mix_by_noise = replace(LQN, adapt=AdaptConfig(align=True, mix_by_noise=True))
    mute = {
        "clip-lqn": Adaptation(mix_by_noise),
        "clip-restore": Adaptation(with_variant(LQN, "restore")),
    }
    methods = {
        **mute,
        "own": Adaptation(LQN),
        "zero": None,
        "vte": None,
        "mta": None,
        "teacher CLS": None,
    }
    classifier, images = build(methods), [photo(0), photo(1)]
    with pytest.warns(IneffectiveMethodWarning) as seen:
        result = classifier(images)
        classifier(images)
    assert [str(w.message).split()[1] for w in seen] == list(mute)
    for answers in result:
        for name in mute:
            assert torch.equal(answers[name].probabilities, answers["teacher CLS"].probabilities)
    assert not build(methods, calibration).ineffective
    alone = build(dict.fromkeys(("zero", "vte", "mta", "teacher CLS")), views=1)
    assert "CLASSIFICATION.VIEWS is 1" in alone.ineffective["zero"]
    for answers in alone(images):  # the class that the teacher's own answer names
        best = {name: p.probabilities.argmax() for name, p in answers.items()}
        assert best["zero"] == best["vte"] == best["mta"] == best["teacher CLS"]


def test_the_answer_of_several_views_is_their_mean_direction(build, calibration, teacher, text):
    """The views as they are by open_clip alone; restored, each view by itself."""
    image = photo(6) // 8 + 100  # a loss of contrast, which restoring undoes
    restoring = with_variant(replace(LQN, adapt=AdaptConfig(align=True)), "restore")
    methods = {
        "teacher": Adaptation(with_variant(restoring, "teacher"), views=4),
        "restore": Adaptation(restoring, views=4),
        "single": Adaptation(restoring),
    }
    (got,) = build(methods, calibration)([image])
    pixels = centre_view(image, teacher)[None].float() / 255
    views = torch.cat([corner_view(pixels, number) for number in range(4)])
    plain = teacher.image_features(normalise(views, teacher.pixel_mean, teacher.pixel_std))
    single = methods["single"]
    restored = [adapted(single, teacher, text, v[None], image, calibration)[0] for v in views]
    for name, features in {"teacher": plain, "restore": torch.stack(restored)}.items():
        mean = F.normalize(features.mean(0), dim=-1)
        expected = (teacher.logit_scale * mean @ text["text"].T).softmax(-1)
        torch.testing.assert_close(got[name].probabilities, expected, atol=1e-5, rtol=1e-4)
    p = {name: prediction.probabilities for name, prediction in got.items()}
    assert not torch.allclose(p["teacher"], p["restore"], atol=1e-3)
    assert not torch.allclose(p["single"], p["restore"], atol=1e-3)


@pytest.mark.parametrize("mix_by_noise", [True, False])
def test_a_recipe_mixed_by_noise_has_one_student_and_any_other_one_for_each_view(
    build, calibration, teacher, text, mix_by_noise
):
    """Each view by itself, with a student or without."""
    recipe = replace(LQN, adapt=AdaptConfig(align=True, mix_by_noise=mix_by_noise))
    calibration = replace(calibration, undamaged=-1.0, residual=0.01)  # whatever it is, it is bad
    image = photo(7)
    (got,) = build({"lqn": Adaptation(recipe, views=3)}, calibration)([image])
    pixels = centre_view(image, teacher)[None].float() / 255
    features = []
    for number in range(3):
        alone = recipe if not (mix_by_noise and number) else with_variant(recipe, "restore")
        view = corner_view(pixels, number)
        answer, result = adapted(Adaptation(alone), teacher, text, view, image, calibration, number)
        features.append(answer)
        if number == 0:
            weight = result.weight.item()
    mean = F.normalize(torch.stack(features).mean(0), dim=-1)
    expected = (teacher.logit_scale * mean @ text["text"].T).softmax(-1)
    torch.testing.assert_close(got["lqn"].probabilities, expected, atol=1e-4, rtol=1e-3)
    assert got["lqn"].stats["mixing_weight"] == pytest.approx(weight, abs=1e-4) and weight > 0.1


def test_a_student_that_diverges_is_counted_and_the_teacher_answers(build):
    wild = replace(LQN, fit=replace(LQN.fit, learning_rate=1e38))
    (got,) = build({"teacher CLS": None, "lqn": Adaptation(wild)})([photo(0)])
    assert got["lqn"].stats["fallback"] == 1
    assert torch.equal(got["lqn"].probabilities, got["teacher CLS"].probabilities)


def test_bad_input_is_named(build, teacher, text):
    with pytest.raises(InputError, match="unknown pooling 'maen': did you mean 'mean'"):
        Adaptation(LQN, "maen")
    with pytest.raises(InputError, match="layer 2, which the student is not fitted to"):
        method_for(Adaptation(with_variant(LQN, "apm"), "reentry", 2), teacher)
    with pytest.raises(InputError, match=r"REENTRY_LAYER must be in 1\.\.3, not 9"):
        method_for(Adaptation(LQN, "reentry", 9), teacher)
    with pytest.raises(InputError, match="uint8 array, got float32"):
        build({"zero-shot": None})([np.zeros((4, 4, 3), np.float32)])


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", ["single", "ensemble"])
def test_text_features_are_open_clips_zero_shot_classifier(teacher, prompts):
    expected = open_clip.build_zero_shot_classifier(
        teacher.model, teacher.tokenizer, list(NAMES), templates(prompts)
    )
    got = text_features(teacher, NAMES, templates(prompts))
    torch.testing.assert_close(got, expected.T, atol=1e-6, rtol=1e-5)
    assert len(templates("ensemble")) == 80


def test_the_fine_grained_sets_have_prompts_of_their_own():
    assert templates("single", "pets_test")[0]("pug") == "a photo of a pug, a type of pet."
    assert templates("single", "imagenet_val")[0]("pug") == "a photo of a pug."


def test_text_features_are_cached_by_model_and_texts(teacher, tmp_path, monkeypatch):
    first = text_features(teacher, NAMES, templates("single"), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")

    def refuse(*_):
        raise AssertionError("the text tower was run again")

    with monkeypatch.context() as patch:
        patch.setattr(type(teacher), "encode_text", refuse)
        assert torch.equal(text_features(teacher, NAMES, templates("single"), tmp_path), first)
        with pytest.raises(AssertionError, match="run again"):
            text_features(teacher, NAMES[:4], templates("single"), tmp_path)
        weight = teacher.token_embedding.weight
        patch.setattr(weight, "data", weight.data.clone())
        weight.data[0, 0] += 1
        with pytest.raises(AssertionError, match="run again"):
            text_features(teacher, NAMES, templates("single"), tmp_path)
    file.write_bytes(b"damaged")
    assert torch.equal(text_features(teacher, NAMES, templates("single"), tmp_path), first)


def test_a_call_computes_with_its_own_threads_and_gives_them_back(build, teacher, monkeypatch):
    classifier, seen, encode = build({"zero-shot": None}, threads=1), [], teacher.encode
    monkeypatch.setattr(
        teacher, "encode", lambda *given: (seen.append(torch.get_num_threads()), encode(*given))[1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        classifier([photo(0)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_function_of_tokens_is_a_method_of_classification_too(build):
    """The teacher's tokens, pooled as a function's are by default, are the control's."""
    register_method("last-layer", lambda teacher, images, field: field[:, -1])
    cfg = load_classification_cfg("configs/classification/demo.yaml", device="cpu")
    methods = {"last-layer": adaptation(cfg, "last-layer"), "teacher patch mean": None}
    (got,) = build(methods)([photo(0)])
    result, expected = (got[name].probabilities for name in methods)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)

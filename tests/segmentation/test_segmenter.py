"""The segmenter against transformers, and what must hold whatever the method."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lqn_seg.adapt.calibration import calibrate
from lqn_seg.adapt.dense.settings import Larger
from lqn_seg.adapt.ineffective import IneffectiveMethodWarning
from lqn_seg.adapt.methods import PixelControl, SegmentationConfig
from lqn_seg.core.config import with_variant
from lqn_seg.errors import InputError
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.segmentation.postprocess import mask_hash, semantic_inference
from lqn_seg.segmentation.segmenter import Segmenter, fidelity
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead
from tests.adapt.conftest import CLEAN, NOISY, RECIPE, adapted, noise, smooth

THINGS = frozenset(range(8))


@pytest.fixture
def build(teacher_folder):
    def make(methods=None, calibration=None, **config) -> Segmenter:
        teacher = load_eomt(str(teacher_folder))
        methods = {"teacher": None, "lqn": RECIPE} if methods is None else methods
        outputs = (
            {"panoptic": False} if config.get("inference") == "windows" else {"instances": True}
        )
        settings = SegmentationConfig(**{**outputs, "object_mask_threshold": 0.2, **config})
        return Segmenter(teacher, EomtHead(teacher.model), methods, THINGS, settings, calibration)

    return make


@pytest.fixture(scope="module")
def calibration(teacher_folder):
    crops = torch.stack([smooth(seed) for seed in range(20)]).float() / 255
    result = calibrate(load_eomt(str(teacher_folder)), lambda: crops.split(10), 0.0)
    return replace(result, undamaged=0.05, residual=0.1)


def same(a, b) -> bool:
    return torch.equal(a.output["sem_seg"], b.output["sem_seg"]) and (
        mask_hash(a.output) == mask_hash(b.output)
    )


# --- outputs


def test_the_teachers_prediction_is_transformers_own(build):
    segmenter, pixels = build({"teacher": None}), noise(0)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = segmenter.teacher.model(((pixels / 255 - mean) / std)[None])
    masks = F.interpolate(expected.masks_queries_logits, (32, 32), mode="bilinear")[0]
    want = semantic_inference(masks, expected.class_queries_logits[0])
    (got,) = segmenter([pixels])
    torch.testing.assert_close(got["teacher"].output["sem_seg"], want)
    assert got["teacher"].stats["token_cos"] == pytest.approx(1)
    assert got["teacher"].output["panoptic_seg"][0].shape == (32, 32)
    assert got["teacher"].output["instances"].pred_masks.shape[1:] == (32, 32)


def test_windows_cover_a_long_image(build):
    (prediction,) = build(inference="windows")([noise(0, 20, 45)])
    assert prediction["lqn"].output["sem_seg"].shape == (13, 20, 45)
    assert prediction["lqn"].stats["windows"] == 3


@pytest.mark.parametrize("inference", ["pad", "windows"])
def test_larger_is_the_teacher_at_a_larger_input(build, inference):
    """Windows are cut from the image at the larger size: no pixel of it goes through 32 px."""
    pixels, protocol = noise(6, 50, 80), {"panoptic": False, "instances": False}
    teacher = build().teacher.resized((40, 40))
    config = SegmentationConfig(inference=inference, panoptic=False)
    alone = Segmenter(teacher, EomtHead(teacher.model), {"teacher": None}, THINGS, config)
    methods = {"larger": Larger(), "lqn": RECIPE, "teacher": None}
    (result,) = build(methods, inference=inference, **protocol)([pixels])
    (expected,) = alone([pixels])
    assert list(result) == list(methods)
    assert torch.equal(result["larger"].output["sem_seg"], expected["teacher"].output["sem_seg"])
    assert result["larger"].output["sem_seg"].shape == (13, 50, 80)
    assert result["larger"].stats["windows"] == expected["teacher"].stats["windows"]
    assert not torch.equal(result["larger"].output["sem_seg"], result["teacher"].output["sem_seg"])
    del methods["larger"]
    (without,) = build(methods, inference=inference, **protocol)([pixels])
    for name in methods:
        assert torch.equal(without[name].output["sem_seg"], result[name].output["sem_seg"])


def test_bad_input_is_named(build):
    with pytest.raises(InputError, match="uint8"):
        build()([torch.zeros(3, 32, 32)])
    with pytest.raises(InputError, match="semantic output only"):
        SegmentationConfig(inference="windows")
    with pytest.raises(InputError, match="INFERENCE must be pad or windows"):
        SegmentationConfig(inference="slide")
    with pytest.raises(InputError, match="BATCH"):
        SegmentationConfig(batch=0)


# --- independence


def test_a_prediction_does_not_depend_on_order_or_company(build, calibration):
    methods = {
        "lqn": RECIPE,
        "default": adapted(mix_by_noise=True),
        "ridge": with_variant(adapted(mix_by_noise=True), "ridge"),
        "blur": PixelControl("blur"),
        "flip": PixelControl("flip"),
    }
    images = [CLEAN, NOISY, smooth(5), noise(2), noise(4)]
    alone = [build(methods, calibration, batch=3)([x])[0] for x in images]
    together = build(methods, calibration, batch=3)(images)
    backwards = build(methods, calibration, batch=3)(images[::-1])[::-1]
    for one, first, second in zip(alone, together, backwards):
        for name in methods:
            assert same(one[name], first[name]) and same(one[name], second[name])
            for key in ("mixing_weight", "damage"):
                assert one[name].stats.get(key) == first[name].stats.get(key)
    assert {prediction["default"].stats["mixing_weight"] > 0 for prediction in alone} == {
        False,
        True,
    }
    # Hashes that never differ would prove nothing.
    assert len({mask_hash(prediction["lqn"].output) for prediction in alone}) > 1


def test_batch_size_changes_results_by_rounding_only(build):
    images = [noise(k) for k in range(3)]
    one, three = build(batch=1)(images), build(batch=3)(images)
    for a, b in zip(one, three):
        torch.testing.assert_close(
            a["lqn"].output["sem_seg"], b["lqn"].output["sem_seg"], atol=2e-4, rtol=2e-4
        )


def test_the_answer_follows_the_seed_and_the_image(build):
    sums = {
        build({"lqn": RECIPE}, seed=seed)([pixels])[0]["lqn"].output["sem_seg"].sum().item()
        for seed in (0, 7)
        for pixels in (noise(0), noise(1))
    }
    assert len(sums) == 4


def test_a_call_computes_with_its_own_threads_and_gives_them_back(build, monkeypatch):
    """Whatever the entry point: a script that never heard of threads gets the same masks."""
    segmenter, seen = build(threads=1), []
    head = segmenter.head
    monkeypatch.setattr(
        segmenter, "head", lambda *tokens: (seen.append(torch.get_num_threads()), head(*tokens))[1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (prediction,) = segmenter([noise(0)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    again = build(threads=1)([noise(0)])[0]
    for name, result in prediction.items():
        assert mask_hash(result.output) == mask_hash(again[name].output)


# --- statistics, costs and warnings


def test_a_student_that_diverges_is_counted_and_the_teachers_masks_are_kept(build):
    wild = replace(RECIPE, fit=replace(RECIPE.fit, learning_rate=1e38))
    (prediction,) = build({"teacher": None, "lqn": wild})([noise(0)])
    assert prediction["lqn"].stats["fallback"] == 1 > prediction["teacher"].stats["fallback"]
    assert same(prediction["lqn"], prediction["teacher"])


def test_statistics_say_what_was_done(build, calibration):
    methods = {"teacher": None, "restore": with_variant(adapted(), "restore")}
    segmenter = build({**methods, "lqn": adapted(mix_by_noise=True)}, calibration, batch=2)
    clean, noisy = segmenter([CLEAN, NOISY])
    assert (
        clean["lqn"].stats["mixing_weight"] == 0 and 0.5 < noisy["lqn"].stats["mixing_weight"] < 1
    )
    assert clean["lqn"].stats["aligned"] == 0 and noisy["lqn"].stats["aligned"] == 1
    assert noisy["lqn"].stats["damage"] > clean["lqn"].stats["damage"]
    assert same(clean["lqn"], clean["restore"]) and not same(noisy["lqn"], noisy["restore"])
    assert noisy["lqn"].stats["fit_ms"] > 0 == noisy["restore"].stats["fit_ms"]
    assert not {"damage", "mixing_weight"} & noisy["teacher"].stats.keys()
    assert segmenter.precisions == {"lqn": "float32"}


def test_the_mean_token_has_error_one_and_the_teachers_own_none():
    tokens = 5 + torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    mean = tokens.mean((1, 2), keepdim=True).expand_as(tokens)
    for answer, error in ((mean, 1.0), (tokens, 0.0)):
        cosines, errors = fidelity(answer, tokens[:, None])
        assert errors.tolist() == pytest.approx([error] * 2) and cosines.max() <= 1 + 1e-6


def test_a_cost_that_was_not_paid_is_not_counted(build, calibration):
    """A student's GMACs are those of an image that has one; without any they are 0."""
    recipe = {"lqn": adapted(mix_by_noise=True), "restore": with_variant(adapted(), "restore")}
    for clean, weight in ((None, 0.0), (calibration, 0.0), (calibration, 1.0)):
        segmenter = build(recipe, clean)
        costs = count_gmacs(segmenter, "lqn", {"windows": 1, "mixing_weight": weight})
        plain = count_gmacs(segmenter, "restore", {"windows": 1})
        assert (costs["gmacs_fit"] > 0) == (costs["gmacs_query"] > 0) == bool(weight)
        assert (costs["gmacs_align"] == 0) == (plain["gmacs_align"] == 0) == (clean is None)
        assert weight or costs == plain
    costs = count_gmacs(build({"lqn": RECIPE}), "lqn", {"windows": 1, "mixing_weight": 1.0})
    assert costs["gmacs_fit"] > 0


def needy(prefix: str) -> dict:
    """Methods that need a calibration; a warning comes once in a process for each name."""
    controls = {
        f"{prefix}{name}": PixelControl(name) for name in ("blur", "denoise", "standardise")
    }
    recipes = {"lqn": adapted(mix_by_noise=True), "restore": with_variant(adapted(), "restore")}
    return {**{f"{prefix}{name}": recipe for name, recipe in recipes.items()}, **controls}


def test_what_does_nothing_says_so_once_in_python(build):
    methods = needy("idle-")
    segmenter = build({"teacher": None, **methods, "flip": PixelControl("flip"), "own": RECIPE})
    with pytest.warns(IneffectiveMethodWarning) as seen:
        (prediction,) = segmenter([NOISY])
        segmenter([NOISY])
        build(methods)([CLEAN])
    assert [str(w.message).split()[1] for w in seen] == list(methods) == list(segmenter.ineffective)
    assert all("MODEL.LQN.CALIBRATION" in str(w.message) for w in seen)
    for name in methods:  # it is true
        assert same(prediction[name], prediction["teacher"])
    assert not same(prediction["own"], prediction["teacher"])


def test_what_does_something_says_nothing(build, calibration):
    methods = needy("loud-")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter = build({"teacher": None, **methods}, calibration)
        (prediction,) = segmenter([NOISY])
        build({"lqn": RECIPE})([CLEAN])
    assert not segmenter.ineffective
    assert not same(prediction["loud-lqn"], prediction["teacher"])

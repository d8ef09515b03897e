"""The segmenter against transformers, and what must hold whatever the method."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lqn_seg.adapt.augment import augmented_views
from lqn_seg.core.fit import StudentFitter

from lqn_seg.adapt import controls, ineffective
from lqn_seg.adapt.calibration import calibrate
from lqn_seg.adapt.controls import change_pixels, larger_size
from lqn_seg.adapt.ineffective import IneffectiveMethodWarning
from lqn_seg.adapt.journey import Images
from lqn_seg.adapt.methods import PixelControl, SegmentationConfig
from lqn_seg.core.alignment import Restorer, residual
from lqn_seg.core.config import AdaptConfig, FitConfig, LQNConfig, StudentConfig, with_variant
from lqn_seg.core.random import image_key
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.cost.flops import EomtShape, method_gmacs
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.segmentation.meta_arch import LQNTTTMetaArch
from lqn_seg.segmentation.postprocess import mask_hash, semantic_inference
from lqn_seg.segmentation.segmenter import Segmenter, fidelity
from lqn_seg.segmentation.windows import SlidingWindows
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead

LQN = LQNConfig(
    StudentConfig(input_size=32, stride=8, widths=(32, 32), position_dim=32, init="he"),
    FitConfig(
        steps=4,
        learning_rate=1e-3,
        positions_per_step=16,
        target_norm="layer",
        precision="float32",  # the same on every machine
    ),
)
THINGS = frozenset(range(8))


@pytest.fixture
def build(teacher_folder):
    def make(methods=None, calibration=None, **config) -> Segmenter:
        teacher = load_eomt(str(teacher_folder))
        chosen = {"teacher": None, "lqn": LQN} if methods is None else methods
        settings = SegmentationConfig(**{"instances": True, "object_mask_threshold": 0.2, **config})
        head = EomtHead(teacher.model)
        return Segmenter(teacher, head, chosen, THINGS, settings, calibration)

    return make


def image(seed: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def test_the_teachers_prediction_is_transformers_own(build):
    segmenter, pixels = build({"teacher": None}), image(0)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = segmenter.teacher.model(((pixels / 255 - mean) / std)[None])
    masks = F.interpolate(expected.masks_queries_logits, (32, 32), mode="bilinear")[0]
    want = semantic_inference(masks, expected.class_queries_logits[0])
    (got,) = segmenter([pixels])
    torch.testing.assert_close(got["teacher"].output["sem_seg"], want)
    assert got["teacher"].stats["token_cos"] == pytest.approx(1)


def test_a_prediction_does_not_depend_on_order_or_company(build):
    images = [image(k) for k in range(7)]
    alone = [build(batch=3)([x])[0]["lqn"].output for x in images]
    together = build(batch=3)(images)
    backwards = build(batch=3)(images[::-1])[::-1]
    for one, first, second in zip(alone, together, backwards):
        for other in (first["lqn"].output, second["lqn"].output):
            assert torch.equal(other["sem_seg"], one["sem_seg"])
            assert mask_hash(other) == mask_hash(one)
    hashes = {mask_hash(output) for output in alone}
    assert len(hashes) > 1  # hashes that never differ would prove nothing


def test_batch_size_changes_results_by_rounding_only(build):
    images = [image(k) for k in range(3)]
    one, three = build(batch=1)(images), build(batch=3)(images)
    for a, b in zip(one, three):
        torch.testing.assert_close(
            a["lqn"].output["sem_seg"], b["lqn"].output["sem_seg"], atol=2e-4, rtol=2e-4
        )


def test_the_answer_follows_the_seed_the_image_and_the_window(build):
    hashes = {
        str(build({"lqn": LQN}, seed=seed)([pixels])[0]["lqn"].output["sem_seg"].sum().item())
        for seed in (0, 7)
        for pixels in (image(0), image(1))
    }
    assert len(hashes) == 4


def test_a_student_that_diverges_falls_back_to_the_teacher(build):
    wild = LQNConfig(LQN.student, FitConfig(**{**LQN.fit.__dict__, "learning_rate": 1e38}))
    (prediction,) = build({"teacher": None, "lqn": wild})([image(0)])
    assert prediction["lqn"].stats["fallback"] == 1
    assert mask_hash(prediction["lqn"].output) == mask_hash(prediction["teacher"].output)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_running_out_of_memory_loses_no_image(device, build, monkeypatch):
    def exhausted(*args, **kwargs):
        if device == "cuda":
            raise torch.OutOfMemoryError("no memory")
        torch.empty(1 << 60)  # what torch raises here is what has to be recognised

    monkeypatch.setattr(StudentFitter, "fit", exhausted)
    (prediction,) = build()([image(0)])
    assert prediction["lqn"].stats["fallback"] == 1
    assert mask_hash(prediction["lqn"].output) == mask_hash(prediction["teacher"].output)


def test_other_errors_are_not_taken_for_lack_of_memory(build, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(StudentFitter, "fit", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        build()([image(0)])


def test_a_long_fit_comes_back_to_the_teacher(build):
    """The student can represent the field of one tiny image: cosine and error say so."""
    long = LQNConfig(
        StudentConfig(input_size=32, stride=8, widths=(128, 128), position_dim=32, init="he"),
        FitConfig(steps=600, learning_rate=3e-3, positions_per_step=64, target_norm="layer"),
    )
    short, done = ({"lqn-src": with_variant(c, "lqn-src")} for c in (LQN, long))
    (before,), (after,) = build(short)([image(0)]), build(done)([image(0)])
    assert after["lqn-src"].stats["error_over_variance"] < 0.2
    assert before["lqn-src"].stats["error_over_variance"] > 0.5
    assert after["lqn-src"].stats["token_cos"] > before["lqn-src"].stats["token_cos"]


def test_student_queries_come_from_rows_below_the_grid(build):
    teacher, student = build(), build(queries="student")
    assert student.query_rows == 2  # six queries on a grid four columns wide
    images = torch.randn(1, 3, 32, 32)
    field, context = student.teacher.encode(images)
    extended = student.adapters["lqn"].field(field, context)
    assert extended.shape == (1, 4, 6, 4, 16)
    assert extended[0, -1, 4:].flatten(0, 1)[:6].equal(context.last_queries[0])
    assert extended[0, 0, 4:].flatten(0, 1)[:6].equal(student.teacher.model.query.weight)
    assert extended[0, -1, 4:].flatten(0, 1)[6:].equal(context.last_queries[0, :2])
    a, b = teacher([image(0)])[0], student([image(0)])[0]
    assert mask_hash(a["teacher"].output) == mask_hash(b["teacher"].output)
    assert not a["lqn"].output["sem_seg"].equal(b["lqn"].output["sem_seg"])


def test_windows_make_one_student_each(build):
    teacher_segmenter = build()
    config = SegmentationConfig(panoptic=False, inference="windows")
    segmenter = Segmenter(
        teacher_segmenter.teacher, teacher_segmenter.head, {"lqn": LQN}, THINGS, config
    )
    (prediction,) = segmenter([image(0, 20, 45)])
    assert prediction["lqn"].output["sem_seg"].shape == (13, 20, 45)
    assert prediction["lqn"].stats["windows"] == 3


def test_bad_input_is_named(build):
    with pytest.raises(InputError, match="uint8"):
        build()([torch.zeros(3, 32, 32)])
    with pytest.raises(InputError, match="semantic output only"):
        SegmentationConfig(inference="windows")
    with pytest.raises(InputError, match="BATCH"):
        SegmentationConfig(batch=0)


def test_meta_arch_takes_detectron2s_dicts_under_no_grad(build):
    model = LQNTTTMetaArch(build({"lqn": LQN}))
    assert not model.train().training
    inputs = [{"image": image(0), "height": 50, "width": 40}, {"image": image(1, 24, 60)}]
    with torch.no_grad():
        outputs = model(inputs)
    assert outputs[0]["sem_seg"].shape == (13, 50, 40)
    assert outputs[1]["panoptic_seg"][0].shape == (24, 60)
    assert outputs[0]["instances"].pred_masks.shape[1:] == (50, 40)
    assert outputs[0]["lqn"]["fit_ms"] > 0


def test_bgr_and_float_images_give_the_same_masks(build):
    rgb = LQNTTTMetaArch(build({"lqn": LQN}))
    bgr = LQNTTTMetaArch(build({"lqn": LQN}), input_format="BGR")
    want = mask_hash(rgb([{"image": image(0)}])[0])
    assert mask_hash(bgr([{"image": image(0).flip(0)}])[0]) == want
    assert mask_hash(bgr([{"image": image(0).flip(0).float()}])[0]) == want
    straight, swapped = (m([{"image": image(0)}])[0]["sem_seg"] for m in (rgb, bgr))
    assert not torch.equal(straight, swapped)


def test_inference_mode_is_refused_with_the_reason(build):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        LQNTTTMetaArch(build({"lqn": LQN}))([{"image": image(0)}])


def test_meta_arch_runs_one_method(build):
    with pytest.raises(InputError, match=r"MODEL\.LQN\.METHOD"):
        LQNTTTMetaArch(build())


# --- restored, blended and gauged

GUIDED = replace(LQN.student, guide=0.5)
OWN = LQNConfig(GUIDED, replace(LQN.fit, layers="last"), AdaptConfig(restore=True))


def adapted(gauged: bool = False, restore: bool = True) -> LQNConfig:
    return replace(OWN, adapt=AdaptConfig(restore, gauged))


def smooth(seed: int) -> torch.Tensor:
    """A clean image: (3, 32, 32) uint8 without any noise."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, (32, 32), mode="bilinear")[0]).byte()


CLEAN, NOISY = smooth(3), image(0)


@pytest.fixture(scope="module")
def calibration(teacher_folder):
    crops = torch.stack([smooth(seed) for seed in range(20)]).float() / 255
    return calibrate(load_eomt(str(teacher_folder)), lambda: crops.split(10), 0.0)


@pytest.fixture
def heard(monkeypatch):
    """Tokens and queries that the head is given, in the order of the methods."""
    calls = []
    original = EomtHead.__call__

    def listen(self, tokens, queries):
        calls.append((tokens.clone(), queries.clone()))
        return original(self, tokens, queries)

    monkeypatch.setattr(EomtHead, "__call__", listen)
    return calls


def encode(segmenter, pixels, calibration=None):
    """By hand: the field of one image, its query tokens, and the restorer."""
    teacher = segmenter.teacher
    images = normalise(pixels[None].float() / 255, teacher.pixel_mean, teacher.pixel_std)
    restorer = Restorer(calibration) if calibration else None
    field, context = teacher.encode(images, restorer)
    return field, context.last_queries, restorer


def student(segmenter, field, pixels) -> torch.Tensor:
    """By hand: the answer of a student of this image."""
    fitter = StudentFitter(OWN, (4, 4, 4), 16)
    small = normalise(pixels[None].float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    return fitter.fit(small, field, [image_key(0, pixels, 0)]).query_layer(4)


def same(a, b) -> bool:
    return torch.equal(a.output["sem_seg"], b.output["sem_seg"]) and (
        mask_hash(a.output) == mask_hash(b.output)
    )


UNCALIBRATED = {
    "teacher": None,
    "lqn": adapted(gauged=True),
    "restore": with_variant(OWN, "restore"),
    **{name: PixelControl(name) for name in ("blur", "denoise", "standardise")},
}


def test_what_does_nothing_says_so_once_in_python(build, monkeypatch):
    monkeypatch.setattr(ineffective, "_said", set())
    segmenter = build({**UNCALIBRATED, "flip": PixelControl("flip"), "own": LQN})
    with pytest.warns(IneffectiveMethodWarning) as seen:
        (prediction,) = segmenter([NOISY])
        segmenter([NOISY])
        build(UNCALIBRATED)([CLEAN])
    mute = [name for name in UNCALIBRATED if name != "teacher"]
    assert [str(w.message).split()[1] for w in seen] == mute == list(segmenter.ineffective)
    assert all("MODEL.LQN.CALIBRATION" in str(w.message) for w in seen)
    for name in mute:  # it is true
        assert same(prediction[name], prediction["teacher"])
    assert not same(prediction["own"], prediction["teacher"])


def test_what_does_something_says_nothing(build, calibration, monkeypatch):
    monkeypatch.setattr(ineffective, "_said", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not build(UNCALIBRATED, calibration).ineffective
        build(UNCALIBRATED, calibration)([NOISY])
        LQNTTTMetaArch(build({"lqn": LQN}))([{"image": CLEAN}])
    with pytest.warns(IneffectiveMethodWarning, match="lqn answers as its teacher"):
        LQNTTTMetaArch(build({"lqn": adapted(gauged=True)}))([{"image": CLEAN}])


def test_a_cost_that_was_not_paid_is_not_counted(build, calibration):
    """A student's GMACs are those of an image that has one; without any they are 0."""
    recipe = {"lqn": adapted(gauged=True), "restore": with_variant(OWN, "restore")}
    for found, heard, free in (
        (None, 0.0, True),
        (calibration, 0.0, False),
        (calibration, 1, False),
    ):
        segmenter = build(recipe, found)
        costs = count_gmacs(segmenter, "lqn", {"windows": 1, "blend": heard})
        plain = count_gmacs(segmenter, "restore", {"windows": 1})
        assert (costs["gmacs_fit"] > 0) == (costs["gmacs_readout"] > 0) == bool(heard)
        assert (costs["gmacs_restore"] == 0) == (plain["gmacs_restore"] == 0) == free
        if not heard:
            assert costs == plain
    assert count_gmacs(build({"lqn": LQN}), "lqn", {"windows": 1, "blend": 1.0})["gmacs_fit"] > 0


@pytest.mark.parametrize("restore", [False, True])
def test_without_a_calibration_the_gauged_answer_as_the_teacher(build, restore):
    segmenter = build({"teacher": None, "lqn": adapted(gauged=True, restore=restore)})
    for pixels in (CLEAN, NOISY):
        (prediction,) = segmenter([pixels])
        assert same(prediction["lqn"], prediction["teacher"])
        stats = prediction["lqn"].stats
        assert stats["blend"] == 0 and stats["fallback"] == 0 and "damage" not in stats
    assert segmenter.adapters["lqn"].fitter.fits == 0


def test_as_predictable_as_clean_images_is_restoration_alone(build, calibration):
    methods = {
        "teacher": None,
        "restore": with_variant(OWN, "restore"),
        "none": adapted(gauged=True),
        "plain none": adapted(gauged=True, restore=False),
    }
    segmenter = build(methods, replace(calibration, residual=9.0))
    (prediction,) = segmenter([NOISY])
    assert same(prediction["none"], prediction["restore"])
    assert same(prediction["plain none"], prediction["teacher"])
    assert segmenter.adapters["none"].fitter.fits == 0
    assert not same(prediction["restore"], prediction["teacher"])
    assert prediction["restore"].stats["damage"] > 0 == prediction["none"].stats["blend"]
    assert prediction["restore"].stats["restored"] == 1
    assert "damage" not in prediction["teacher"].stats


def test_the_head_hears_the_restored_teacher(build, calibration, heard):
    segmenter = build({"restore": with_variant(OWN, "restore")}, calibration)
    segmenter([NOISY])
    field, queries, _ = encode(segmenter, NOISY, calibration)
    assert torch.equal(heard[0][0], field[:, -1]) and torch.equal(heard[0][1], queries)


@pytest.mark.parametrize("restore", [False, True])
def test_without_a_gauge_the_head_hears_the_student(build, calibration, heard, restore):
    segmenter = build({"lqn": adapted(restore=restore)}, calibration)
    (prediction,) = segmenter([NOISY])
    field, queries, _ = encode(segmenter, NOISY, calibration if restore else None)
    assert torch.equal(heard[0][0], student(segmenter, field, NOISY))  # bit for bit
    assert torch.equal(heard[0][1], queries)
    assert prediction["lqn"].stats["blend"] == 1


@pytest.mark.parametrize("restore", [False, True])
def test_the_gauge_shares_out_the_answer(build, calibration, heard, restore):
    plain = build({"lqn": adapted(gauged=True, restore=restore)}, calibration)
    field, _, _ = encode(plain, NOISY, calibration if restore else None)
    settings = replace(calibration, residual=0.7 * residual(field).item())
    segmenter = build({"lqn": adapted(gauged=True, restore=restore)}, settings)
    (prediction,) = segmenter([NOISY])
    assert prediction["lqn"].stats["blend"] == pytest.approx(0.3, rel=1e-4)
    expected = 0.7 * field[:, -1] + 0.3 * student(segmenter, field, NOISY)
    torch.testing.assert_close(heard[0][0], expected, atol=1e-4, rtol=1e-4)


def test_the_gauge_tells_clean_from_noisy(build, calibration):
    methods = {"restore": with_variant(OWN, "restore"), "lqn": adapted(gauged=True)}
    settings = replace(calibration, undamaged=0.05, residual=0.1)
    clean, noisy = build(methods, settings, batch=2)([CLEAN, NOISY])
    assert clean["lqn"].stats["blend"] == 0 and 0.5 < noisy["lqn"].stats["blend"] < 1
    assert clean["lqn"].stats["restored"] == 0 and noisy["lqn"].stats["restored"] == 1
    assert same(clean["lqn"], clean["restore"]) and not same(noisy["lqn"], noisy["restore"])


def test_company_changes_no_answer_when_the_gauge_decides(build, calibration):
    settings = replace(calibration, undamaged=0.05, residual=0.1)
    methods = {
        "lqn": adapted(gauged=True),
        "ridge": with_variant(adapted(gauged=True), "ridge"),
        "blur": PixelControl("blur"),
        "flip": PixelControl("flip"),
    }
    images = [CLEAN, NOISY, smooth(5), image(2), image(4)]
    alone = [build(methods, settings, batch=3)([x])[0] for x in images]
    together = build(methods, settings, batch=3)(images)
    backwards = build(methods, settings, batch=3)(images[::-1])[::-1]
    for one, first, second in zip(alone, together, backwards):
        for name in methods:
            assert same(one[name], first[name]) and same(one[name], second[name])
            for key in ("blend", "damage"):
                assert one[name].stats.get(key) == pytest.approx(first[name].stats.get(key))
    assert {prediction["lqn"].stats["blend"] > 0 for prediction in alone} == {False, True}


def test_a_gauged_student_that_diverges_falls_back_to_the_restored_teacher(build, calibration):
    wild = replace(adapted(), fit=replace(OWN.fit, learning_rate=1e38))
    methods = {"restore": with_variant(OWN, "restore"), "lqn": wild}
    (prediction,) = build(methods, calibration)([NOISY])
    assert prediction["lqn"].stats["fallback"] == 1
    assert same(prediction["lqn"], prediction["restore"])


# --- controls


@pytest.mark.parametrize("variant", ["kernel", "ridge"])
def test_closed_form_controls_stand_in_for_the_student(build, heard, variant):
    method = with_variant(replace(OWN, adapt=AdaptConfig()), variant)
    segmenter = build({variant: method})
    assert segmenter.precisions == {variant: "float32"}
    segmenter([NOISY])
    field, queries, _ = encode(segmenter, NOISY)
    smoothed = controls.smooth(field, method.student.guide, variant)
    assert torch.equal(heard[0][0], smoothed) and torch.equal(heard[0][1], queries)
    assert not torch.allclose(heard[0][0], field[:, -1], atol=1e-2)


def test_pixel_controls_change_what_the_teacher_sees(build, calibration, heard):
    names = ("blur", "denoise", "standardise", "flip")
    settings = replace(calibration, undamaged=0.05)
    segmenter = build({name: PixelControl(name) for name in names}, settings)
    for pixels, damaged in ((CLEAN, False), (NOISY, True)):
        heard.clear()
        segmenter([pixels])
        tokens = dict(zip(names, (call[0] for call in heard)))
        field, _, _ = encode(segmenter, pixels)
        for name in ("blur", "denoise"):
            changed = change_pixels(name, pixels[None].float() / 255, None)[0]
            seen, _, _ = encode(segmenter, 255 * changed if damaged else pixels)
            torch.testing.assert_close(tokens[name], seen[:, -1], atol=1e-4, rtol=1e-4)
        mirrored, _, _ = encode(segmenter, pixels.flip(-1))
        mean = (field[:, -1] + mirrored[:, -1].flip(2)) / 2
        torch.testing.assert_close(tokens["flip"], mean, atol=1e-5, rtol=1e-5)
        kept = torch.allclose(tokens["standardise"], field[:, -1], atol=1e-4)
        assert kept != damaged


def test_pixel_controls_without_a_calibration(build):
    names = ("blur", "denoise", "standardise")
    methods = {"teacher": None, **{name: PixelControl(name) for name in names}}
    (prediction,) = build(methods)([NOISY])
    for name in names:  # nothing says what damage is, or what clean is
        assert same(prediction[name], prediction["teacher"])


def test_an_untrained_student_is_restored_gauged_and_blended_like_any(build, calibration, heard):
    """Its answer is that of fresh weights: the mean token, nearly."""
    untrained = replace(adapted(gauged=True), fit=replace(OWN.fit, steps=0))
    field, _, _ = encode(build(), NOISY, calibration)
    settings = replace(calibration, undamaged=0.05, residual=0.25 * residual(field).item())
    segmenter = build({"untrained": untrained}, settings)
    (prediction,) = segmenter([NOISY])
    mean = field[:, -1].mean((1, 2), keepdim=True)
    answer = (heard[0][0] - 0.25 * field[:, -1]) / 0.75
    left = (answer - mean).square().mean() / (field[:, -1] - mean).square().mean()
    assert 0 < left < 0.1
    assert prediction["untrained"].stats["blend"] == pytest.approx(0.75)
    assert prediction["untrained"].stats["fallback"] == 0


@pytest.mark.parametrize("inference", ["pad", "windows"])
def test_larger_is_the_teacher_at_a_larger_input(build, inference):
    """Windows are cut from the image at the larger size: no pixel of it goes through 32 px."""
    pixels = image(6, 50, 80)
    teacher = load_eomt(str(build().teacher.model.config._name_or_path)).resized((40, 40))
    config = SegmentationConfig(panoptic=False, inference=inference)
    alone = Segmenter(teacher, EomtHead(teacher.model), {"teacher": None}, THINGS, config)
    base = build()
    methods = {"larger": PixelControl("larger"), "lqn": LQN, "teacher": None}
    both = Segmenter(base.teacher, base.head, methods, THINGS, config)
    (found,), (expected,) = both([pixels]), alone([pixels])
    assert list(found) == list(methods)
    assert torch.equal(found["larger"].output["sem_seg"], expected["teacher"].output["sem_seg"])
    assert found["larger"].output["sem_seg"].shape == (13, 50, 80)
    assert found["larger"].stats["windows"] == expected["teacher"].stats["windows"]
    assert not torch.equal(found["larger"].output["sem_seg"], found["teacher"].output["sem_seg"])
    del methods["larger"]
    (without,) = Segmenter(base.teacher, base.head, methods, THINGS, config)([pixels])
    for name in methods:
        assert torch.equal(without[name].output["sem_seg"], found[name].output["sem_seg"])


@pytest.mark.parametrize("side, patch, larger", [(512, 16, 640), (96, 8, 120), (100, 10, 120)])
def test_the_larger_side_is_a_quarter_more_in_whole_patches(side, patch, larger):
    assert larger_size((side, 4 * side), patch) == (larger, round(5 * side / patch) * patch)


# --- what the paper's ablations ask of the segmenter


@pytest.fixture
def asked(monkeypatch):
    """What fitters are given, by argument."""
    calls = []
    original = StudentFitter.fit

    def listen(self, images, fields, keys, classify=None, views=(), segments=None, places=None):
        calls.append({"fields": fields, "keys": keys, "views": views, "segments": segments})
        calls[-1] |= {"images": images, "classify": classify}
        return original(self, images, fields, keys, classify, views, segments, places)

    monkeypatch.setattr(StudentFitter, "fit", listen)
    return calls


@pytest.mark.parametrize("restore", [False, True])
def test_each_view_has_a_pass_of_the_teacher(build, calibration, asked, restore):
    method = replace(adapted(restore=restore), fit=replace(OWN.fit, views=3))
    segmenter = build({"lqn": method}, calibration, batch=2)
    segmenter([NOISY, CLEAN])
    (call,) = asked
    crops = torch.stack([NOISY, CLEAN]).float() / 255
    views = augmented_views(crops, call["keys"], 3)
    assert len(call["views"]) == 2 and torch.equal(views[:, 0], crops)
    for k, (seen, field) in enumerate(call["views"], start=1):
        torch.testing.assert_close(seen, normalise(views[:, k], IMAGENET_MEAN, IMAGENET_STD))
        for b in range(2):
            expected, _, _ = encode(segmenter, 255 * views[b, k], calibration if restore else None)
            torch.testing.assert_close(field[b], expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("queries", ["teacher", "student"])
def test_segments_are_the_queries_that_win_positions(build, asked, queries):
    method = replace(LQN, fit=replace(LQN.fit, sampling="segments"))
    segmenter = build({"lqn": method}, queries=queries)
    segmenter([image(0)])
    found = asked[0]["segments"][0]
    field, own, _ = encode(segmenter, image(0))
    masks, classes = segmenter.head(field[:, -1], own)
    objects = classes[0].softmax(-1)[:, :-1].max(-1).values
    per_patch = masks.shape[-1] // 4
    for i in range(4):
        for j in range(4):
            patch = masks[0, :, i * per_patch : (i + 1) * per_patch]
            patch = patch[:, :, j * per_patch : (j + 1) * per_patch]
            assert found[i, j] == (objects * patch.sigmoid().mean((1, 2))).argmax()
    assert len(found[:4].unique()) > 1
    rows = {"teacher": 0, "student": 2}[queries]
    assert found.shape == (4 + rows, 4) and (found[4:] > found[:4].max()).all()


@pytest.mark.parametrize("queries", ["teacher", "student"])
def test_the_head_classifies_the_last_layer_pixel_by_pixel(build, asked, queries):
    method = replace(LQN, fit=replace(LQN.fit, objective="entropy", alpha=0.0, steps=20))
    segmenter = build({"teacher": None, "lqn": method}, queries=queries)
    (prediction,) = segmenter([image(0)])
    assert prediction["lqn"].stats["fallback"] == 0
    call, (field, own, _) = asked[0], encode(segmenter, image(0))
    logits = call["classify"](call["fields"][:, -1].flatten(1, 2))
    masks, classes = segmenter.head(field[:, -1], own)
    scores = semantic_inference(masks[0], classes[0]).flatten(1).T
    shares = scores / scores.sum(1, keepdim=True)
    torch.testing.assert_close(logits[0].softmax(-1), shares, atol=1e-5, rtol=1e-5)
    fitter = segmenter.adapters["lqn"].fitter
    curve = fitter.fit(call["images"], call["fields"], call["keys"], call["classify"]).loss_curve
    assert curve[0, -1] < curve[0, 0]


@pytest.mark.parametrize(
    "fit",
    [
        {"objective": "entropy"},
        {"objective": "entropy", "alpha": 0.0},
        {"sampling": "segments"},
        {"views": 3},
    ],
)
def test_what_an_ablation_runs_is_what_is_counted(build, fit):
    """Everything between the teacher's run of the image and the read-out."""
    method = replace(LQN, fit=replace(LQN.fit, **fit))
    segmenter = build({"lqn": method})
    adapter, crops = segmenter.adapters["lqn"], image(0)[None].float() / 255
    images = Images(segmenter.teacher, crops, [image_key(0, image(0))], task=segmenter)
    seen = images.encode()
    counted = measure(lambda: adapter.fit(images, seen))
    shape = EomtShape.from_config(segmenter.teacher.model.config)
    plain = replace(LQN, fit=replace(LQN.fit, alpha=method.fit.alpha))
    costs, once = method_gmacs(method, shape), method_gmacs(plain, shape)
    further = costs["gmacs_teacher"] - once["gmacs_teacher"]
    assert counted.gmacs == pytest.approx(costs["gmacs_fit"] + further, rel=0.02)
    assert costs["gmacs_total"] > once["gmacs_total"]


# --- one student for all windows of an image


def test_one_student_sees_all_windows_where_they_lie(build, heard):
    pixels = image(3, 32, 80)
    methods = {"lqn": replace(OWN, adapt=AdaptConfig())}
    segmenter = build(
        methods, panoptic=False, instances=False, inference="windows", fit_per="image"
    )
    (prediction,) = segmenter([pixels])
    assert prediction["lqn"].stats["windows"] == 3
    layout = SlidingWindows.of((32, 80), (32, 32))
    crops = normalise(layout.crops(pixels).float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    field, _ = segmenter.teacher.encode(crops)
    fitter = StudentFitter(OWN, (4, 4, 12), 16)
    side = OWN.student.input_size
    small = F.interpolate(pixels[None].float() / 255, (side, side), mode="bilinear", antialias=True)
    students = fitter.fit(
        normalise(small, IMAGENET_MEAN, IMAGENET_STD),
        torch.cat(tuple(field), dim=2)[None],
        [image_key(0, pixels, 0)],
        # 24 pixels, three tokens, from window to window
        places=(torch.arange(1.0, 5), torch.arange(1.0, 5).repeat(3) + 3 * (torch.arange(12) // 4)),
    )
    expected = students.query_layer(4)[0].unflatten(1, (3, 4)).movedim(1, 0)
    torch.testing.assert_close(heard[0][0], expected, atol=1e-5, rtol=1e-5)


def test_a_shared_student_needs_windows_and_keeps_to_its_image(build):
    settings = {"panoptic": False, "inference": "windows", "fit_per": "image"}
    images = [image(1, 32, 70), image(2), image(3, 90, 32)]
    build_one = lambda: build({"lqn": LQN}, instances=False, batch=2, **settings)  # noqa: E731
    together, alone = build_one()(images), [build_one()([pixels])[0] for pixels in images]
    for one, other in zip(together, alone):
        assert torch.equal(one["lqn"].output["sem_seg"], other["lqn"].output["sem_seg"])
    single = build({"lqn": LQN}, panoptic=False, instances=False, inference="windows")([image(2)])
    assert torch.equal(
        single[0]["lqn"].output["sem_seg"], together[1]["lqn"].output["sem_seg"]
    )  # one window: the same student


def test_what_a_shared_student_does_not_know_is_refused(build):
    with pytest.raises(InputError, match="QUERIES"):
        build(fit_per="image", queries="student")
    with pytest.raises(InputError, match="FIT_PER must be window or image"):
        build(fit_per="picture")
    views = replace(LQN, fit=replace(LQN.fit, views=2))
    with pytest.raises(InputError, match="method lqn: FIT_PER image"):
        build({"lqn": views}, fit_per="image")


def test_the_mean_token_has_error_one_and_the_teachers_own_none():
    tokens = 5 + torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    mean = tokens.mean((1, 2), keepdim=True).expand_as(tokens)
    for answer, error in ((mean, 1.0), (tokens, 0.0)):
        cosines, errors = fidelity(answer, tokens[:, None])
        assert errors.tolist() == pytest.approx([error] * 2) and cosines.max() <= 1 + 1e-6


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
        (prediction,) = segmenter([image(0)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    again = build(threads=1)([image(0)])[0]
    for name, found in prediction.items():
        assert mask_hash(found.output) == mask_hash(again[name].output)

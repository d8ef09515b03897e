"""The segmenter against transformers, and what must hold whatever the method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lqn_seg.core.controls import ClosedFormField
from lqn_seg.core.fit import AdaptConfig, FitConfig, LQNConfig, StudentFitter, with_variant
from lqn_seg.core.gauge import Restorer
from lqn_seg.core.random import image_key
from lqn_seg.core.student import StudentConfig
from lqn_seg.errors import InputError
from lqn_seg.heads.eomt import EomtHead
from lqn_seg.segmentation.calibration import calibrate
from lqn_seg.segmentation.meta_arch import LQNTTTMetaArch
from lqn_seg.segmentation.postprocess import mask_hash, semantic_inference
from lqn_seg.segmentation.segmenter import SegmentationConfig, Segmenter
from lqn_seg.segmentation.views import PixelControl
from lqn_seg.teachers.base import normalise
from lqn_seg.teachers.eomt import IMAGENET_MEAN, IMAGENET_STD, load_eomt

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
        settings = SegmentationConfig(instances=True, object_mask_threshold=0.2, **config)
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
    extended = student._with_queries(field, context)
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


def adapted(blend: float, gauged: bool = False, restore: bool = True) -> LQNConfig:
    return replace(OWN, adapt=AdaptConfig(restore, blend, gauged))


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


@pytest.mark.parametrize("restore", [False, True])
def test_without_a_calibration_the_gauged_answer_as_the_teacher(build, restore):
    methods = {"teacher": None, "lqn": adapted(0.75, gauged=True, restore=restore)}
    for pixels in (CLEAN, NOISY):
        (prediction,) = build(methods)([pixels])
        assert same(prediction["lqn"], prediction["teacher"])
        stats = prediction["lqn"].stats
        assert stats["blend"] == 0 and stats["fallback"] == 0 and "damage" not in stats
        assert stats["fit_ms"] == 0


def test_no_blend_is_restoration_alone(build, calibration):
    methods = {
        "teacher": None,
        "restore": with_variant(OWN, "restore"),
        "none": adapted(0.0),
        "plain none": adapted(0.0, restore=False),
    }
    (prediction,) = build(methods, calibration)([NOISY])
    assert same(prediction["none"], prediction["restore"])
    assert same(prediction["plain none"], prediction["teacher"])
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
def test_blended_tokens_are_shares_of_the_two_answers(build, calibration, heard, restore):
    blends = (1.0, 0.3)
    methods = {str(blend): adapted(blend, restore=restore) for blend in blends}
    segmenter = build(methods, calibration)
    (prediction,) = segmenter([NOISY])
    field, queries, _ = encode(segmenter, NOISY, calibration if restore else None)
    answer = student(segmenter, field, NOISY)
    assert torch.equal(heard[0][0], answer)  # the student's own, bit for bit
    expected = 0.7 * field[:, -1] + 0.3 * answer
    torch.testing.assert_close(heard[1][0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(heard[0][1], queries)
    shares = [prediction[name].stats["blend"] for name in methods]
    assert shares == pytest.approx(blends)
    if not restore:  # the recipe as it was before there was a blend
        plain = {"lqn": replace(OWN, adapt=AdaptConfig())}
        assert same(build(plain)([NOISY])[0]["lqn"], prediction["1.0"])


def test_the_gauge_weighs_the_blend(build, calibration, heard):
    """An image between clean and noisy is answered by both."""
    pixels = (0.9 * CLEAN.float() + 0.1 * NOISY.float()).byte()
    segmenter = build({"lqn": adapted(0.75, gauged=True)}, calibration)
    _, _, restorer = encode(segmenter, pixels, calibration)
    middle = restorer.damage.item() / 2.5  # so that this image's weight is a half
    segmenter = build({"lqn": adapted(0.75, gauged=True)}, replace(calibration, undamaged=middle))
    (prediction,) = segmenter([pixels])
    stats = prediction["lqn"].stats
    assert stats["damage"] == pytest.approx(restorer.damage.item(), rel=1e-5)
    assert stats["blend"] == pytest.approx(0.75 * 0.5, rel=1e-4)
    field, _, _ = encode(segmenter, pixels, calibration)
    expected = field[:, -1].lerp(student(segmenter, field, pixels), 0.375)
    torch.testing.assert_close(heard[0][0], expected, atol=1e-4, rtol=1e-4)


def test_the_gauge_tells_clean_from_noisy(build, calibration):
    methods = {"restore": with_variant(OWN, "restore"), "lqn": adapted(1.0, gauged=True)}
    settings = replace(calibration, undamaged=0.05)
    clean, noisy = build(methods, settings, batch=2)([CLEAN, NOISY])
    assert clean["lqn"].stats["blend"] == 0 and noisy["lqn"].stats["blend"] == 1
    assert clean["lqn"].stats["restored"] == 0 and noisy["lqn"].stats["restored"] == 1
    assert same(clean["lqn"], clean["restore"]) and not same(noisy["lqn"], noisy["restore"])


def test_company_changes_no_answer_when_the_gauge_decides(build, calibration):
    settings = replace(calibration, undamaged=0.05)
    methods = {
        "lqn": adapted(0.75, gauged=True),
        "ridge": with_variant(adapted(0.75, gauged=True), "ridge"),
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
    wild = replace(adapted(0.5), fit=replace(OWN.fit, learning_rate=1e38))
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
    smoothed = ClosedFormField(method, (4, 4, 4), 16, "cpu").fit(torch.zeros(0), field, [])
    assert torch.equal(heard[0][0], smoothed.query_layer(4)) and torch.equal(heard[0][1], queries)
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
            changed = PixelControl(name).apply(pixels[None].float() / 255, None)[0]
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

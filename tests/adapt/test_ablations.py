"""Each ablation through the Segmenter or the Classifier does what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop

from lqn_seg.adapt.ablations import fit_options
from lqn_seg.adapt.classification_methods import Adaptation
from lqn_seg.adapt.journey import Images
from lqn_seg.adapt.methods import ABLATIONS, SegmentationConfig, parse_ablation
from lqn_seg.classification.classifier import Classifier, ClassifierConfig
from lqn_seg.core.config import LQNConfig, with_variant
from lqn_seg.core.lqn import FittedStudents, StudentFitter
from lqn_seg.core.random import Stream, image_key, image_seed
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.cost.flops import EomtShape, method_gmacs
from lqn_seg.segmentation.postprocess import semantic_inference
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.segmentation.windows import SlidingWindows
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from lqn_seg.teachers.clip import ClipTeacher
from lqn_seg.teachers.eomt_head import EomtHead
from tests.adapt.conftest import CLEAN, NOISY, RECIPE, adapted, noise
from tests.classification.conftest import NAMES, build_clip
from tests.core import plain_port

EXAMPLES = {word: "-".join([word, *"231"[:count]]) for word, count in ABLATIONS.items()}


def ablation(name: str, recipe: LQNConfig = RECIPE, **fit) -> LQNConfig:
    return replace(recipe, ablation=name, fit=replace(recipe.fit, **fit))


@pytest.fixture
def build(eomt):
    def make(methods, calibration=None, **config) -> Segmenter:
        settings = SegmentationConfig(**{"panoptic": False, **config})
        head, things = EomtHead(eomt.model), frozenset(range(8))
        return Segmenter(eomt, head, methods, things, settings, calibration)

    return make


@pytest.fixture(scope="module")
def clip() -> ClipTeacher:
    return ClipTeacher(build_clip(), None)


@pytest.fixture
def classify(clip):
    """The class probabilities of a picture by recipes that answer with their CLS or patches."""

    def run(query: str, **recipes: LQNConfig) -> dict[str, torch.Tensor]:
        text = F.normalize(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
        texts = {name: text for name in ("zero-shot", "ensemble", "text")}
        methods = {name: Adaptation(recipe, query) for name, recipe in recipes.items()}
        classifier = Classifier(clip, NAMES, texts, methods, ClassifierConfig(views=1))
        picture = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        return {name: p.probabilities for name, p in classifier([picture])[0].items()}

    return run


@pytest.fixture
def fits(monkeypatch) -> list[tuple[tuple, dict, FittedStudents]]:
    """What fitters are given and what they give."""
    calls, original = [], StudentFitter.fit

    def listen(self, *arguments, **options):
        fitted = original(self, *arguments, **options)
        calls.append((arguments, options, fitted))
        return fitted

    monkeypatch.setattr(StudentFitter, "fit", listen)
    return calls


@pytest.fixture
def head_inputs(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and queries that the head is given."""
    calls, original = [], EomtHead.__call__

    def listen(self, tokens, queries):
        calls.append((tokens.clone(), queries.clone()))
        return original(self, tokens, queries)

    monkeypatch.setattr(EomtHead, "__call__", listen)
    return calls


def encode(eomt, *pixels: torch.Tensor):
    """By hand: (B, 3, 32, 32) pixels in 0..255 to their field and context."""
    images = torch.stack(pixels).float() / 255
    with torch.no_grad():
        return eomt.encode(normalise(images, eomt.pixel_mean, eomt.pixel_std))


# --- names


def test_names_have_their_numbers():
    assert parse_ablation("none") == ("none", ())
    assert parse_ablation("views-8") == ("views", (8,))
    assert parse_ablation("source-2-5-8") == ("source", (2, 5, 8))
    assert [parse_ablation(name)[0] for name in EXAMPLES.values()] == list(ABLATIONS)


@pytest.mark.parametrize(
    "name", ["views", "views-0", "views-1-2", "views-8x", "source-1-2", "entropy-3", "views-"]
)
def test_a_name_with_the_wrong_numbers_is_one_sentence(name):
    with pytest.raises(InputError, match="ABLATION"):
        parse_ablation(name)
    with pytest.raises(InputError, match=r"ABLATION.*did you mean 'entropy'"):
        parse_ablation("entropie")


# --- all of them


def test_every_ablation_segments_and_changes_the_answer(build):
    methods = {name: ablation(name) for name in EXAMPLES.values()}
    segmenter = build({"teacher": None, **methods}, inference="windows")
    (result,), (again,) = (segmenter([noise(3, 32, 48)]) for _ in range(2))
    scores = {name: prediction.output["sem_seg"] for name, prediction in result.items()}
    for name, prediction in again.items():
        assert torch.equal(prediction.output["sem_seg"], scores[name])
        assert prediction.stats["fallback"] == 0
    different = {tuple(s.flatten().tolist()) for s in scores.values()}
    # The teacher is one more, and an EoMT's student-queries and cls-in-field are one.
    assert len(different) == len(ABLATIONS)


def test_every_ablation_classifies(classify):
    recipes = {word: ablation(name) for word, name in EXAMPLES.items()}
    result = classify("mean", **recipes)
    for word, probabilities in result.items():
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
        changes = word not in ("none", "fit-per-image")  # an image is one window
        assert torch.equal(probabilities, result["none"]) != changes, word


def test_an_answer_does_not_depend_on_company(build):
    methods = {name: ablation(name) for name in EXAMPLES.values() if name != "fit-per-image"}
    images = [CLEAN, NOISY, noise(5)]
    together = build(methods, batch=3)(images)
    for image, result in zip(images, together):
        (alone,) = build(methods, batch=3)([image])
        for name in methods:
            expected = alone[name].output["sem_seg"]
            assert torch.equal(result[name].output["sem_seg"], expected), name


# --- one by one


@pytest.mark.parametrize("align", [False, True])
def test_views_are_random_parts_each_with_a_pass_of_the_teacher(build, calibration, fits, align):
    recipe = ablation("views-3", adapted(align=align))
    segmenter = build({"lqn": recipe}, calibration, batch=2)
    segmenter([NOISY, CLEAN])
    ((_, options, fitted),) = fits
    assert len(options["views"]) == 2 and fitted.loss_curve.shape == (2, 4)
    for number, (seen, field, _) in enumerate(options["views"], start=1):
        for b, image in enumerate((NOISY, CLEAN)):
            pixels = image.float() / 255
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(image_seed(image_key(0, image), Stream.VIEW) + number)
                view, mirrored = RandomResizedCrop((32, 32))(pixels), torch.rand(1) < 0.5
            view = view.flip(-1) if mirrored else view
            torch.testing.assert_close(seen[b], normalise(view, IMAGENET_MEAN, IMAGENET_STD)[0])
            images = Images(segmenter.teacher, view[None], [], calibration)
            expected = images.encode(align).field[0]
            torch.testing.assert_close(field[b], expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(options["views"][0][0], options["views"][1][0])


def segment_labels(segments: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Of places among the tokens of any layer."""
    return segments.flatten()[indices % segments.numel()]


def sampled(recipe: LQNConfig, eomt, segments: torch.Tensor) -> list[torch.Tensor]:
    """(3, N, n) places of one student, by the sampler of segments and by the uniform one."""

    class Task:
        def segments(self, seen):
            return segments[None]

    segmenter = Segmenter(
        eomt, EomtHead(eomt.model), {"lqn": recipe}, frozenset(), SegmentationConfig()
    )
    images = Images(eomt, NOISY[None].float() / 255, [image_key(0, NOISY)], task=Task())
    method = segmenter.adapters["lqn"]
    options = fit_options(method, images, images.encode(), 1)
    samplers = options["sampler"], method.fitter.uniform
    return [sampler(0, images.keys[0]) for sampler in samplers]


def test_segments_keep_sources_and_destination_apart(eomt):
    recipe = ablation("segments", layers=(2, 4), positions_per_step=400)
    three = torch.tensor([[7, 7, 7, 2], [7, 5, 5, 2], [7, 5, 2, 2], [7, 5, 2, 2]])
    result, uniform = sampled(recipe, eomt, three)
    assert torch.equal(result[0], uniform[0])
    assert torch.equal(result // 16, uniform // 16)  # a source keeps its layer
    dest, first, second = (segment_labels(three, indices) for indices in result)
    assert (dest != first).all() and (dest != second).all() and (first != second).all()
    # Uniform over what is left: of destination 7, segments 2 (6 tokens) and 5 (4).
    counts = torch.bincount(result[1][dest == 7] % 16, minlength=16).double()
    left, total = three.flatten() != 7, counts.sum()
    assert not counts[~left].any()
    chi_square = ((counts[left] - total / left.sum()) ** 2 / (total / left.sum())).sum()
    assert chi_square < 9 + 4 * 18**0.5
    # Two segments: the second source has none left, and may lie anywhere.
    two = torch.tensor([3, 1, 3, 1]).expand(4, 4)
    dest, first, second = (
        segment_labels(two, indices) for indices in sampled(recipe, eomt, two)[0]
    )
    assert (dest != first).all() and set((dest == second).flatten().tolist()) == {False, True}
    one, uniform = sampled(recipe, eomt, torch.zeros(4, 4, dtype=torch.int64))
    assert len(one[1].unique()) == len(uniform[1].unique()) == 32
    # Without sources there is nothing to keep apart.
    src = ablation("segments", with_variant(RECIPE, "lqn-src"))
    assert len(sampled(src, eomt, three)[0]) == 1


def test_segments_are_the_queries_that_win_positions(build, eomt):
    segmenter = build({"lqn": RECIPE})
    images = Images(eomt, noise(0)[None].float() / 255, [])
    with torch.no_grad():
        (result,) = segmenter.segments(images.encode())
        field, context = encode(eomt, noise(0))
        masks, classes = segmenter.head(field[:, -1], context.last_queries)
    objects, size = classes[0].softmax(-1)[:, :-1].amax(-1), masks.shape[-1] // 4
    for i in range(4):
        for j in range(4):
            patch = masks[0, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
            assert result[i, j] == (objects * patch.sigmoid().mean((1, 2))).argmax()
    assert len(result.unique()) > 1


def test_entropy_of_what_the_head_says_falls(build, eomt, fits):
    recipe = ablation("entropy", steps=20, alpha=0.0)
    segmenter = build({"lqn": recipe})
    (prediction,) = segmenter([noise(0)])
    assert prediction["lqn"].stats["fallback"] == 0
    ((_, options, fitted),) = fits
    assert fitted.loss_curve[0, -1] < 0.9 * fitted.loss_curve[0, 0]
    # The loss of the teacher's own tokens, in the student's units, is the entropy of its scores.
    field, context = encode(eomt, noise(0))
    last = field[:, -1].flatten(1, 2)
    standardised = plain_port.standardised(field[0, -1]).flatten(0, 1)[None].float()
    masks, classes = segmenter.head(field[:, -1], context.last_queries)
    scores = semantic_inference(masks[0], classes[0]).flatten(1).T.double()
    shares = scores / scores.sum(1, keepdim=True)
    expected = -(shares * shares.log()).sum(1).mean().item()
    assert options["binding"](standardised, last).item() == pytest.approx(expected, rel=1e-3)
    # Of the whole last layer, at each step.
    indices = options["sampler"](0, image_key(0, noise(0)))
    assert torch.equal(indices, torch.arange(48, 64).expand(1, 20, 16))


def test_entropy_recirculates_at_random_sources(build, fits):
    build({"lqn": ablation("entropy", positions_per_step=6)})([noise(0)])
    ((_, options, fitted),) = fits
    uniform = fitted.fitter.uniform(0, image_key(0, noise(0)))
    indices = options["sampler"](0, image_key(0, noise(0)))
    assert indices.shape == (3, 4, 16)
    assert torch.equal(indices[1:, :, :12], torch.cat([uniform[1:], uniform[1:]], 2))


def test_added_positions_read_both_locations_by_one_block(build, eomt, fits):
    build({"lqn": ablation("added-positions"), "paper": RECIPE})([noise(0)])
    added, paper = (fitted for *_, fitted in fits)
    weights = {name: w.detach() for name, w in added.students.weights.items()}
    assert weights["first.source"] is not weights["first.destination"]
    assert torch.equal(weights["first.source"], weights["first.destination"])
    other = paper.students.weights
    assert not torch.equal(other["first.source"], other["first.destination"])
    # Its answer is that of a student with the block twice, whichever location is which.
    plain = plain_port.Student(RECIPE.student, 16).load(weights)
    image = normalise(noise(0)[None].float() / 255, IMAGENET_MEAN, IMAGENET_STD)[0].double()
    dest, source = torch.tensor([[1, 2, 4], [3, 4, 4]]), torch.tensor([[2, 2, 1], [1, 1, 3]])
    expected = plain(image, source, dest).detach()
    mean, deviation = added.view.mean[0, -1], added.view.deviation[0, -1]
    result = added.query(dest[None], source[None].float())[0]
    torch.testing.assert_close(result, (expected * deviation + mean).float(), atol=1e-3, rtol=1e-3)


def test_a_fit_per_image_sees_its_windows_where_they_lie(build, eomt, head_inputs):
    pixels = noise(3, 32, 80)
    recipe = ablation("fit-per-image", adapted(align=False))
    (prediction,) = build({"lqn": recipe}, inference="windows")([pixels])
    assert prediction["lqn"].stats["windows"] == 3
    crops = SlidingWindows.of((32, 80), (32, 32)).crops(pixels)
    field, _ = encode(eomt, *crops)
    small = F.interpolate(pixels[None].float() / 255, (32, 32), mode="bilinear", antialias=True)
    # 24 pixels, three tokens, from window to window.
    columns = torch.arange(1.0, 5).repeat(3) + 3 * (torch.arange(12) // 4)
    students = StudentFitter(recipe, (4, 4, 12), 16).fit(
        normalise(small, IMAGENET_MEAN, IMAGENET_STD),
        torch.cat(tuple(field), dim=2)[None],
        [image_key(0, pixels)],
        coordinates=(torch.arange(1.0, 5), columns),
    )
    expected = students.query_layer(4)[0].unflatten(1, (3, 4)).movedim(1, 0)
    torch.testing.assert_close(head_inputs[0][0], expected, atol=1e-5, rtol=1e-5)


def test_a_fit_per_image_keeps_to_its_image(build):
    recipe = {"lqn": ablation("fit-per-image")}
    images = [noise(1, 32, 70), noise(2), noise(3, 90, 32)]
    together = build(recipe, inference="windows", batch=2)(images)
    for image, result in zip(images, together):
        (alone,) = build(recipe, inference="windows", batch=2)([image])
        assert torch.equal(result["lqn"].output["sem_seg"], alone["lqn"].output["sem_seg"])
    (single,) = build({"lqn": RECIPE}, inference="windows")([noise(2)])  # one window: no other
    assert torch.equal(single["lqn"].output["sem_seg"], together[1]["lqn"].output["sem_seg"])


def test_student_queries_come_from_rows_below_the_grid(build, eomt, head_inputs):
    segmenter = build({"teacher": None, "lqn": ablation("student-queries")})
    field, context = encode(eomt, noise(0))
    extended = segmenter.adapters["lqn"].field(field, context)
    assert extended.shape == (1, 4, 6, 4, 16)  # six queries in two rows of four
    for layer, queries in ((3, context.last_queries[0]), (0, eomt.model.query.weight)):
        cells = extended[0, layer, 4:].flatten(0, 1)
        assert torch.equal(cells, torch.cat([queries, queries[:2]]))
    segmenter([noise(0)])
    (_, queries), (tokens, answered) = head_inputs
    assert torch.equal(queries, context.last_queries)
    answer = StudentFitter(RECIPE, (4, 6, 4), 16).fit(
        normalise(noise(0)[None].float() / 255, IMAGENET_MEAN, IMAGENET_STD),
        extended,
        [image_key(0, noise(0))],
    )
    answer = answer.query_layer(4)[0]
    cells = answer[4:].flatten(0, 1)
    mean = torch.cat([(cells[:2] + cells[6:]) / 2, cells[2:6]])
    torch.testing.assert_close(answered[0], mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[0], answer[:4], atol=1e-5, rtol=1e-5)


def test_cls_in_field_gives_a_cls_token_to_fit(classify, fits):
    """Patches alone do not fit it otherwise; the CLS token always does."""
    name = "cls-in-field"
    classify("mean", none=RECIPE, field=ablation(name))
    rows = [arguments[1].shape[2] for arguments, *_ in fits]
    assert rows == [4, 5]
    result = classify("cls", none=RECIPE, field=ablation(name))
    assert torch.equal(result["none"], result["field"])


@pytest.mark.parametrize("name", ["source-2-3-1", "random-source"])
def test_a_query_starts_at_the_source(build, head_inputs, fits, name):
    build({"none": RECIPE, "lqn": ablation(name)}, batch=2)([noise(0), noise(1)])
    anchored, answered = (tokens for tokens, _ in head_inputs)
    (*_, plain), (*_, fitted) = fits
    assert torch.equal(plain.loss_curve, fitted.loss_curve)  # the fit is the same
    assert torch.equal(anchored, fitted.query_layer(4)) and not torch.equal(anchored, answered)
    if name == "source-2-3-1":
        assert torch.equal(answered, fitted.query_layer(4, (2.0, 3.0, 1.0)))


def test_random_sources_are_addresses_of_the_grid_and_the_images_own(build, monkeypatch):
    given, original = [], FittedStudents.query_layer

    def listen(self, layer, source, view):
        given.append(source)
        return original(self, layer, source, view)

    monkeypatch.setattr(FittedStudents, "query_layer", listen)
    for seed, images in ((0, [noise(0), noise(1)]), (0, [noise(1), noise(2)]), (7, [noise(1)] * 2)):
        build({"lqn": ablation("random-source")}, batch=2, seed=seed)(images)
    first, second, reseeded = given
    assert first.shape == (2, 16, 3)
    values = torch.cat(given).flatten(0, 1)
    assert torch.equal(values, values.floor())
    assert values.amin(0).tolist() == [1, 1, 1] and values.amax(0).tolist() == [4, 4, 4]
    assert torch.equal(first[1], second[0]) and not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], reseeded[0])


@pytest.mark.parametrize(
    "name, fit", [("entropy", {}), ("entropy", {"alpha": 0.0}), ("segments", {}), ("views-3", {})]
)
def test_what_an_ablation_runs_is_what_is_counted(build, eomt, name, fit):
    """Everything between the teacher's pass over the image and the query."""
    recipe = ablation(name, **fit)
    segmenter = build({"lqn": recipe})
    images = Images(eomt, noise(0)[None].float() / 255, [image_key(0, noise(0))], task=segmenter)
    with torch.no_grad():
        seen = images.encode()
        counted = measure(lambda: segmenter.adapters["lqn"].fit(images, seen))
    shape = EomtShape.from_config(eomt.model.config)
    costs, once = (method_gmacs(r, shape) for r in (recipe, replace(recipe, ablation="none")))
    further = costs["gmacs_teacher"] - once["gmacs_teacher"]
    assert counted.gmacs == pytest.approx(costs["gmacs_fit"] + further, rel=0.02)
    assert costs["gmacs_total"] > once["gmacs_total"]

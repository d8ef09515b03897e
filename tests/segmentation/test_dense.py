"""Other people's test-time methods, against slow literal versions on transformers' own EoMT."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import EomtForUniversalSegmentation

from lqn_seg.adapt.calibration import calibrate
from lqn_seg.adapt.dense.memo import augmix, copies
from lqn_seg.adapt.dense.settings import (
    AdaIn,
    Cotta,
    DenseMethod,
    Larger,
    Memo,
    Mlmp,
    MultiScale,
    Neo,
    Sar,
    Sitta,
    Tent,
)
from lqn_seg.adapt.dense.sitta import soft_iou_loss
from lqn_seg.adapt.dense.statistics import clean_average
from lqn_seg.adapt.journey import Images, adapt
from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.core.random import RandomKey, image_key
from lqn_seg.errors import InputError
from lqn_seg.lab.report.costs import count_gmacs, dense_cost
from lqn_seg.segmentation.postprocess import semantic_inference
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead
from tests.adapt.conftest import CLEAN, NOISY, noise, smooth

Literal = Callable[["Model"], None]
STEPS, RATE = 3, 0.01


@pytest.fixture
def build(teacher_folder):
    def make(method: DenseMethod, calibration=None, **config) -> Segmenter:
        teacher, methods = load_eomt(str(teacher_folder)), {"teacher": None, "it": method}
        settings = SegmentationConfig(**{"panoptic": False, **config})
        head = EomtHead(teacher.model)
        return Segmenter(teacher, head, methods, frozenset(range(8)), settings, calibration)

    return make


def scores(segmenter: Segmenter, pixels: torch.Tensor, name: str = "it") -> torch.Tensor:
    return segmenter([pixels])[0][name].output["sem_seg"]


class Model:
    """transformers' EoMT, to which a literal version is written; every layer's tokens are kept."""

    def __init__(self, folder, pixels: torch.Tensor) -> None:
        self.net = EomtForUniversalSegmentation.from_pretrained(folder).eval()
        self.net.requires_grad_(False)
        self.pixels, self.tokens = pixels[None].float() / 255, []
        for layer in self.net.layers:
            layer.register_forward_hook(lambda *args: self.tokens.append(args[-1]))

    def forward(self, pixels: torch.Tensor | None = None):
        self.tokens.clear()
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return self.net(((self.pixels if pixels is None else pixels) - mean) / std)

    @staticmethod
    def p(masks: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) shares of the classes in each pixel's semantic scores."""
        votes = classes.softmax(-1)[..., :-1]
        total = torch.einsum("bqc,bqhw->bchw", votes, masks.sigmoid())
        return total / total.sum(1, keepdim=True)

    def answer(self, pixels: torch.Tensor | None = None) -> torch.Tensor:
        said = self.forward(pixels)
        return self.p(said.masks_queries_logits, said.class_queries_logits)

    def norms(self, layers: int = 4) -> list[torch.nn.Parameter]:
        return [
            x.requires_grad_(True)
            for layer in self.net.layers[:layers]
            for norm in (layer.norm1, layer.norm2)
            for x in (norm.weight, norm.bias)
        ]

    def everything(self) -> list[torch.nn.Parameter]:
        return [x.requires_grad_(True) for x in self.net.layers.parameters()]

    @torch.no_grad()
    def scores(self) -> torch.Tensor:
        said = self.forward()
        masks = F.interpolate(said.masks_queries_logits, (32, 32), mode="bilinear")[0]
        return semantic_inference(masks, said.class_queries_logits[0])


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(1)


def tent(model: Model) -> None:
    optimizer = torch.optim.Adam(model.norms(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        entropy(model.answer()).mean().backward()
        optimizer.step()


def sar(model: Model) -> None:
    """As its authors write the step: climb by rho g / ||g||, filter again, come back, step."""
    weights = model.norms(layers=3)
    optimizer = torch.optim.SGD(weights, lr=RATE, momentum=0.9)
    for _ in range(STEPS):
        first = entropy(model.answer())
        sure = first < 0.9 * math.log(13)
        gradients = torch.autograd.grad(first[sure].mean(), weights)
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        kept = [w.detach().clone() for w in weights]
        for w, g in zip(weights, gradients):
            w.data += 0.05 * g / length
        second = entropy(model.answer())
        optimizer.zero_grad()
        second[sure & (second < 0.9 * math.log(13))].mean().backward()
        for w, before in zip(weights, kept):
            w.data = before
        optimizer.step()


def sitta(model: Model) -> None:
    optimizer = torch.optim.SGD(model.everything(), lr=RATE, momentum=0.9)
    for _ in range(STEPS):
        p = model.answer()[0].flatten(1)
        loss = 1.0
        for k in range(13):
            label = (p.argmax(0) == k).float()
            both = (p[k] * label).sum()
            loss = loss - both / (p[k].sum() + label.sum() - both + 1) / 13
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def memo(model: Model) -> None:
    optimizer = torch.optim.AdamW(model.everything(), lr=RATE)
    made, mirrored = copies(model.pixels[0], image_key(0, NOISY), 4)
    for _ in range(STEPS):
        total = 0
        for pixels, flip in zip(made, mirrored):
            # Its map is made of turned tokens, so let the head see them that way.
            total = total + _turned(model, pixels[None], bool(flip))
        optimizer.zero_grad()
        entropy(total / 4).mean().backward()
        optimizer.step()


def _turned(model: Model, pixels: torch.Tensor, flip: bool) -> torch.Tensor:
    model.forward(pixels)
    return _read(model, model.tokens[-1], model.tokens[-1], flip)


def _read(model: Model, tokens: torch.Tensor, last: torch.Tensor, flip=False) -> torch.Tensor:
    """What the head says of a layer's patches, with the last layer's queries and prefix."""
    grid = tokens[:, -16:].unflatten(1, (4, 4))
    grid = grid.flip(2) if flip else grid
    state = torch.cat([last[:, :-16], grid.flatten(1, 2)], 1)
    masks, classes = model.net.predict(model.net.layernorm(state))
    return model.p(masks, classes)


def mlmp(model: Model) -> None:
    """Leaves the answer in the last layer's place."""
    optimizer = torch.optim.Adam(model.norms(), lr=RATE)
    for _ in range(STEPS):
        model.forward()
        layers = _scaled(model)
        optimizer.zero_grad()
        entropy(_read(model, sum(layers) / len(layers), model.tokens[-1])).mean().backward()
        optimizer.step()
    with torch.no_grad():
        model.forward()
        last, layers = model.tokens[-1], _scaled(model)
        unsure = [-entropy(_read(model, x, last)).mean() for x in layers]
        weights = torch.stack(unsure).softmax(0)
        joined = sum(w * x for w, x in zip(weights, layers))
    state = torch.cat([last[:, :-16], joined], 1)
    model.net.layers[-1].register_forward_hook(lambda *_: state)


def _scaled(model: Model) -> list[torch.Tensor]:
    patches = [x[:, -16:] for x in model.tokens[1:]]  # three of four layers
    mean, deviation = patches[-1].mean(1), patches[-1].std(1)
    return [(x - x.mean(1)) / x.std(1) * deviation + mean for x in patches]


def cotta(model: Model) -> None:
    """Its source is sure nowhere, one scale, nothing restored. (Two steps: at the third a pixel's
    two likeliest classes are equal to rounding.)"""
    weights = model.everything()
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.Adam(weights, lr=RATE)
    for _ in range(2):
        student = [w.data for w in weights]
        with torch.no_grad():
            for w, mean in zip(weights, average):
                w.data = mean
            mirrored = model.answer(model.pixels.flip(-1)).flip(-1)
            labels = (model.answer() + mirrored).argmax(1)
            for w, own in zip(weights, student):
                w.data = own
        optimizer.zero_grad()
        F.nll_loss(model.answer().log(), labels).backward()
        optimizer.step()
        for w, mean in zip(weights, average):
            mean.mul_(0.5).add_(0.5 * w.detach())


LITERAL: list[tuple[DenseMethod, Literal]] = [
    (Tent(STEPS, RATE), tent),
    (Sar(STEPS, RATE, margin=0.9), sar),
    (Sitta(STEPS, RATE), sitta),
    (Memo(STEPS, RATE, copies=4), memo),
    (Mlmp(STEPS, RATE), mlmp),
    (Cotta(2, RATE, scales=(1.0,), confidence=1.0, momentum=0.5, restored=0.0), cotta),
]
LEARNING = [method for method, _ in LITERAL]


@pytest.mark.parametrize(("method", "literal"), LITERAL, ids=lambda x: type(x).__name__)
def test_a_method_is_its_literal_version(build, teacher_folder, method, literal):
    model = Model(teacher_folder, NOISY)
    before = model.scores()
    literal(model)
    want, got = model.scores(), scores(build(method), NOISY)
    assert (want - before).abs().max() > 0.01
    torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-3)


# --- what each must do beside


@pytest.mark.parametrize("method", LEARNING, ids=lambda x: type(x).__name__)
def test_a_learning_method_leaves_the_teacher_as_it_was(build, method):
    segmenter = build(method)
    model = segmenter.teacher.model
    before = copy.deepcopy(model.state_dict())
    first = segmenter([NOISY])[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    segmenter([CLEAN])
    again = segmenter([NOISY])[0]  # no image leaves anything for the next
    for name in ("teacher", "it"):
        assert torch.equal(first[name].output["sem_seg"], again[name].output["sem_seg"])
    assert first["it"].stats["teacher_ms"] == 0 < first["it"].stats["fit_ms"]


@pytest.mark.parametrize(
    "method", [Tent(2, RATE, continual=True), Cotta(2, RATE, continual=True, scales=(1.0,))]
)
def test_a_continual_method_goes_on_from_the_last_image_until_it_is_reset(build, method):
    segmenter = build(method)
    assert segmenter.history and not build(Tent()).history
    first, second = scores(segmenter, NOISY), scores(segmenter, NOISY)
    assert not torch.equal(first, second)
    segmenter.reset()
    assert torch.equal(scores(segmenter, NOISY), first)
    with pytest.raises(InputError, match="BATCH 1"):
        build(method, batch=2)([NOISY])


@pytest.mark.parametrize("method", [Sitta(1, 1e-5), Memo(1, 1e-6, copies=2)])
def test_small_steps_of_lowered_weights_are_not_rounded_away(teacher_folder, method):
    """Tokens move as far as where all is in float32, from the same rounded weights."""
    moved = {}
    for precision in ("float32", "bfloat16"):
        teacher = load_eomt(str(teacher_folder), precision=precision)
        if precision == "float32":
            for layer in teacher.model.layers:
                for module in layer.modules():
                    if isinstance(module, torch.nn.Linear | torch.nn.MultiheadAttention):
                        for x in module.parameters(recurse=False):
                            x.data = x.data.bfloat16().float()
        head = EomtHead(teacher.model, precision)
        parts = head, {"it": method, "none": replace(method, steps=0)}
        config = SegmentationConfig(panoptic=False)
        segmenter = Segmenter(teacher, *parts, frozenset(range(8)), config)
        images = Images(teacher, NOISY[None].float() / 255, [RandomKey(0)], None, segmenter)
        with torch.no_grad():
            stepped, stayed = (
                adapt(segmenter.adapters[name], images).tokens for name in ("it", "none")
            )
        moved[precision] = (stepped - stayed).norm().item()
        assert teacher.layer_precision == precision
    assert moved["bfloat16"] == pytest.approx(moved["float32"], rel=0.3)


def test_a_fit_needs_gradients(build):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        build(Tent())([NOISY])


def test_an_answer_that_is_not_finite_is_the_teachers(build):
    result = build(Tent(2, 1e30))([NOISY])[0]
    assert result["it"].stats["fallback"] == 1
    assert torch.equal(result["it"].output["sem_seg"], result["teacher"].output["sem_seg"])


def test_sar_without_a_sure_pixel_changes_nothing(build):
    result = build(Sar(2, RATE, margin=0.0))([NOISY])[0]
    assert torch.equal(result["it"].output["sem_seg"], result["teacher"].output["sem_seg"])


def test_cotta_restored_at_once_is_the_source(build):
    result = build(Cotta(2, RATE, scales=(0.5, 1.0), restored=1.0))([NOISY])[0]
    assert torch.equal(result["it"].output["sem_seg"], result["teacher"].output["sem_seg"])


def test_soft_iou_counts_every_class_alike():
    p = torch.tensor([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]])
    # Class 0: 1.4 shared, 1.5 + 2 - 1.4 + 1 in the union; class 1: 0.9 and 1.5 + 1 - 0.9 + 1.
    want = 1 - (1.4 / 3.1 + 0.9 / 2.6) / 3
    assert soft_iou_loss(p, p.argmax(-1)).item() == pytest.approx(want)


def test_memos_copies_are_of_colours_and_every_second_is_mirrored():
    pixels, key = CLEAN.float() / 255, image_key(0, CLEAN)
    made, mirrored = copies(pixels, key, 6)
    assert mirrored.tolist() == [False, True] * 3
    assert ((made >= 0) & (made <= 1)).all() and len({x.sum().item() for x in made}) == 6
    assert torch.equal(copies(pixels, key, 6)[0], made)
    # No operation looks at where a pixel is.
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))
    shuffled = pixels.flatten(1)[:, order].view_as(pixels)
    for seed in range(5):
        one = augmix(pixels, torch.Generator().manual_seed(seed))
        other = augmix(shuffled, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(one.flatten(1)[:, order], other.flatten(1))


# --- without learning


@pytest.fixture(scope="module")
def calibration(teacher_folder):
    crops = torch.stack([smooth(seed) for seed in range(20)]).float() / 255
    return calibrate(load_eomt(str(teacher_folder)), lambda: crops.split(10), 0.0)


@pytest.mark.parametrize(("method", "layers"), [(AdaIn(0.25), [0, 1]), (Neo(1.0), [2])])
def test_statistics_become_those_of_clean_images(build, calibration, method, layers):
    segmenter, seen = build(method, calibration), {}
    adapter, teacher = segmenter.adapters["it"], segmenter.teacher
    assert list(calibration.layers) == [0, 1, 2]
    pixels = NOISY[None].float() / 255

    def watched(layer, tokens):
        seen[layer] = adapter.replace(layer, tokens, calibration)
        if layer not in layers:
            assert torch.equal(seen[layer], tokens)
        return seen[layer]

    teacher.encode(pixels, watched)
    for layer in layers:
        clean = calibration.layers[layer]
        _, mean, deviation = clean.components(seen[layer])
        wanted, size = clean_average(clean)
        torch.testing.assert_close(mean[0], wanted, atol=1e-4, rtol=1e-3)
        if isinstance(method, AdaIn):
            signal = clean.signal
            torch.testing.assert_close(deviation[0, signal], size[signal], atol=1e-3, rtol=1e-3)
    result = segmenter([NOISY])[0]
    assert not torch.equal(result["it"].output["sem_seg"], result["teacher"].output["sem_seg"])


@pytest.mark.filterwarnings("ignore:method it")
@pytest.mark.parametrize("method", [AdaIn(), Neo()])
def test_without_a_calibration_it_says_that_it_does_nothing(build, method):
    segmenter = build(method)
    assert "replaces no statistic" in segmenter.ineffective["it"]
    result = segmenter([NOISY])[0]
    assert torch.equal(result["it"].output["sem_seg"], result["teacher"].output["sem_seg"])


@pytest.mark.parametrize("inference", ["pad", "windows"])
def test_multiscale_is_the_mean_over_sizes_and_mirror_images(build, inference):
    pixels, want = noise(6, 50, 80), 0
    segmenter = build(MultiScale((0.5, 1.25)), inference=inference)
    for side in (16, 40):
        teacher = segmenter.teacher.resized((side, side))
        parts = teacher, EomtHead(teacher.model), {"teacher": None}, frozenset()
        alone = Segmenter(*parts, segmenter.config)
        want = want + scores(alone, pixels, "teacher") / 4
        want = want + scores(alone, pixels.flip(-1), "teacher").flip(-1) / 4
    result = segmenter([pixels])[0]
    torch.testing.assert_close(result["it"].output["sem_seg"], want)
    windows = result["it"].stats["windows"]
    assert windows == 4 * result["teacher"].stats["windows"]
    passes = [count_gmacs(alone, "teacher", {"windows": windows / 4})["gmacs_total"]]
    assert count_gmacs(segmenter, "it", {"windows": windows})["gmacs_total"] > 2 * passes[0]


def test_a_scale_is_in_whole_patches(build):
    teacher = build(Larger()).teacher
    sides = {scale: teacher.at_scale(scale).image_size for scale in (0.1, 0.7, 1.25, 2.0)}
    assert sides == {0.1: (8, 8), 0.7: (24, 24), 1.25: (40, 40), 2.0: (64, 64)}


def test_class_scores_alone_can_be_averaged(build):
    with pytest.raises(InputError, match="SEMANTIC_ON alone"):
        build(MultiScale(), panoptic=True)
    result = build(Larger(), panoptic=True, instances=True)([NOISY])[0]
    assert set(result["it"].output) == {"sem_seg", "panoptic_seg", "instances"}


# --- cost


def test_the_cost_of_learning_is_its_passes(build):
    one, five = (dense_cost(build(Tent(steps, RATE)), "it") for steps in (1, 5))
    teacher = count_gmacs(build(Tent()), "teacher", {"windows": 1.0})
    forward = five.forward_gmacs - one.forward_gmacs
    said = teacher["gmacs_teacher"] + teacher["gmacs_head"]
    # The loss reads the head at every step, and votes of six queries for thirteen classes.
    assert forward == pytest.approx(4 * (said + 6 * 13 * 64 / 1e9), rel=0.01)
    assert five.backward_gmacs == pytest.approx(5 * one.backward_gmacs)
    # Gradients with respect to the tokens alone: a backward pass costs no more than a forward one.
    assert 0.5 * said < one.backward_gmacs < 1.2 * said
    counted = count_gmacs(build(Tent(1, RATE)), "it", {"windows": 2.0})
    assert counted["gmacs_fit"] == pytest.approx(2 * one.gmacs)
    assert counted["gmacs_teacher"] == 0 and counted["peak_mib"] > 0

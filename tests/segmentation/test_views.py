"""Views of a window against slices, against transformers' logits and against what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lqn_seg.adapt.calibration import calibrate
from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.core.config import AdaptConfig, preset, with_variant
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.segmentation.postprocess import semantic_inference
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.segmentation.views import join, views_of
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead
from tests.adapt.conftest import RECIPE, adapted, noise, smooth

VIEWS = with_variant(preset("default"), "views")


def build(folder, methods, calibration=None, **config) -> Segmenter:
    teacher = load_eomt(str(folder))
    settings = SegmentationConfig(panoptic=False, **config)
    return Segmenter(teacher, EomtHead(teacher.model), methods, frozenset(), settings, calibration)


def test_views_are_the_window_moved_and_repeat_its_edge():
    pixels = torch.rand(2, 3, 16, 24)
    first, second, third, fourth = views_of(pixels, 4, (8, 8)).chunk(4)
    assert torch.equal(first, pixels)
    assert torch.equal(second[..., :12, :20], pixels[..., 4:, 4:])
    assert torch.equal(second[..., 12:, :20], pixels[..., -1:, 4:].expand(-1, -1, 4, -1))
    assert torch.equal(third[..., :20], pixels[..., 4:])
    assert torch.equal(fourth[..., :12, :], pixels[..., 4:, :])


def test_one_view_is_left_as_it_is():
    logits = torch.randn(2, 5, 8, 8)
    assert join(logits, 1, (4, 4)) is logits


def test_logits_are_averaged_where_they_lie(teacher_folder):
    """Against transformers: half a patch is two of the 4 cells that its upscaling makes of one."""
    segmenter, pixels = build(teacher_folder, {"views": VIEWS}), smooth(0)
    inputs = normalise(pixels[None] / 255, IMAGENET_MEAN, IMAGENET_STD)
    moved = F.pad(inputs[..., 4:, 4:], (0, 4, 0, 4), mode="replicate")
    model = segmenter.teacher.model
    with torch.no_grad():
        fields = [segmenter.teacher.encode(x) for x in (inputs, moved)]
        (first, second), queries = [x[:, -1] for x, _ in fields], fields[0][1].last
        prefix = first.new_zeros(1, model.embeddings.num_prefix_tokens, first.shape[-1])
        logits = []
        for tokens in (first, second):
            normed = model.layernorm(torch.cat([queries, prefix, tokens.flatten(1, 2)], 1))
            masks, classes = model.predict(normed)  # classes are of the first view's queries
            logits.append(masks)
    cells = logits[0].shape[-1] // 4 // 2
    joined = join(torch.cat(logits), 2, (4, 4))
    assert joined.shape == logits[0].shape
    torch.testing.assert_close(
        joined[..., cells + 1 :, cells + 1 :],
        (logits[0][..., cells + 1 :, cells + 1 :] + logits[1][..., 1:-cells, 1:-cells]) / 2,
        atol=2e-3 * logits[0].abs().max().item(),
        rtol=0,
    )
    # Where the second view does not reach, the first one answers.
    torch.testing.assert_close(
        joined[..., : cells - 1, :],
        logits[0][..., : cells - 1, :],
        atol=2e-3 * logits[0].abs().max().item(),
        rtol=0,
    )
    (prediction,) = segmenter([pixels])
    masks = F.interpolate(joined, (32, 32), mode="bilinear")[0]
    expected = semantic_inference(masks, classes[0])
    torch.testing.assert_close(prediction["views"].output["sem_seg"], expected)


def test_logits_on_the_teachers_grid_are_joined_on_one_twice_as_fine():
    """A head without upscaling, of a smooth scene: two views are nearer to it than one enlarged."""

    def scene(rows, columns):
        return torch.sin(rows)[:, None] * torch.cos(0.7 * columns)

    def seen(down, right):
        rows, columns = torch.arange(1.0, 9) + down, torch.arange(1.0, 11) + right
        return scene(rows, columns)[None, None]

    fine = [(torch.arange(2 * side) + 0.5) / 2 + 0.5 for side in (8, 10)]
    wanted = scene(*fine)[2:-2, 2:-2]
    joined = join(torch.cat([seen(0, 0), seen(0.5, 0.5)]), 2, (8, 10))
    nearest = seen(0, 0).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert joined.shape == (1, 1, 16, 20)
    errors = [(x[0, 0, 2:-2, 2:-2] - wanted).square().mean() for x in (joined, nearest)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("inference", ["pad", "windows"])
def test_a_result_does_not_depend_on_what_runs_beside_it(teacher_folder, inference):
    crops = torch.stack([smooth(seed) for seed in range(20)]).float() / 255
    clean = calibrate(load_eomt(str(teacher_folder)), lambda: crops.split(10), 0.0)
    clean = replace(clean, undamaged=0.05, residual=0.1)
    two = replace(adapted(mix_by_noise=True), adapt=AdaptConfig(True, True, 2))
    methods = {"views": VIEWS, "field": with_variant(two, "field"), "lqn": two}
    images = [noise(0), smooth(1), noise(2, 32, 45)]
    both = build(teacher_folder, {"teacher": None, **methods}, clean, inference=inference, batch=2)
    together = both(images)
    for name, method in methods.items():
        alone = build(teacher_folder, {name: method}, clean, inference=inference, batch=2)
        for image, results in zip(images, together):
            (result,) = alone([image])
            got, want = result[name].output["sem_seg"], results[name].output["sem_seg"]
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    first = {name: prediction.output["sem_seg"] for name, prediction in together[0].items()}
    assert not torch.equal(first["lqn"], first["field"])
    assert not torch.equal(first["views"], first["field"])
    (uncalibrated,) = build(teacher_folder, {"views": VIEWS}, inference=inference)(images[:1])
    torch.testing.assert_close(uncalibrated["views"].output["sem_seg"], first["views"])


@pytest.mark.parametrize("name, views", [("field", 2), ("field", 4), ("lqn", 2)])
def test_passes_heads_fits_and_joining_are_counted(teacher_folder, name, views):
    """Beyond the teacher's, so that what comes after the head cancels."""
    recipe = replace(with_variant(RECIPE, name), adapt=AdaptConfig(views=views))
    methods = {"field": recipe, "teacher": None}
    counted, stated = {}, {}
    for name, method in methods.items():
        segmenter = build(teacher_folder, {name: method})
        (prediction,) = segmenter([noise(0)])
        counted[name] = measure(lambda one=segmenter: one([noise(0)])).gmacs
        stated[name] = count_gmacs(segmenter, name, prediction[name].stats)["gmacs_total"]
    more = counted["field"] - counted["teacher"]
    assert stated["field"] - stated["teacher"] == pytest.approx(more, rel=1e-3)


def test_other_numbers_of_views_are_named():
    with pytest.raises(InputError, match="views must be 1, 2 or 4, got 3"):
        AdaptConfig(views=3)

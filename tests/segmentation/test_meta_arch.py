"""The meta-architecture's door: what is an image, what is none, and what can be traced."""

from __future__ import annotations

import math

import pytest
import torch

from lqn_seg.adapt.ineffective import IneffectiveMethodWarning
from lqn_seg.errors import InputError
from lqn_seg.segmentation.meta_arch import LQNTTTMetaArch
from lqn_seg.segmentation.postprocess import mask_hash
from lqn_seg.segmentation.segmenter import SegmentationConfig, Segmenter
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead
from tests.adapt.conftest import RECIPE, adapted, noise


@pytest.fixture
def build(teacher_folder):
    def make(methods) -> Segmenter:
        teacher, config = load_eomt(str(teacher_folder)), SegmentationConfig(instances=True)
        return Segmenter(teacher, EomtHead(teacher.model), methods, frozenset(range(8)), config)

    return make


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_teacher_can_be_traced_and_a_fit_says_that_it_cannot(build):
    def scores(methods):
        model = LQNTTTMetaArch(build(methods))
        return lambda pixels: model([{"image": pixels}])[0]["sem_seg"]

    pixels, teacher = noise(0), scores({"teacher": None})
    traced = torch.jit.trace(teacher, pixels)
    torch.testing.assert_close(traced(pixels), teacher(pixels), atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match=r"METHOD lqn cannot be traced.*lqn-seg flops"):
        torch.jit.trace(scores({"lqn": RECIPE}), pixels)


@pytest.mark.parametrize(
    "pixels, said",
    [
        (torch.rand(3, 8, 8), r"0\.\.255, and holds"),
        (torch.randn(3, 8, 8), r"0\.\.255, and holds -"),
        (torch.full((3, 8, 8), math.nan), r"0\.\.255, and holds nan"),
        (torch.full((3, 8, 8), 300), r"0\.\.255, and holds 300"),
        (torch.ones(3, 8, 8, dtype=torch.bool), r"0\.\.255"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), r"got \(3, 0, 8\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"got \(1, 8, 8\)"),
    ],
)
def test_an_image_that_is_none_is_named(build, pixels, said):
    model = LQNTTTMetaArch(build({"teacher": None}))
    with pytest.raises(
        InputError, match=f"'image' of a.png {'must' if 'got' in said else ''}.*{said}"
    ):
        model([{"image": pixels, "file_name": "a.png"}])


def test_whole_numbers_of_any_type_are_the_same_image(build):
    model, pixels = LQNTTTMetaArch(build({"teacher": None})), noise(0)
    expected = mask_hash(model([{"image": pixels}])[0])
    for kind in (torch.float32, torch.float64, torch.int64, torch.int16):
        assert mask_hash(model([{"image": pixels.to(kind)}])[0]) == expected
    model([{"image": torch.zeros(3, 8, 8)}])  # black is black in any scale
    assert model([]) == []
    with pytest.raises(InputError, match="has no 'image'"):
        model([{"height": 3}])
    for other in (pixels.numpy(), None, "a.png"):
        with pytest.raises(InputError, match="'image' must be a tensor"):
            model([{"image": other}])
    with pytest.raises(InputError, match="'height' and 'width'"):
        model([{"image": pixels, "height": 0, "width": 4}])


def test_detectron2s_dicts_in_and_out(build):
    model = LQNTTTMetaArch(build({"lqn": RECIPE}))
    assert not model.train().training
    inputs = [{"image": noise(0), "height": 50, "width": 40}, {"image": noise(1, 24, 60)}]
    with torch.no_grad():
        outputs = model(inputs)
    assert outputs[0]["sem_seg"].shape == (13, 50, 40)
    assert outputs[1]["panoptic_seg"][0].shape == (24, 60)
    assert outputs[0]["instances"].pred_masks.shape[1:] == (50, 40)
    assert outputs[0]["lqn"]["fit_ms"] > 0
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        model(inputs)
    with pytest.raises(InputError, match=r"MODEL\.LQN\.METHOD"):
        LQNTTTMetaArch(build({"teacher": None, "lqn": RECIPE}))


def test_bgr_and_float_images_give_the_same_masks(build):
    rgb = LQNTTTMetaArch(build({"lqn": RECIPE}))
    bgr = LQNTTTMetaArch(build({"lqn": RECIPE}), input_format="BGR")
    want = mask_hash(rgb([{"image": noise(0)}])[0])
    for pixels in (noise(0).flip(0), noise(0).flip(0).float()):
        assert mask_hash(bgr([{"image": pixels}])[0]) == want
    straight, swapped = (m([{"image": noise(0)}])[0]["sem_seg"] for m in (rgb, bgr))
    assert not torch.equal(straight, swapped)


def test_a_method_that_does_nothing_says_so(build):
    with pytest.warns(IneffectiveMethodWarning, match="idle predicts the same as its teacher"):
        LQNTTTMetaArch(build({"idle": adapted(mix_by_noise=True)}))([{"image": noise(0)}])

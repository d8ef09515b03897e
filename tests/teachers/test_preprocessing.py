"""What a checkpoint says of its pixels, against the preprocessing of those who wrote it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from transformers import AutoImageProcessor, EomtImageProcessor, Mask2FormerImageProcessor

from lqn_seg.adapt.views import centre_view
from lqn_seg.config.nodes import get_cfg, load_cfg
from lqn_seg.engine.build import describe_input, describe_teacher
from lqn_seg.errors import InputError
from lqn_seg.segmentation.baselines import Preprocessing as BaselinePreprocessing
from lqn_seg.segmentation.segmenter import SegmentationConfig, Segmenter
from lqn_seg.segmentation.windows import layout_of
from lqn_seg.teachers.base import IMAGENET_STD, Preprocessing, normalise
from lqn_seg.teachers.clip import ClipTeacher, load_clip
from lqn_seg.teachers.dinov2 import load_dinov2
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.eomt_head import EomtHead
from lqn_seg.teachers.preprocessing import (
    clip_values,
    described,
    preprocessing_of,
    write_preprocessor,
)
from tests.classification.conftest import TEXT, VISION, build_clip
from tests.conftest import save_teacher

SATELLITE = {"image_mean": [0.430, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def photo(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 with shades, edges and some grain, as photographs have."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    shades = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    shades[height // 3 : height // 2, width // 4 :] *= 0.4
    return np.clip(shades + random.normal(0, 8, shades.shape), 0, 255).astype(np.uint8)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).movedim(2, 0)


def rounding(std) -> float:
    """One step of 255, in units of the normalised input: two filters round to neighbours."""
    return 1.01 / 255 / min(std)


# transformers 4's own processor fails with a KeyError on the one, and turns the other's axes.
NEW = pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="transformers 5")


@pytest.fixture
def folder(tmp_path):
    """A teacher of 32 x 32 pixels, and a way to say how its pixels are prepared."""
    save_teacher(tmp_path / "eomt")

    def say(**content) -> str:
        usual = {"image_processor_type": "EomtImageProcessor", "do_pad": True}
        usual["size"] = {"shortest_edge": 32, "longest_edge": 32}
        path = tmp_path / "eomt" / "preprocessor_config.json"
        path.write_text(json.dumps({**usual, **content}))
        return str(tmp_path / "eomt")

    return say


@pytest.mark.parametrize(
    "said",
    [
        {},
        HALF,
        SATELLITE,
        {**SATELLITE, "resample": 3},
        {"do_normalize": False, "resample": 0},
        {"do_rescale": False, **HALF},
        {"rescale_factor": 1 / 127.5, **HALF},
        {"image_mean": 0.5, "image_std": 0.25},
        pytest.param(
            {"size": {"height": 32, "width": 32}, "do_pad": False, **SATELLITE}, marks=NEW
        ),
        pytest.param({"do_resize": False, **HALF}, marks=NEW),
    ],
)
def test_a_padded_input_is_transformers_own(folder, said):
    weights = folder(**said)
    image = photo(24, 32) if said.get("do_resize") is False else photo(48, 64)
    teacher = load_eomt(weights)
    crops = layout_of(as_tensor(image), teacher, "pad").crops(as_tensor(image))
    ours = normalise(crops.float() / 255, teacher.pixel_mean, teacher.pixel_std)
    processor = EomtImageProcessor.from_pretrained(weights)
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert ours.shape == expected.shape == (1, 3, 32, 32)
    assert (ours - expected).abs().max() <= rounding(teacher.pixel_std)
    assert (ours - expected).abs().mean() <= 0.3 * rounding(teacher.pixel_std)
    if image.shape != (24, 32, 3) and said.get("resample") != 0:
        other = normalise(crops.float() / 255, (0.1,) * 3, (0.4,) * 3)
        assert (other - expected).abs().mean() > rounding(teacher.pixel_std)  # the test can fail


def test_windows_are_transformers_own(folder):
    weights = folder(
        do_pad=False, do_split_image=True, size={"shortest_edge": 32, "longest_edge": None}, **HALF
    )
    teacher, image = load_eomt(weights), photo(48, 96)
    crops = layout_of(as_tensor(image), teacher, "windows").crops(as_tensor(image))
    ours = normalise(crops.float() / 255, teacher.pixel_mean, teacher.pixel_std)
    result = AutoImageProcessor.from_pretrained(weights)(
        Image.fromarray(image), return_tensors="pt"
    )
    assert (ours - result["pixel_values"]).abs().max() <= rounding(teacher.pixel_std)


@pytest.mark.parametrize("said", [HALF, SATELLITE])
def test_the_segmenter_gives_the_teacher_that_input(folder, said, monkeypatch):
    weights, image, seen = folder(**said), photo(40, 50), []
    teacher = load_eomt(weights)
    encode = teacher.encode
    monkeypatch.setattr(teacher, "encode", lambda x, *hook: (seen.append(x), encode(x, *hook))[1])
    config, head = SegmentationConfig(panoptic=False), EomtHead(teacher.model)
    Segmenter(teacher, head, {"teacher": None}, frozenset(), config)([as_tensor(image)])
    processor = EomtImageProcessor.from_pretrained(weights)
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert (seen[-1] - expected).abs().max() <= rounding(teacher.pixel_std)


@pytest.mark.parametrize(
    "said, words",
    [
        ({"image_std": [0.2, 0.0, 0.2]}, "image_std must be three positive numbers"),
        ({"image_std": [0.2, -0.1, 0.2]}, "image_std must be three positive numbers"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three numbers"),
        ({"image_mean": "0.5"}, "image_mean must be three numbers"),
        ({"image_mean": [0.5, None, 0.5]}, "image_mean must be three numbers"),
        ({"image_mean": [True, 0.5, 0.5]}, "image_mean must be three numbers"),
        ({"image_mean": [float("nan"), 0.5, 0.5]}, "image_mean must be three numbers"),
        ({"image_mean": {"r": 1}}, "image_mean must be three numbers"),
        ({"do_normalize": "no"}, "do_normalize must be true or false"),
        ({"do_rescale": 1}, "do_rescale must be true or false"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"resample": 9}, "resample must be one of Pillow's filters"),
        ({"resample": "smooth"}, "resample must be one of Pillow's filters"),
        ({"size": "large"}, "size must hold whole numbers"),
        ({"size": {"height": 32}}, "size must have a height and a width"),
        ({"size": {"shortest_edge": 0}}, "size must hold whole numbers"),
        ({"size": {"shortest_edge": 64}}, r"size is 64x64, but config.json's image_size is 32x32"),
    ],
)
def test_what_is_malformed_is_one_sentence(folder, said, words):
    weights = folder(**said)
    with pytest.raises(InputError, match=words) as error:
        load_eomt(weights)
    assert "preprocessor_config.json" in str(error.value) and "\n" not in str(error.value)


def test_a_size_that_is_told_wins(folder):
    weights = folder(size={"shortest_edge": 64})
    assert load_eomt(weights, image_size=(64, 64)).image_size == (64, 64)
    assert load_eomt(weights, image_size=(32, 32)).image_size == (32, 32)


def test_an_image_that_must_not_be_resized_and_does_not_fit(folder):
    teacher = load_eomt(folder(do_resize=False))
    for inference, size in (("pad", (40, 20)), ("windows", (40, 40)), ("windows", (20, 40))):
        with pytest.raises(InputError, match=r"40.* pixels, and .*do_resize false"):
            layout_of(as_tensor(photo(*size)), teacher, inference)
    layout = layout_of(as_tensor(photo(32, 50)), teacher, "windows")
    assert len(layout.crops(as_tensor(photo(32, 50)))) == 2


def test_a_nested_processor_is_read_too(folder, tmp_path):
    weights = folder()
    (tmp_path / "eomt" / "preprocessor_config.json").unlink()
    (tmp_path / "eomt" / "processor_config.json").write_text(
        json.dumps({"image_processor": {**HALF, "size": {"shortest_edge": 32}}})
    )
    assert load_eomt(weights).pixel_std == (0.5, 0.5, 0.5)


def test_a_larger_input_is_prepared_alike(folder):
    assert load_eomt(folder(**SATELLITE)).resized((40, 40)).pixel_std == (0.213, 0.156, 0.143)


@pytest.mark.parametrize("inference", ["", "pad", "windows"])
@pytest.mark.parametrize("resize", ["keep", "stretch", "none"])
def test_what_is_written_is_read_back(tmp_path, inference, resize):
    inference = "" if resize == "stretch" else inference
    said = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "lanczos", resize, inference, "x")
    write_preprocessor(tmp_path, said, (32, 32))
    path = tmp_path / "preprocessor_config.json"
    again = preprocessing_of(json.loads(path.read_text()), str(path))
    assert vars(again) == {**vars(said), "source": "preprocessor_config.json"}
    theirs = EomtImageProcessor.from_pretrained(tmp_path)
    assert tuple(theirs.image_mean) == said.mean and theirs.do_split_image == (
        inference == "windows"
    )


def test_the_log_says_it(folder, small_config):
    weights = folder(**SATELLITE, resample=3, do_pad=False, do_split_image=True)
    cfg = load_cfg(str(small_config), ["MODEL.LQN.TEACHER.WEIGHTS", weights])
    text = describe_teacher(cfg, load_eomt(weights))
    assert "in float32" in text
    assert (
        "pixels: 32 x 32, bicubic, mean 0.43 0.411 0.296, std 0.213 0.156 0.143 "
        "(preprocessor_config.json); preprocessor_config.json was written for windows, but "
        "MODEL.LQN.INFERENCE is pad"
    ) in text
    assert "no file says" in described(Preprocessing(), (32, 32))


# --- baselines


@pytest.mark.parametrize(
    "said", [HALF, {"do_normalize": False}, {"do_rescale": False}, {"resample": 3, **SATELLITE}]
)
def test_a_baselines_input_is_transformers_own(said):
    content = {"size": {"shortest_edge": 64, "longest_edge": 160}, "size_divisor": 32, **said}
    image = photo(96, 144)
    ours, _ = BaselinePreprocessing.of(content)(as_tensor(image))
    theirs = Mask2FormerImageProcessor(**content)(Image.fromarray(image), return_tensors="pt")
    difference = (ours - theirs["pixel_values"]).abs()
    assert ours.shape == theirs["pixel_values"].shape
    step = 255 if said == {"do_rescale": False} else 1
    assert difference.max() <= step * rounding(said.get("image_std", IMAGENET_STD))


@pytest.mark.parametrize("said", [{"image_std": [0, 1, 1]}, {"size": [1]}, {"size_divisor": "a"}])
def test_a_baselines_malformed_file_is_one_sentence(said):
    with pytest.raises(InputError, match=f"folder/file.json: {next(iter(said))}"):
        BaselinePreprocessing.of(said, "folder/file.json")


# --- timm

SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56}
ARCHITECTURE = "vit_small_patch14_reg4_dinov2"


def save_dinov2(path, dtype=torch.float32, **content):
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=0, **SHAPE)
    path.mkdir()
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    save_file(state, path / "model.safetensors")
    about = {"architecture": ARCHITECTURE, "model_args": SHAPE, **content}
    (path / "config.json").write_text(json.dumps(about))
    return str(path)


@pytest.mark.parametrize("old", [False, True])
def test_a_dinov2s_input_is_timms_own(tmp_path, old):
    said = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
    said |= {"crop_pct": 1.0, "input_size": [3, 56, 56]}
    teacher = load_dinov2(
        save_dinov2(tmp_path / "vit", **(said if old else {"pretrained_cfg": said}))
    )
    image = photo(80, 80)
    crops = layout_of(as_tensor(image), teacher, "pad").crops(as_tensor(image))
    ours = normalise(crops.float() / 255, teacher.pixel_mean, teacher.pixel_std)[0]
    said["input_size"] = tuple(said["input_size"])
    assert torch.allclose(ours, create_transform(**said)(Image.fromarray(image)), atol=1e-5)


def test_a_dinov2_that_says_nothing_is_timms_architecture(tmp_path):
    teacher = load_dinov2(save_dinov2(tmp_path / "vit"))
    about = timm.create_model(ARCHITECTURE, num_classes=0, **SHAPE).pretrained_cfg
    assert teacher.pixel_mean == about["mean"] and teacher.pixel_std == about["std"]
    assert teacher.preprocessing.interpolation == about["interpolation"] == "bicubic"


def test_the_input_size_is_the_checkpoints(tmp_path):
    shape = {key: value for key, value in SHAPE.items() if key != "img_size"}
    weights = save_dinov2(tmp_path / "vit", pretrained_cfg={"input_size": [3, 56, 56]})
    about = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps({**about, "model_args": shape}))
    assert load_dinov2(weights).image_size == (56, 56)
    assert load_dinov2(weights, image_size=(28, 70)).image_size == (28, 70)


@pytest.mark.parametrize(
    "said",
    [{"std": [0, 1, 1]}, {"mean": "x"}, {"interpolation": "smooth"}, {"input_size": [3, "a"]}],
)
def test_timms_malformed_file_is_one_sentence(tmp_path, said):
    weights = save_dinov2(tmp_path / "vit", pretrained_cfg=said)
    with pytest.raises(InputError, match=rf"vit/config\.json: {next(iter(said))} must be"):
        load_dinov2(weights)


# --- open_clip


def save_clip_folder(path, model, preprocess, dtype=torch.float16):
    path.mkdir()
    state = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(state, path / "open_clip_model.safetensors")
    shape = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    content = {"model_cfg": shape, "preprocess_cfg": preprocess}
    (path / "open_clip_config.json").write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize("size", [(80, 47), (33, 90), (20, 32), (32, 32), (200, 5)])
def test_a_clips_input_is_open_clips_own(tmp_path, mode, filter_name, size):
    said = {"resize_mode": mode, "interpolation": filter_name, "fill_color": 90}
    said |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    teacher = load_clip(save_clip_folder(tmp_path / "clip", build_clip(), said))
    image = photo(*size)
    ours = normalise(
        centre_view(image, teacher)[None].float() / 255, teacher.pixel_mean, teacher.pixel_std
    )
    transform = image_transform_v2(PreprocessCfg(size=32, **said), is_train=False)
    assert torch.allclose(ours[0], transform(Image.fromarray(image)), atol=1e-5)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_a_clip_that_is_not_square(mode):
    vision = {"image_size": (32, 48)}
    model = build_clip(vision)
    model.visual.preprocess_cfg = {"resize_mode": mode, "interpolation": "bilinear"}
    teacher = ClipTeacher(model, open_clip.SimpleTokenizer(context_length=24))
    how = "bilinear, stretched," if mode == "squash" else f"bilinear by the {mode} side,"
    assert how in describe_input(get_cfg(), teacher)
    image = photo(70, 61)
    cfg = PreprocessCfg(size=(32, 48), mean=(0, 0, 0), std=(1, 1, 1), **model.visual.preprocess_cfg)
    expected = image_transform_v2(cfg, is_train=False)(Image.fromarray(image))
    assert torch.allclose(centre_view(image, teacher).float() / 255, expected, atol=1e-5)


def test_a_line_of_pixels_is_an_image():
    bicubic = Preprocessing(interpolation="bicubic")
    how = {"resize_mode": "longest", "fill_color": 0, "preprocessing": bicubic}
    teacher = SimpleNamespace(image_size=(32, 32), **how)
    assert centre_view(photo(200, 1), teacher).shape == (3, 32, 32)


def test_a_tags_statistics_are_open_clips(monkeypatch, tmp_path):
    """Built-in tags bring theirs: SigLIP's mean and deviation are 0.5, and it squashes."""
    tag = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    said = clip_values(tag, "tag")
    assert said["mean"] == said["std"] == (0.5, 0.5, 0.5) and said["resize_mode"] == "squash"


@pytest.mark.parametrize(
    "said",
    [
        *({"std": [0.2, 0.0, 0.2]}, {"mean": [0.5, 0.5]}, {"mean": "grey"}, {"mode": "BGR"}),
        *({"interpolation": "nearest"}, {"resize_mode": "widest"}),
        *({"fill_color": 300}, {"fill_color": "black"}),
    ],
)
def test_open_clips_malformed_file_is_one_sentence(tmp_path, said):
    weights = save_clip_folder(tmp_path / "clip", build_clip(), said)
    with pytest.raises(
        InputError, match=rf"open_clip_config\.json: preprocess_cfg: {next(iter(said))} must"
    ):
        load_clip(weights)

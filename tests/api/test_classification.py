"""Classification in three lines, held against open_clip alone and against the classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import lqn_seg
from lqn_seg.errors import InputError

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "datasets" / "demo_objects" / "teacher"
CLASSES = ["star", "ring", "crate"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LQN_SEG_CACHE", str(tmp_path_factory.getbasetemp() / "texts"))


def test_zero_shot_is_open_clips(objects):
    model = lqn_seg.load(TEACHER, classes=CLASSES, method="zero-shot", threads=1)
    result = model(objects[0])
    folder = f"local-dir:{TEACHER}"
    clip, _, preprocess = open_clip.create_model_and_transforms(folder)
    clip.eval()
    tokens = open_clip.get_tokenizer(folder)([f"a photo of a {name}." for name in CLASSES])
    with torch.no_grad():
        image = clip.encode_image(preprocess(Image.open(objects[0]).convert("RGB"))[None])
        image, texts = (torch.nn.functional.normalize(x) for x in (image, clip.encode_text(tokens)))
        expected = (clip.logit_scale.exp() * image @ texts.T).softmax(-1)[0]
    assert np.allclose(result.probabilities, expected.numpy(), atol=1e-4)
    best = sorted(zip(CLASSES, expected.tolist()), key=lambda pair: -pair[1])
    assert [name for name, _ in result.top(3)] == [name for name, _ in best]
    assert result.confidence == result.top(1)[0][1] == result.probabilities.max()


def test_a_shipped_configuration_knows_its_classes(objects, tmp_path):
    model = lqn_seg.load("classification/demo", compare=("zero-shot",), threads=1)
    assert len(model.classes) == 8 and model.is_calibrated
    together = model(objects)
    for image, result in zip(objects, together, strict=True):
        alone = model(image)
        assert np.array_equal(alone.probabilities, result.probabilities)
        assert abs(result.probabilities.sum() - 1) < 1e-5 and len(result.top()) == 5
        assert list(result.compared) == ["zero-shot", "lqn"]
        assert result.picture.shape[0] > result.image.shape[0]
    before = model(objects[0]).probabilities
    model.calibrate(objects[0].parents[1], most=8)
    assert not np.array_equal(model(objects[0]).probabilities, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": TEACHER}, "classes: .* needs the names"),
        ({"model": TEACHER, "classes": "cat"}, "a list of at least two different names"),
        ({"model": TEACHER, "classes": ["cat"]}, "a list of at least two different names"),
        ({"model": TEACHER, "classes": CLASSES, "method": "ltn"}, "unknown method"),
        ({"model": TEACHER, "classes": CLASSES, "method": "tda"}, "CLASSIFICATION.HISTORY"),
        ({"model": "ViT-B-16:openai", "classes": CLASSES}, "QuickGELU mismatch"),
        ({"model": "ViT-B-17:openai", "classes": CLASSES}, "knows no model 'ViT-B-17'"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(arguments, said):
    with pytest.raises(InputError, match=said):
        lqn_seg.load(**arguments)

"""A teacher's precision and compilation, from the configuration to the masks."""

from __future__ import annotations

import json
import warnings

import pytest
import timm
import torch
from torch import nn

from lqn_seg.config.nodes import load_cfg
from lqn_seg.core.precision import resolve_precision
from lqn_seg.engine.build import build_segmenter, build_teacher, check_class_order
from lqn_seg.errors import InputError
from lqn_seg.lab.report.run import evaluate
from lqn_seg.teachers.dinov2 import Dinov2Teacher
from lqn_seg.teachers.eomt import load_eomt

THINGS = frozenset(range(8))
NAMES = ("person", "car", "tv", "traffic light")


def configured(path, key, value):
    return load_cfg(str(path), [f"MODEL.LQN.TEACHER.{key}", value])


def test_precision_reaches_teacher_head_and_every_layer(small_config, teacher_folder):
    images = torch.randn(1, 3, 32, 32)
    exact = load_eomt(str(teacher_folder))
    field, _ = exact.encode(images)
    cfg = configured(small_config, "PRECISION", "bfloat16")
    segmenter = build_segmenter(cfg, THINGS)
    teacher, head = segmenter.teacher, segmenter.head
    assert teacher.precision == head.precision == "bfloat16"
    assert teacher.model.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    lowered, lowered_context = teacher.encode(images)
    for layer, (result, wanted) in enumerate(zip(lowered[0], field[0])):
        error = ((result.float() - wanted).square().mean() / wanted.var()).item()
        assert 0 < error < 1e-3, layer  # as far off as three digits are, and not further
    masks, classes = head(lowered[:, -1], lowered_context.last_queries)
    assert masks.dtype == classes.dtype == torch.float32
    resumed, _ = teacher.resume(2, lowered[:, 1], lowered_context)
    assert torch.equal(resumed, lowered[:, -1])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lowered_teacher_is_evaluated_like_any_other(small_config, precision, capsys):
    cfg = ["MODEL.LQN.TEACHER.PRECISION", precision]
    report = evaluate(str(small_config), cfg)
    assert f"in {precision}" in capsys.readouterr().out
    again = evaluate(str(small_config), cfg, resume=True)
    assert json.dumps(again.metrics) == json.dumps(report.metrics)  # some are no numbers
    with pytest.raises(InputError, match="another configuration"):
        evaluate(str(small_config), resume=True)


def test_auto_precision_is_the_machines_own(small_config):
    teacher = build_teacher(configured(small_config, "PRECISION", "auto"))
    assert teacher.precision == resolve_precision("auto", torch.device("cpu"))


def test_a_dinov2_has_a_precision_too():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=2)
    images = torch.randn(1, 3, 32, 32)
    exact = Dinov2Teacher(model).encode(images)[0]
    result = Dinov2Teacher(model, "bfloat16").encode(images)[0]
    assert 0 < (result.float() - exact).square().mean() < 1e-3 * exact.var()


def test_a_compiled_teacher_answers_the_same(small_config, monkeypatch):
    """Every block through the compiler's front end; its back end needs a C++ compiler."""
    compiled, compiling = [], nn.Module.compile

    def compile_block(block: nn.Module) -> None:
        compiled.append(block)
        compiling(block, backend="eager", fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile_block)
    images = torch.randn(2, 3, 32, 32)
    plain = build_teacher(load_cfg(str(small_config)))
    assert not compiled
    teacher = build_teacher(configured(small_config, "COMPILE", "True"))
    assert compiled == list(teacher.model.layers)
    seen = []
    field, _ = teacher.encode(images, lambda layer, tokens: seen.append(layer) or tokens)
    assert seen == [0, 1, 2, 3, 4]
    torch.testing.assert_close(field, plain.encode(images)[0])


@pytest.mark.parametrize(
    "theirs",
    [
        NAMES,
        ("Person", "CAR ", "television receiver", "traffic_light"),  # two have no counterpart
        ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"),
        ("a", "b", "c", "d"),
    ],
)
def test_the_same_names_in_the_same_places_are_no_word_worth(theirs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_class_order(theirs, NAMES, "the teacher", "the data set")
        check_class_order(theirs[::-1], (), "the teacher", "the data set")


@pytest.mark.parametrize(
    "theirs",
    [
        ("person", "tv", "car", "traffic light"),  # all names, two of them elsewhere
        ("x", "person", "car", "y"),  # all that both have
    ],
)
def test_another_order_of_classes_is_an_error(theirs):
    with pytest.raises(InputError, match=r"the teacher and the data set number .* is class [12] "):
        check_class_order(theirs, NAMES, "the teacher", "the data set")


def test_one_name_elsewhere_may_be_another_class_and_is_said():
    with pytest.warns(UserWarning, match=r"'tv' is class 3 in the model and 2 .* 1 of 3 common"):
        check_class_order(("person", "car", "x", "tv"), NAMES, "the teacher", "the data set")


def test_a_teacher_of_another_order_scores_nothing(small_config, teacher_folder, tmp_path):
    """Its id2label has the scenes' names, the last two exchanged."""
    names = [*("disc", "ball", "ring", "square", "crate", "triangle", "star"), "rod"]
    names += ["sky", "grass", "water", "sand", "brick"]
    content = json.loads((teacher_folder / "config.json").read_text())
    content["id2label"] = dict(enumerate(names))
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").symlink_to(teacher_folder / "model.safetensors")
    changed = ["MODEL.LQN.TEACHER.WEIGHTS", str(tmp_path)]
    with pytest.raises(
        InputError, match=r"TEACHER\.WEIGHTS.*demo_panoptic_val.*'brick' is class 12"
    ):
        evaluate(str(small_config), changed)
    content["id2label"] = dict(enumerate([*names[:11], "brick", "sand"]))
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert evaluate(str(small_config), changed).metrics

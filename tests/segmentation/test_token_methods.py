"""Methods of one's own, against what the segmenter does without them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
import torch

from lqn_seg.adapt.methods import TokenMethod
from lqn_seg.config import methods as module
from lqn_seg.config.nodes import load_cfg, method_config, register_method
from lqn_seg.engine.build import build_segmenter
from lqn_seg.errors import InputError
from lqn_seg.lab.report.run import evaluate
from lqn_seg.segmentation.postprocess import mask_hash


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Names that a test registers are gone after it."""
    monkeypatch.setattr(module, "_registered", {})


@pytest.fixture
def predict(small_config):
    """One image's predictions by the methods named."""

    def run(*names: str):
        cfg = load_cfg(str(small_config))
        selected = {name: method_config(cfg, name) for name in names}
        segmenter = build_segmenter(cfg, frozenset(range(8)), recipes=selected)
        image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(1))
        return segmenter([image.byte()])[0]

    return run


def two_views(teacher, images, field):
    mirrored, _ = teacher.encode(images.flip(-1))
    return (field[:, -1] + mirrored[:, -1].flip(2)) / 2


def test_a_function_of_two_views_is_the_control_of_two_views(predict):
    register_method("mine", two_views)
    result = predict("mine", "flip", "teacher")
    hashes = {name: mask_hash(p.output) for name, p in result.items()}
    assert hashes["mine"] == hashes["flip"] != hashes["teacher"]
    assert result["mine"].stats["fit_ms"] > 0 == result["flip"].stats["fit_ms"]
    assert result["mine"].stats["token_cos"] == pytest.approx(result["flip"].stats["token_cos"])


def test_an_answer_that_fails_is_the_teachers_and_counted(predict):
    def exhausted(teacher, images, field):
        raise torch.OutOfMemoryError("CUDA out of memory")

    register_method("endless", lambda teacher, images, field: field[:, -1] / 0)
    register_method("exhausted", exhausted)
    result = predict("endless", "exhausted", "teacher")
    for name in ("endless", "exhausted"):
        assert mask_hash(result[name].output) == mask_hash(result["teacher"].output)
        assert result[name].stats["fallback"] == 1 and result["teacher"].stats["fallback"] == 0

    def broken(teacher, images, field):
        raise RuntimeError("shapes do not fit")

    register_method("mine", broken)
    with pytest.raises(RuntimeError, match="do not fit"):  # a mistake is shown
        predict("mine")


def digest(answer, version: str = "") -> str:
    return TokenMethod("mine", answer, version).code


def stepping(steps):
    def method(teacher, images, field, count=steps):
        return field[:, -1] * count

    return method


def closing(steps):
    return lambda teacher, images, field: field[:, -1] * steps


class Scaled(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(width))

    def forward(self, teacher, images, field):
        return field[:, -1] * self.scale


def test_the_digest_knows_defaults_code_and_version():
    assert digest(stepping(3)) == digest(stepping(3)) != digest(stepping(4))
    assert digest(two_views) == digest(two_views) != digest(two_views, "2")
    first = {"here": lambda t, i, field: sum(k * field[:, -1] for k in (1, 0))}["here"]
    second = {"here": lambda t, i, field: sum(k + field[:, -1] for k in (1, 0))}["here"]
    assert digest(first) != digest(second)  # code within a comprehension
    assert digest(Scaled(2), "1") == digest(Scaled(2), "1") != digest(Scaled(2), "2")
    assert digest(closing(2), "2") != digest(closing(3), "3")


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (closing(2), "a function with a closure"),
        (functools.partial(two_views), r"an object \(partial\)"),
        (Scaled(2), r"an object \(Scaled\)"),
        (Scaled(2).forward, "a callable without a source file"),
        (stepping({1, 2}), "a function with defaults that are no numbers"),
        (eval("lambda teacher, images, field: field[:, -1]"), "a callable without a source file"),
        (max, "a callable without a source file"),
    ],
)
def test_what_the_source_does_not_say_needs_a_version(answer, what):
    with pytest.raises(InputError, match=f"method mine is ({what}).*register_method a version"):
        register_method("mine", answer)
    register_method("mine", answer, version="1")
    assert digest(answer, "1") != digest(answer, "2")


def test_the_digest_is_the_same_in_every_process(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from lqn_seg.adapt.methods import TokenMethod\n"
        "def f(teacher, images, field, mode='mean'):\n"
        "    return field[:, -1] if mode in {'mean', 'max', 'sum', 'last'} else field[:, 0]\n"
        "print(TokenMethod('f', f).code)\n"
    )
    result = {
        subprocess.run(
            [sys.executable, path],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(result) == 1


def test_a_wrong_answer_or_name_is_one_sentence(predict, small_config):
    register_method("mine", lambda teacher, images, field: field)
    with pytest.raises(InputError, match=r"method mine must answer with tokens \(1, 4, 4, 16\)"):
        predict("mine")
    register_method("mine", lambda teacher, images, field: None)
    with pytest.raises(InputError, match="not NoneType"):
        predict("mine")
    for name in ("lqn", "teacher", "a b", "x@paper", ""):
        with pytest.raises(InputError, match="needs a new name"):
            register_method(name, two_views)
    cfg = load_cfg(str(small_config))
    with pytest.raises(InputError, match="did you mean 'mine'"):
        method_config(cfg, "miner")
    with pytest.raises(InputError, match="has no recipe"):
        method_config(cfg, "mine@paper")


def test_it_takes_part_in_tables_and_a_resume_knows_its_code(small_config, capsys):
    overrides = ["MODEL.LQN.EVAL.MAX_IMAGES", "2"]
    selected = ("teacher", "mine")
    register_method("mine", lambda teacher, images, field: field[:, -1])
    report = evaluate(str(small_config), overrides=overrides, methods=selected)
    assert "\nmine " in capsys.readouterr().out
    images = report.results()["per_image"]["clean"]
    hashes = {name: [image["mask_hash"] for image in images[name]] for name in selected}
    assert hashes["mine"] == hashes["teacher"] and len(hashes["mine"]) == 2
    evaluate(str(small_config), overrides=overrides, methods=selected, resume=True)
    register_method("mine", lambda teacher, images, field: field[:, -2])
    with pytest.raises(InputError, match="resume"):
        evaluate(str(small_config), overrides=overrides, methods=selected, resume=True)

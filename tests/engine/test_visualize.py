"""Figures of a small teacher: what is drawn is what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lqn_seg.adapt import ineffective
from lqn_seg.config.nodes import method_config
from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.engine.evaluate import Condition
from lqn_seg.engine.probe import Probe, share
from lqn_seg.errors import InputError
from lqn_seg.lab.inspect.visualize import (
    FIGURES,
    Request,
    Studio,
    after,
    gauge_reading,
    layer_times,
    query_times,
    steps_of,
    stops,
)
from lqn_seg.visualization.figures import save_gif, save_picture

ROOT = Path(__file__).parents[2]


@pytest.fixture
def studio(small_config, tmp_path):
    """Of the small configuration, with changes to the request."""

    def build(*overrides: str, **changes) -> Studio:
        request = Request(tmp_path / "figures", str(small_config), overrides=overrides)
        return Studio(replace(request, **changes))

    return build


@pytest.fixture
def probe(studio) -> Probe:
    shop = studio()
    return shop.probe(next(shop.sources()))


SHORT = ("MODEL.LQN.PRESET", "distill", "MODEL.LQN.ADAPT.GAUGED", "False")


def test_figures_that_need_no_head_are_drawn_for_any_layer_and_condition(studio):
    for name, kinds in (("tokens", 2), ("error", 3), ("depth", 3), ("reconstruct", 2)):
        shop = studio(*SHORT, methods=["lqn"], conditions=["fog"], layers=[2, 4])
        written = FIGURES[name](shop)
        assert len(written) == kinds and all(path.stat().st_size > 50 for path in written)
        assert "fog-3" in written[0].name or name == "depth"
        assert np.asarray(Image.open(written[0]).convert("L")).std() > 10
    numbers = json.loads(written[0].parent.joinpath("error_scene-0_fog-3.json").read_text())
    assert len(numbers["LQN"]) == 4 and min(numbers["LQN"]) > 0


# Figures that need no more of a teacher than its token field, and those that need a mask head.
FIELD_ONLY = ("tokens", "error", "depth", "reconstruct")
SEGMENTING = ("panels", "steps")


@pytest.mark.parametrize("teacher", ["dinov2", "clip"])
def test_any_teacher_gives_the_figures_of_its_tokens(teacher, studio, tmp_path):
    request = {"methods": ["lqn-src"], "overrides": SHORT}
    if teacher == "clip":
        request["config_file"] = str(ROOT / "configs" / "classification" / "demo.yaml")
        request["overrides"] = (*SHORT, "MODEL.LQN.FIT.STEPS", "3")
    else:
        shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56}
        about = {"architecture": "vit_small_patch14_reg4_dinov2", "model_args": shape}
        (tmp_path / "dinov2.json").write_text(json.dumps(about))
        request["overrides"] = (
            *(*SHORT, "MODEL.LQN.TEACHER.NAME", "dinov2", "MODEL.LQN.TEACHER.WEIGHTS", ""),
            *("MODEL.LQN.TEACHER.CONFIG", str(tmp_path / "dinov2.json")),
        )
    layers = {"dinov2": 2, "clip": 6}[teacher]
    for name in FIELD_ONLY:
        written = FIGURES[name](studio(**request))
        assert np.asarray(Image.open(written[0]).convert("L")).std() > 10
        if name == "error":
            assert len(json.loads(written[-1].read_text())["LQN-[src]"]) == layers
    for name in SEGMENTING:
        methods = ["teacher", "lqn-src"] if name == "panels" else ["lqn-src"]
        with pytest.raises(InputError, match=f"{teacher} has no mask head to segment with"):
            FIGURES[name](studio(**{**request, "methods": methods}))


def test_a_clip_is_gauged_as_an_eomt_is(studio):
    config = str(ROOT / "configs" / "classification" / "demo.yaml")
    (*_, numbers) = FIGURES["gauge"](studio(config_file=config, conditions=["contrast"]))
    damage = [d for d, _ in json.loads(numbers.read_text())["damage_and_share"]["contrast"]]
    assert damage[0] < 0.5 * damage[5]


def test_panels_write_the_change_of_the_score(studio):
    (png, svg) = FIGURES["panels"](studio(methods=["teacher", "lqn"]))
    assert Image.open(png).size[0] > 4 * 250 and b"data:image/png" in svg.read_bytes()


def test_the_teacher_lies_linearly_between_its_layers(probe):
    assert torch.equal(probe.at(2), probe.field[:, 1])
    assert torch.allclose(probe.at(2.25), 0.75 * probe.field[:, 1] + 0.25 * probe.field[:, 2])
    assert torch.equal(probe.at(4), probe.field[:, 3])
    for layer in (0.5, 4.1):
        with pytest.raises(InputError, match=r"in 1\.\.4"):
            probe.at(layer)


def test_pixels_as_tokens_are_the_picture_again(probe):
    field = probe.pixel_field()
    assert field.shape[1:] == (1, *probe.teacher.grid, 3 * 8 * 8)
    assert (probe.picture_of(field[:, 0]) == probe.picture()).all()


def test_padding_is_not_shown(studio):
    shop = studio()
    wide = torch.zeros(3, 20, 40, dtype=torch.uint8)
    probe = Probe(shop.teacher, [wide])
    assert probe.picture().shape == (16, 32, 3)
    assert probe.visible(probe.at(1)).shape == (2, 4, 16)


def test_errors_are_1_for_the_mean_token(probe):
    mean = probe.at(3).mean((1, 2), keepdim=True).expand_as(probe.at(3))
    assert share(mean - probe.at(3), probe.at(3)) == pytest.approx(1, rel=1e-4)


def test_times_are_measured_in_every_layer(probe, studio):
    method = method_config(studio().cfg, "lqn@distill")
    method = replace(method, fit=replace(method.fit, steps=2))
    taken = layer_times(probe, 3)
    assert len(taken) == 4 and taken == sorted(taken) and taken[0] > 0
    assert len(query_times(probe, probe.fit(method), 3)) == 4


def test_a_fit_that_is_cut_short_is_the_start_of_the_whole(studio):
    shop = studio(*SHORT)
    method = steps_of(shop, "lqn")
    source = next(shop.sources())
    probe = shop.probe(source)
    whole = probe.fit(method).loss_curve
    cut = probe.fit(replace(method, fit=replace(method.fit, steps=3))).loss_curve
    assert torch.equal(cut, whole[:, :3])
    # What is drawn for a step is what a student that made so many steps says.
    stats = [after(shop, source.tensor, method, k).stats for k in (0, 3, 5)]
    student = probe.fit(replace(method, fit=replace(method.fit, steps=3))).query_layer(4)
    expected = share(student - probe.at(4), probe.at(4))
    assert stats[1]["error_over_variance"] == pytest.approx(expected, rel=1e-4)
    assert len({s["error_over_variance"] for s in stats}) == 3


def test_stops_start_at_0_and_end_at_all_steps():
    for steps in (1, 5, 15, 40, 250):
        found = stops(steps)
        assert found[0] == 0 and found[-1] == steps and found == sorted(set(found))


def test_steps_draws_a_strip_and_a_gif_of_as_many_frames(studio):
    png, svg, gif = FIGURES["steps"](studio(*SHORT, methods=["lqn"]))
    with Image.open(gif) as frames:
        assert frames.n_frames == len(stops(5))
    assert "Adam steps made" in svg.read_text() and png.is_file()


def test_the_start_of_a_fit_is_no_method_to_warn_of(studio, recwarn, monkeypatch):
    monkeypatch.setattr(ineffective, "_said", set())
    shop = studio(*SHORT)
    after(shop, next(shop.sources()).tensor, steps_of(shop, "lqn"), 0)
    assert not [w for w in recwarn if issubclass(w.category, ineffective.IneffectiveMethodWarning)]


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        (".png", lambda stem, pixels: save_picture(pixels, stem)),
        (".svg", lambda stem, pixels: save_picture(pixels, stem)),
        (".gif", lambda stem, pixels: save_gif([pixels] * 2, stem.with_name("x.gif"))),
    ],
)
def test_a_figure_that_cannot_be_written_is_one_sentence(ending, write, tmp_path):
    (tmp_path / f"x{ending}").mkdir()
    with pytest.raises(InputError, match="x"):
        write(tmp_path / "x", np.zeros((4, 4, 3), np.uint8))


def test_the_gauge_of_the_demo_sees_noise_and_not_clean_scenes(tmp_path):
    demo = Studio(Request(tmp_path, "configs/demo_lqn.yaml"))
    from lqn_seg.engine.build import build_calibration

    calibration = build_calibration(demo.cfg, demo.teacher)
    image = next(demo.images())
    clean = gauge_reading(demo, calibration, image)
    noisy = gauge_reading(demo, calibration, image.under(Condition("gaussian_noise", 5)))
    assert clean[0] < calibration.undamaged < noisy[0]
    assert clean[1] == 0 and 0.2 < noisy[1] < 1
    written = FIGURES["gauge"](Studio(replace(demo.request, conditions=CORRUPTIONS[:1])))
    numbers = json.loads(written[-1].read_text())["damage_and_share"][CORRUPTIONS[0]]
    assert len(numbers) == 6 and numbers[0] == list(clean)
    assert numbers[5][0] == pytest.approx(noisy[0])


def test_curves_are_drawn_from_a_file_or_refused_in_a_sentence(studio, tmp_path):
    wrong = tmp_path / "results.json"
    for content in ("{", "[]", "{}"):
        wrong.write_text(content)
        with pytest.raises(InputError, match=r"results.json is no results.json of a study"):
            FIGURES["curves"](studio(results=wrong))


def test_bad_requests_are_one_sentence(studio, tmp_path):
    for name, changes, message in (
        ("gauge", {}, "calibration"),
        ("panels", {"methods": ["lqn"]}, "at least two"),
        ("tokens", {"methods": ["apm"]}, "no student of all layers"),
        ("tokens", {"layers": [9]}, r"1\.\.4"),
        ("steps", {"methods": ["teacher"]}, "no student whose steps"),
        ("error", {"conditions": ["fogg"]}, "did you mean 'fog'"),
        ("error", {"severity": 6, "conditions": ["fog"]}, r"--severity must be in 1\.\.5"),
        ("error", {"inputs": [str(tmp_path / "nowhere")]}, "no file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            FIGURES[name](studio(**changes))


def test_images_of_one_name_keep_apart(studio, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / folder / "x.png")
    for name in ("a/IMG.2024.01.png", "a/IMG.2024.02.png", "a/y z.png", "a/y-z.png", "a/X.jpg"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)

    def drawn(*inputs: str) -> set[str]:
        folder = tmp_path / "figures"
        before = set(folder.glob("*.png")) if folder.is_dir() else set()
        written = FIGURES["tokens"](studio(*SHORT, inputs=[str(tmp_path / i) for i in inputs]))
        assert len(set(written)) == len(written)
        return {path.name for path in set(written) - before if path.suffix == ".png"}

    names = {name.split("_clean_")[0] for name in drawn("a", "b/x.png", "b")}
    assert len(names) == 7 and {"tokens_IMG.2024.01", "tokens_IMG.2024.02"} < names
    # No command overwrites what another has drawn of another image.
    assert drawn("a/x.png") == {"tokens_x_clean_lqn@distill.png"} and not drawn("b/x.png")
    (tmp_path / "c").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "c" / "x.png")
    assert len(drawn("c/x.png")) == 1 and not drawn("c/x.png")

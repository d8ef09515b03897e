"""Figures of a small teacher: what is drawn is what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lqn_seg.adapt.ineffective import IneffectiveMethodWarning
from lqn_seg.adapt.journey import over_variance
from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.engine.evaluate import Condition
from lqn_seg.engine.probe import Probe
from lqn_seg.engine.studio import Studio, stops
from lqn_seg.errors import InputError
from lqn_seg.lab.inspect.visualize import FIGURES, damage_and_weight, draw_curves
from lqn_seg.visualization.files import save_gif, save_picture

ROOT = Path(__file__).parents[2]
CLIP = str(ROOT / "configs" / "classification" / "demo.yaml")
SHORT = ("MODEL.LQN.PRESET", "distill", "MODEL.LQN.ADAPT.MIX_BY_NOISE", "False")


@pytest.fixture
def studio(small_config, tmp_path):
    """Of the small configuration, with changes to it and to the request."""

    def build(*overrides: str, **request) -> Studio:
        defaults = {"config_file": str(small_config), "output": tmp_path / "figures"}
        return Studio(**{**defaults, "overrides": overrides, **request})

    return build


@pytest.fixture
def probe(studio) -> Probe:
    shop = studio()
    return shop.probe(next(shop.sources()))


def test_figures_that_need_no_head_are_drawn_for_any_layer_and_condition(studio):
    for name, kinds in (("tokens", 2), ("error", 3), ("depth", 3), ("reconstruct", 2)):
        options = {"layers": [2, 4]} if name == "tokens" else {}
        shop = studio(*SHORT, methods=["lqn"], corruptions=["fog"])
        written = list(FIGURES[name](shop, **options))
        assert len(written) == kinds and all(path.stat().st_size > 50 for path in written)
        assert "fog-3" in written[0].name or name == "depth"
        assert np.asarray(Image.open(written[0]).convert("L")).std() > 10
    numbers = json.loads((shop.output / "error_scene-0_fog-3.json").read_text())
    assert len(numbers["LQN"]["error"]) == 4 and min(numbers["LQN"]["error"]) > 0
    times = json.loads((shop.output / "depth_scene-0_lqn.json").read_text())
    assert times["teacher_ms"] == sorted(times["teacher_ms"]) and times["teacher_ms"][0] > 0
    assert len(times["student_ms"]) == 4 and times["fit_ms"] > 0


@pytest.mark.parametrize(("teacher", "layers"), [("dinov2", 2), ("clip", 6)])
def test_any_teacher_gives_the_figures_of_its_tokens(teacher, layers, studio, tmp_path):
    if teacher == "clip":
        request = {"config_file": CLIP, "overrides": (*SHORT, "MODEL.LQN.FIT.STEPS", "3")}
    else:
        shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56}
        about = {"architecture": "vit_small_patch14_reg4_dinov2", "model_args": shape}
        (tmp_path / "dinov2.json").write_text(json.dumps(about))
        keys = {"NAME": "dinov2", "WEIGHTS": "", "CONFIG": str(tmp_path / "dinov2.json")}
        pairs = [word for k, v in keys.items() for word in (f"MODEL.LQN.TEACHER.{k}", v)]
        request = {"overrides": (*SHORT, *pairs)}
    for name in ("tokens", "error", "depth", "reconstruct"):
        written = list(FIGURES[name](studio(methods=["lqn-src"], **request)))
        assert np.asarray(Image.open(written[0]).convert("L")).std() > 10
        if name == "error":
            assert len(json.loads(written[-1].read_text())["LQN-[src]"]["error"]) == layers
    for name, methods in (("panels", ["teacher", "lqn-src"]), ("steps", ["lqn-src"])):
        with pytest.raises(InputError, match=f"{teacher} has no segmentation head"):
            list(FIGURES[name](studio(methods=methods, **request)))


def test_the_literal_recipe_does_not_see_positions_and_a_fitted_one_does(studio):
    fitted = ("MODEL.LQN.STUDENT.WIDTHS", "(64,)", "MODEL.LQN.FIT.PRECISION", "float32")
    demo = {"config_file": str(ROOT / "configs" / "demo_lqn.yaml")}
    shop = studio(*fitted, methods=["lqn@paper", "lqn-src@distill"], **demo)
    (*_, written) = FIGURES["error"](shop)
    literal, distilled = json.loads(written.read_text()).values()
    assert len(literal["error"]) == len(literal["variance"]) == 8
    assert max(literal["variance"]) < 0.01 and min(literal["error"]) > 0.9
    assert min(distilled["variance"]) > 0.1 and max(distilled["error"]) < 0.9
    assert len(literal["loss"]) == 15 and len(distilled["loss"]) == 250
    # Of random positions each, so single losses vary.
    first, middle, last = (sum(distilled["loss"][k : k + 25]) for k in (0, 112, 225))
    assert last < middle < first
    # Error over variance of a least-squares fit is 1 less what it explains.
    for error, variance in zip(distilled["error"], distilled["variance"]):
        assert error == pytest.approx(1 - variance, abs=0.25)


def test_a_clip_has_damage_as_an_eomt_has(studio):
    (*_, numbers) = FIGURES["alignment"](studio(config_file=CLIP, corruptions=["contrast"]))
    damage = [d for d, _ in json.loads(numbers.read_text())["damage_and_weight"]["contrast"]]
    assert damage[0] < 0.5 * damage[5]


def test_panels_write_the_change_of_the_score(studio):
    png, svg = FIGURES["panels"](studio(methods=["teacher", "lqn"]))
    assert Image.open(png).size[0] > 4 * 250 and b"data:image/png" in svg.read_bytes()


def test_without_a_data_set_class_names_are_the_teachers(studio, tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    shop = studio("DATASETS.TEST", "()", inputs=[str(tmp_path)], methods=["teacher", "lqn"])
    assert len(list(FIGURES["panels"](shop))) == 2
    assert "this teacher knows only 13 classes: LABEL_0" in capsys.readouterr().out


def test_the_teacher_lies_linearly_between_its_layers(probe):
    assert torch.equal(probe.at(2), probe.field[:, 1])
    assert torch.allclose(probe.at(2.25), 0.75 * probe.field[:, 1] + 0.25 * probe.field[:, 2])
    assert torch.equal(probe.at(4), probe.field[:, 3])
    for layer in (0.5, 4.1, float("nan")):
        with pytest.raises(InputError, match=r"in 1\.\.4"):
            probe.at(layer)


def test_pixels_as_tokens_are_the_picture_again(probe):
    field = probe.pixel_field()
    assert field.shape[1:] == (1, *probe.teacher.grid, 3 * 8 * 8)
    assert (probe.picture_of(field[:, 0]) == probe.picture()).all()


def test_padding_is_not_shown(studio):
    probe = Probe(studio().teacher, [torch.zeros(3, 20, 40, dtype=torch.uint8)])
    assert probe.picture().shape == (16, 32, 3)
    assert probe.visible(probe.at(1)).shape == (2, 4, 16)


def test_a_fit_that_is_cut_short_is_the_start_of_the_whole(studio, recwarn):
    shop = studio(*SHORT)
    recipe = shop.recipes(["lqn"])["lqn"]
    source = next(shop.sources())
    probe = shop.probe(source)
    cut = probe.fit(replace(recipe, fit=replace(recipe.fit, steps=3)))
    assert torch.equal(cut.loss_curve, probe.fit(recipe).loss_curve[:, :3])
    # What is drawn for a step is what a student that made so many steps says.
    stats = [shop.predict_after(source.tensor, recipe, k).stats for k in (0, 3, 5)]
    expected = over_variance(cut.query_layer(4) - probe.at(4), probe.at(4))
    assert stats[1]["error_over_variance"] == pytest.approx(expected, rel=1e-4)
    assert len({s["error_over_variance"] for s in stats}) == 3
    # The start of a fit is no method to warn of.
    assert not [w for w in recwarn if issubclass(w.category, IneffectiveMethodWarning)]


def test_stops_start_at_0_and_end_at_all_steps():
    for steps in (1, 5, 15, 40, 250):
        assert stops(steps)[0] == 0 and stops(steps)[-1] == steps
        assert stops(steps) == sorted(set(stops(steps)))


def test_steps_draws_a_strip_and_a_gif_of_as_many_frames(studio):
    png, svg, gif = FIGURES["steps"](studio(*SHORT, methods=["lqn"]))
    with Image.open(gif) as frames:
        assert frames.n_frames == len(stops(5))
    assert "Adam steps made" in svg.read_text() and png.is_file()


@pytest.mark.parametrize("ending", [".png", ".svg", ".gif"])
def test_a_figure_that_cannot_be_written_is_one_sentence(ending, tmp_path):
    (tmp_path / f"x{ending}").mkdir()
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match=rf"cannot write .*x\{ending}"):
        save_picture(pixels, tmp_path / "x")
        save_gif([pixels] * 2, tmp_path / "x.gif")
    assert not list(tmp_path.glob("*.partial"))


def test_alignment_of_the_demo_sees_noise_and_not_clean_scenes(tmp_path):
    demo = Studio("configs/demo_lqn.yaml", tmp_path, corruptions=CORRUPTIONS[:1])
    image = next(demo.images())
    clean, noisy = (
        damage_and_weight(demo, demo.calibration, source)
        for source in (image, image.under(Condition("gaussian_noise", 5), 0))
    )
    assert clean[0] < demo.calibration.undamaged < noisy[0]
    assert clean[1] == 0 and 0.2 < noisy[1] < 1
    (*_, written) = FIGURES["alignment"](demo)
    numbers = json.loads(written.read_text())["damage_and_weight"][CORRUPTIONS[0]]
    assert len(numbers) == 6 and numbers[0] == list(clean)
    assert numbers[5][0] == pytest.approx(noisy[0])


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_curves_are_drawn_from_a_file_or_refused_in_a_sentence(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results.json is not the results.json of a study"):
        draw_curves(tmp_path / "results.json", tmp_path)


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("alignment", {}, "calibration"),
        ("panels", {"methods": ["lqn"]}, "at least two"),
        ("tokens", {"methods": ["apm"]}, "no student that covers all layers"),
        ("steps", {"methods": ["teacher"]}, "no student that is fitted step by step"),
        ("error", {"corruptions": ["fogg"]}, "did you mean 'fog'"),
        ("error", {"severity": 6, "corruptions": ["fog"]}, "severity must be 1, 2, 3, 4 or 5"),
        ("error", {"inputs": ["nowhere"]}, "nowhere does not exist"),
    ],
)
def test_bad_requests_are_one_sentence(name, request_, message, studio):
    with pytest.raises(InputError, match=message):
        list(FIGURES[name](studio(**request_)))


def test_a_layer_that_is_not_there_is_one_sentence(studio):
    with pytest.raises(InputError, match=r"1\.\.4"):
        list(FIGURES["tokens"](studio(), layers=[9]))


def test_images_of_one_name_keep_apart(studio, tmp_path):
    names = ("IMG.2024.01.png", "IMG.2024.02.png", "y z.png", "y-z.png", "X.jpg", "x.png")
    for name in (*(f"a/{name}" for name in names), "b/x.png", "c/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)

    def drawn(*inputs: str) -> set[str]:
        shop = studio(*SHORT, inputs=[str(tmp_path / i) for i in inputs])
        before = set(shop.output.glob("*.png"))
        written = list(FIGURES["tokens"](shop))
        assert len(set(written)) == len(written)
        return {path.name for path in set(written) - before if path.suffix == ".png"}

    stems = {name.split("_clean_")[0] for name in drawn("a", "b/x.png", "b")}
    assert len(stems) == 7 and {"tokens_IMG.2024.01", "tokens_IMG.2024.02"} < stems
    # No command overwrites what another has drawn of another image.
    assert not drawn("a/x.png", "b/x.png")
    assert len(drawn("c/x.png")) == 1 and not drawn("c/x.png")

"""A classification run from a YAML file to its tables and files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lqn_seg.adapt.classification_methods import DEFAULT_VIEWS
from lqn_seg.config.methods import adaptation
from lqn_seg.config.nodes import load_classification_cfg
from lqn_seg.data import catalog
from lqn_seg.engine.classify import Classification, calibrate_clip, classifications
from lqn_seg.engine.stored import parse_line
from lqn_seg.engine.training.train_clip import save_clip
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import UncountedOperatorError
from lqn_seg.lab.cost.flops import step_macs
from lqn_seg.lab.report import classification
from lqn_seg.lab.report import report as report_module
from lqn_seg.lab.report.classification import ClassificationReport
from lqn_seg.lab.report.costs import classification_cost
from lqn_seg.lab.report.run import classify
from lqn_seg.lab.report.wording import CLASSIFICATION_TITLES, title
from tests.classification.conftest import TEXT, VISION, build_clip

ALL = (
    *("ensemble", "teacher", "apm@paper:mean", "lqn@paper:mean", "restore", "lqn-src", "lqn"),
    *("lqn:reentry", "zero", "vte", "mta", "tps", "gs-bias", "tpt", "tda"),
)


@pytest.fixture
def config(tmp_path, prepare_demo, monkeypatch) -> Path:
    monkeypatch.setattr(catalog, "_registered", {})
    monkeypatch.setenv("LQN_SEG_CACHE", str(tmp_path / "cache"))
    for name, seed in (("objects", 0), ("others", 1)):
        prepare_demo.write_objects(tmp_path / name, "val", 16, seed=seed)
        catalog.register_image_folder(name, tmp_path / name / "val")
    shape = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    save_clip(tmp_path / "clip", build_clip(), shape)
    path = tmp_path / "run.yaml"
    content = {
        "MODEL": {
            "DEVICE": "cpu",
            "LQN": {
                "TEACHER": {"NAME": "clip", "WEIGHTS": str(tmp_path / "clip")},
                "BATCH": 4,
                "STUDENT": {
                    "INPUT_SIZE": 32,
                    "STRIDE": 8,
                    "WIDTHS": [32, 32],
                    "POSITION_DIM": 32,
                },
                "FIT": {"STEPS": 3, "LAYERS": [1, 2, 3], "POSITIONS_PER_STEP": 16},
                "EVAL": {"CORRUPTIONS": ["fog"], "BOOTSTRAP_SAMPLES": 50},
            },
        },
        "CLASSIFICATION": {
            "METHODS": list(ALL),
            "VIEWS": 5,
            "HISTORY": True,
        },
        "DATASETS": {"TEST": ["objects"]},
        "SEED": 0,
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_method_runs_and_leaves_its_figures(config, capsys):
    calibrate_clip(load_classification_cfg(str(config)), "others")
    report = classify(str(config), full=True)
    printed = capsys.readouterr().out
    shown = ("zero-shot", "teacher CLS", "teacher patch mean", *ALL)
    for name in shown:
        assert title(name, CLASSIFICATION_TITLES) in printed
    assert "TDA learns from the images before it" in printed and "published" not in printed
    results = json.loads((Path(report.cfg.OUTPUT_DIR) / "inference" / "results.json").read_text())
    assert list(results["metrics"]) == ["clean", "fog-3"]
    for name in shown:
        scores = results["metrics"]["clean"][name]["classification"]
        assert 0 <= scores["acc1"] <= scores["acc5"] <= 100 and "ACC-ring" in scores
        cost = results["costs"][name]
        assert cost["forward_gmacs"] > 0 and cost["peak_mib"] > 0 and cost["total_ms"] > 0
        learns = name.startswith(("lqn", "apm", "tpt"))
        assert (cost["backward_gmacs"] > 0) == (learns or name == "tps"), name
    # One method's figures again, from the lines as they lie on disk.
    stored = Path(report.cfg.OUTPUT_DIR) / "inference" / "clean.0.jsonl"
    images = [image for line in stored.read_text().splitlines() for image in parse_line(line)]
    lines = [image["methods"]["lqn"]["classification"] for image in images]
    accuracy = 100 * np.mean([line["label"] == line["predicted"] for line in lines])
    assert len(lines) == 16
    assert results["metrics"]["clean"]["lqn"]["classification"]["acc1"] == pytest.approx(accuracy)
    once = results["costs"]["zero-shot"]["forward_gmacs"]
    for name, views in {"zero": 5, "teacher": DEFAULT_VIEWS}.items():
        assert results["costs"][name]["forward_gmacs"] / once == pytest.approx(views, rel=0.1)
    # A mix_by_noise recipe is charged for the one student that it may have, whatever its views.
    recipe, teacher = adaptation(report.cfg, "lqn").recipe, report.classifier.teacher
    grid = (teacher.num_layers, teacher.grid[0] + 1, teacher.grid[1])
    expected = recipe.fit.steps * step_macs(recipe, grid, teacher.width).backward / 1e9
    assert results["costs"]["lqn"]["backward_gmacs"] == pytest.approx(expected, rel=0.1)
    # The student's lead over another method, by hand, and nothing over itself.
    assert results["focus"] == "lqn" and "lqn" not in results["focus_minus"]
    fog = results["metrics"]["fog-3"]
    lead = fog["lqn"]["classification"]["acc1"] - fog["mta"]["classification"]["acc1"]
    result = results["focus_minus"]["mta"]["mean of corruptions"]
    assert result["difference"] == pytest.approx(lead) and result["low"] <= lead <= result["high"]
    assert "top-1 accuracy of LQN minus that of each other method" in printed


@pytest.mark.parametrize(
    "method, given, views",
    [("lqn", 0, 6), ("teacher", 0, 6), ("lqn@paper", 0, 1), ("lqn@paper", 4, 4), ("restore", 1, 1)],
)
def test_the_default_recipe_adapts_to_six_views_and_the_papers_to_one(config, method, given, views):
    options = ["CLASSIFICATION.STUDENT_VIEWS", str(given)]
    assert adaptation(load_classification_cfg(str(config), options), method).views == views


def run(config: Path, *overrides: str) -> list[Classification]:
    options = ["CLASSIFICATION.METHODS", "('lqn', 'zero')", "CLASSIFICATION.HISTORY", "False"]
    cfg = load_classification_cfg(str(config), [*options, *overrides])
    result = list(classifications(cfg).values())
    for one in result:
        one.run(progress=False)
    return result


def text(runs: list[Classification]) -> str:
    report = ClassificationReport(runs)
    return "\n\n".join([*report.summary(), *report.tables()])


def answers(result: list[Classification]) -> dict:
    """By image and method, on clean images."""
    (one,) = result
    return {
        record["image_id"]: [
            list(one.lines("clean", m))[k]["classification"] for m in ("lqn", "zero")
        ]
        for k, record in enumerate(one.scored)
    }


def test_a_subset_is_spread_over_the_classes_and_says_so(config):
    result = run(config, "MODEL.LQN.EVAL.MAX_IMAGES", "8")
    assert sorted(record["label"] for record in result[0].records) == list(range(8))
    assert "SUBSET of 16: 8 images" in text(result)


@pytest.mark.parametrize(
    ("selected", "focus"),
    [
        (("restore", "teacher"), "restore"),
        (("teacher", "restore", "zero"), "restore"),
        (("lqn-src", "restore", "teacher"), "lqn-src"),
        (("apm", "lqn@paper", "restore"), "lqn@paper"),
        (("lqn", "apm"), "lqn"),
        (("zero", "teacher"), "teacher"),
        (("zero",), ""),
    ],
)
def test_the_sentence_is_about_what_adapts(config, monkeypatch, selected, focus):
    monkeypatch.setattr(classification, "classification_cost", _no_cost)
    quick = ("MODEL.LQN.EVAL.MAX_IMAGES", "2", "MODEL.LQN.EVAL.CORRUPTIONS", "()")
    report = ClassificationReport(run(config, "CLASSIFICATION.METHODS", repr(selected), *quick))
    assert report.focus == focus
    assert focus not in report.lead and bool(report.lead) == (bool(focus) and len(selected) > 1)
    assert (
        report.sentence().startswith(title(focus, CLASSIFICATION_TITLES))
        if focus
        else report.sentence() == ""
    )


def _no_cost(run: Classification, method: str) -> None:
    raise UncountedOperatorError("an operator has no rule")


def test_no_cost_and_no_failing_part_loses_the_scores(config, monkeypatch, capsys):
    """One operator without a rule once ended the run in a traceback, after all its images."""

    def broken(*_: object) -> None:
        raise ValueError("broken")

    def partly(run: Classification, method: str):
        return _no_cost(run, method) if method == "zero" else classification_cost(run, method)

    wanted = ["CLASSIFICATION.METHODS", "('lqn', 'zero')"]
    monkeypatch.setattr(classification, "classification_cost", partly)
    monkeypatch.setattr(classification, "peak_gmacs_per_ms", broken)
    report = classify(str(config), wanted, full=True)
    said = capsys.readouterr()
    assert "the cost of ZERO could not be counted: an operator has no rule" in said.err
    assert said.err.count("Traceback") == 1 and "speed could not be measured" in said.err
    results = json.loads((Path(report.cfg.OUTPUT_DIR) / "inference" / "results.json").read_text())
    costs = results["costs"]
    assert costs["zero"]["forward_gmacs"] is None and costs["zero"]["total_ms"] > 0
    assert costs["lqn"]["roofline"] is None and len(results["report_failures"]) == 2
    below = said.out[said.out.index("cost per image") :].splitlines()
    cells = [cell for line in below if line.startswith("ZERO ") for cell in line.split()[1:]]
    assert len(cells) == 8 and cells[4:] == ["-"] * 4
    monkeypatch.setattr(report_module, "resampled_totals", broken)
    classify(str(config), wanted, resume=True, full=True)
    said = capsys.readouterr()
    assert "top-1 accuracy\n" in said.out and "minus zero-shot" not in said.out
    assert "intervals could not be computed" in said.err


def test_a_few_images_are_no_evidence(config, monkeypatch):
    monkeypatch.setattr(classification, "classification_cost", _no_cost)
    result = run(config, "MODEL.LQN.EVAL.MAX_IMAGES", "9")
    printed = text(result)
    assert "9 images are too few for one (10 are needed)" in printed and "[" not in printed
    assert "is better than" not in printed and "told apart" not in printed
    assert "[" in text(run(config))


def test_several_data_sets_are_averaged(config):
    result = run(
        config, "DATASETS.TEST", "('objects', 'others')", "MODEL.LQN.EVAL.CORRUPTIONS", "()"
    )
    assert [one.folder.name for one in result] == ["objects", "others"]
    report = ClassificationReport(result)
    assert list(report.groups) == ["objects clean", "others clean", "mean of data sets"]
    single = [report.value(f"{name} clean", "zero", "acc1") for name in ("objects", "others")]
    assert report.value("mean of data sets", "zero", "acc1") == pytest.approx(np.mean(single))


def test_an_image_that_cannot_be_read_is_named_and_left_out(config, capsys):
    cfg = load_classification_cfg(str(config))
    (one,) = classifications(cfg).values()
    broken = Path(one.records[3]["file_name"])
    broken.write_bytes(broken.read_bytes()[:100])
    report = ClassificationReport(run(config))
    assert len(report.first.scored) == 15
    assert "16 images, of which 1 FAILED" in text(report.runs) and broken.name in text(report.runs)
    with pytest.raises(InputError, match=broken.name):
        classify(str(config), ["CLASSIFICATION.METHODS", "('zero',)"], strict=True)


def test_a_method_with_a_history_goes_on_from_nothing(config):
    with pytest.raises(InputError, match=r"tda learns .* without --resume"):
        classify(str(config), resume=True)
    without = ["CLASSIFICATION.METHODS", "('zero',)"]
    classify(str(config), without)
    with pytest.raises(InputError, match=r"another configuration.*differs in: methods\)"):
        classify(str(config), ["CLASSIFICATION.METHODS", "('mta',)"], resume=True)
    assert classify(str(config), without, resume=True) is not None


def test_a_resume_classifies_what_has_changed_since(config, monkeypatch, capsys):
    done: list[str] = []
    predict = Classification.predict

    def counting(self, condition, samples):
        done.extend(sample.record["image_id"] for sample in samples)
        return predict(self, condition, samples)

    monkeypatch.setattr(Classification, "predict", counting)

    def resumed() -> set[str]:
        done.clear()
        (one,) = classifications(load_classification_cfg(str(config), overrides), True).values()
        one.run(progress=False)
        return set(done)

    overrides = ["CLASSIFICATION.METHODS", "('zero',)", "CLASSIFICATION.HISTORY", "False"]
    (one,) = run(config, *overrides)
    assert resumed() == set()
    changed, moved = (Path(one.records[k]["file_name"]) for k in (3, 9))
    changed.write_bytes(changed.read_bytes() + b"\0")
    other = next(p for p in moved.parent.parent.iterdir() if p != moved.parent) / "moved.png"
    moved.rename(other)  # into another class: an image of its own, with another label
    capsys.readouterr()
    expected = {f"{path.parent.name}/{path.name}" for path in (changed, other)}
    assert resumed() == expected
    assert "evaluated again: 1 of 16 images" in capsys.readouterr().err
    assert resumed() == set()


def test_ctrl_c_promises_a_resume_only_where_there_is_one(config, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classification, "predict", interrupt)
    for selected, promised in (("('zero',)", True), ("('zero', 'tda')", False)):
        with pytest.raises(KeyboardInterrupt, match="0 of 32 images done") as stop:
            classify(str(config), ["CLASSIFICATION.METHODS", selected])
        assert ("--resume" in str(stop.value)) == promised


def testpublished_rows_stand_beside_the_teacher_they_belong_to(config):
    result = run(config, "MODEL.LQN.EVAL.CORRUPTIONS", "()")
    report = ClassificationReport(result)
    assert not report.published_rows()
    report.cfg.MODEL.LQN.TEACHER.CONFIG = "ViT-B-16-quickgelu"
    assert not report.published_rows()  # not on this data set
    published_on = dataclasses.replace(result[0].dataset.metadata, name="imagenet_r")
    result[0].dataset = dataclasses.replace(result[0].dataset, metadata=published_on)
    rows = {row[0]: row[1] for row in report.published_rows()}
    assert rows["ZERO, published"] == 77.22 and rows["DiffTPT, published"] == 75.0
    assert rows["LQN, published"] == 80.4 and "TPT, published" not in rows


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["CLASSIFICATION.METHODS", "('tda',)", "CLASSIFICATION.HISTORY", "False"], "HISTORY True"),
        (["CLASSIFICATION.METHODS", "('zeroo',)"], "did you mean 'zero'"),
        (["CLASSIFICATION.METHODS", "('zero:mean',)"], "zero has no recipe and no pooling"),
        (["CLASSIFICATION.METHODS", "('lqn@defualt',)"], "did you mean 'default'"),
        (["CLASSIFICATION.PROMPTS", "many"], "unknown CLASSIFICATION.PROMPTS 'many'"),
        (["CLASSIFICATION.STUDENT_VIEWS", "11"], r"STUDENT_VIEWS must be in 1\.\.10, not 11"),
        (["CLASSIFICATION.VIEWS", "0"], r"CLASSIFICATION\.VIEWS: expected `int` >= 1, not 0"),
        (["MODEL.LQN.EVAL.SEVERITY", "6"], r"EVAL\.SEVERITY: expected `int` <= 5, not 6"),
        (["CLASSIFICATION.VEIWS", "3"], "did you mean CLASSIFICATION.VIEWS"),
    ],
)
def test_wrong_values_are_named_before_anything_is_loaded(config, overrides, message):
    with pytest.raises(InputError, match=message):
        load_classification_cfg(str(config), overrides)


def test_wrong_data_and_teachers_are_named(config):
    def start(*overrides: str) -> None:
        classifications(load_classification_cfg(str(config), overrides))

    with pytest.raises(InputError, match=r"DATASETS\.TEST must name at least one"):
        start("DATASETS.TEST", "()")
    with pytest.raises(InputError, match="demo_panoptic_val has no image labels"):
        start("DATASETS.TEST", "('demo_panoptic_val',)")
    with pytest.raises(InputError, match=r"TEACHER\.NAME must be clip"):
        start("MODEL.LQN.TEACHER.NAME", "eomt")


def test_the_shipped_configurations_are_sound():
    folder = Path(__file__).parents[2] / "configs" / "classification"
    files = sorted(folder.glob("*.yaml"))
    assert len(files) >= 7
    for path in files:
        load_classification_cfg(str(path))


def test_two_processes_find_what_one_finds_and_resume_what_is_lost(config, tmp_path):
    options = [
        *("CLASSIFICATION.METHODS", "('lqn@distill:mean', 'zero')"),
        *("MODEL.LQN.BATCH", "3", "MODEL.LQN.EVAL.MAX_IMAGES", "8"),
        *("DATASETS.TEST", "('demo_objects_val',)"),
    ]
    classify(str(config), [*options, "OUTPUT_DIR", str(tmp_path / "one")])
    expected = result_in(tmp_path / "one")
    folder = tmp_path / "two" / "inference"
    # As a kill leaves it: of three chunks the first is there, and the second torn.
    shutil.copytree(tmp_path / "one" / "inference", folder)
    (folder / "results.json").unlink()
    (folder / "fog-3.0.jsonl").unlink()
    kept = folder / "clean.0.jsonl"
    first, second, _ = kept.read_text().splitlines(keepends=True)
    kept.write_text(first + second[:300])
    command = [
        *(sys.executable, "tools/classify.py", "--config", config, "--num-gpus", 2, "--resume"),
        *("--methods", "lqn@distill:mean,zero", *options[2:], "OUTPUT_DIR", tmp_path / "two"),
    ]
    two = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    assert "3 of 16 images done" in two.stdout and two.stdout.count("scores 0-100") == 1
    assert result_in(tmp_path / "two") == expected
    assert {path.name for path in folder.glob("clean.*")} == {"clean.0.jsonl", "clean.1.jsonl"}


def result_in(folder: Path) -> dict:
    """All scores of a run, without times."""
    results = json.loads((folder / "inference" / "results.json").read_text())
    return {
        (stream, method): scores["classification"]
        for stream, by_method in results["metrics"].items()
        for method, scores in by_method.items()
    }

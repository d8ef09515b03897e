"""A whole study on five small scenes: schema, hashes, paired differences, resume, sweeps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.evaluate import Evaluation
from lqn_seg.errors import InputError
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.evaluation.semantic import SemanticEvaluator
from lqn_seg.lab.cost.cost import UncountedOperatorError
from lqn_seg.lab.report.wording import WIDTH
from lqn_seg.lab.study import study as study_module
from lqn_seg.lab.study.study import constants_hash, plan, study_hashes
from lqn_seg.lab.study.study_file import load_study
from lqn_seg.lab.study.study_report import run_study
from lqn_seg.visualization import curves


@pytest.fixture
def content(small_config, teacher_folder, tmp_path) -> dict:
    return {
        "CONFIG": str(small_config),
        "DATASET": "demo_panoptic_val",
        "OUTPUT_DIR": str(tmp_path / "study"),
        "TEACHERS": {"tiny": {"WEIGHTS": str(teacher_folder)}},
        "METHODS": ["teacher", "lqn", "apm"],
        "CORRUPTIONS": ["contrast", "fog"],
        "OVERRIDES": ["MODEL.LQN.PRESET", "distill"],
        "BOOTSTRAP_SAMPLES": 20,
    }


@pytest.fixture
def write(content, tmp_path):
    """The study's file, with changes; None removes a key."""

    def written(**changes) -> str:
        result = {k: v for k, v in {**content, **changes}.items() if v is not None}
        path = tmp_path / "small_study.yaml"
        path.write_text(yaml.safe_dump(result))
        return str(path)

    return written


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"METODS": ["teacher"]}, r"'METODS': did you mean 'METHODS'"),
        ({"TEACHERS": {"a": {"WEIGHT": "x"}}}, r"TEACHERS\.a has no key .*did you mean 'WEIGHTS'"),
        ({"RUNS": [{"SEVERITY": [3]}]}, r"RUNS\[0\].*did you mean 'SEVERITIES'"),
        ({"SWEEP": {"KEYS": "x", "VALUES": [1]}}, r"SWEEP.*did you mean 'KEY'"),
        ({"FROZEN": {"teachers/tiny": "0"}}, r"FROZEN.*did you mean 'teacher/tiny'"),
        ({"CORRUPTIONS": ["fogg"]}, r"did you mean 'fog'"),
        ({"METRIC": "PG"}, r"METRIC.*did you mean 'PQ'"),
        ({"CONFIG": None}, r"CONFIG is missing"),
        ({"METHODS": None}, r"METHODS is missing"),
        ({"TEACHERS": {}}, r"TEACHERS names no teacher"),
        ({"TEACHERS": {"a/b": {"WEIGHTS": "x"}}}, r"cannot name a folder after 'a/b'"),
        ({"RUNS": []}, r"RUNS must be a list of runs"),
        ({"METRIC": "ECE of the pixels", "CLASSES": ["sky"]}, r"is of all classes together"),
        ({"SEVERITIES": [6]}, r"SEVERITIES must be a list of severities from 1 to 5"),
        ({"SEEDS": [0, 0]}, r"SEEDS must be a list .* none of them twice"),
        ({"BLOCK": 0}, r"BLOCK must be a whole number of at least 1, not 0"),
        ({"BOOTSTRAP_SAMPLES": True}, r"BOOTSTRAP_SAMPLES must be a whole number"),
        ({"OVERRIDES": ["SEED", 1]}, r"OVERRIDES must be a list KEY, VALUE"),
        ({"BASELINE": "restore"}, r"run 1 lacks the BASELINE restore"),
        ({"SWEEP": {"KEY": "x", "VALUES": [1], "PAPER": [[1, 70.0]]}}, r"needs a PAPER_LABEL"),
        (
            {"SWEEP": {"KEY": "x", "VALUES": ["a"], "PAPER": [["b", 1]], "PAPER_LABEL": "y"}},
            r"'b', which is not among VALUES",
        ),
    ],
)
def test_every_mistake_is_one_sentence(write, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load_study(write(**changes))
    assert "small_study.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_beyond_the_schema_are_found_before_anything_runs(write, executed):
    for changes, message in (
        ({"METHODS": ["teacher", "lqm"]}, r"did you mean 'lqn'"),
        ({"OVERRIDES": ["MODEL.LQN.FIT.STEP", 3]}, r"did you mean MODEL\.LQN\.FIT\.STEPS"),
        ({"BLOCK": 6}, r"BLOCK is 6, but a run has 5 images"),
        ({"DATASET": "demo_panoptic_vall"}, r"demo_panoptic_val"),
        ({"CLASSES": ["rings"]}, r"class in CLASSES"),
    ):
        with pytest.raises(InputError, match=message):
            run_study(write(**changes))
    assert not executed


def test_overrides_of_the_study_and_of_the_configuration(write):
    path = write(RUNS=[{"SEEDS": [7], "MAX_IMAGES": 4}, {"METHODS": ["teacher"]}])
    overrides = ["SEEDS", "[1, 2]", "MAX_IMAGES", "3", "MODEL.LQN.FIT.STEPS", "2"]
    study = load_study(path, [*overrides, "TEACHERS.tiny.WEIGHTS", "folder"])
    assert [run.seeds for run in study.runs] == [(1, 2), (1, 2)]
    assert study.teachers["tiny"].weights == "folder" and study.name == "small_study"
    jobs = plan(load_study(path, overrides), 5)
    assert {job.images for job in jobs} == {3}
    assert {job.cfg.MODEL.LQN.FIT.STEPS for job in jobs} == {2}
    assert {job.cfg.SEED for job in jobs} == {1, 2}
    with pytest.raises(InputError, match="override SEEDS"):
        load_study(path, ["SEED", "1"])


def test_hashes_see_files_and_refuse(write, scenes_root, executed):
    result = study_hashes(load_study(write()), get_dataset("demo_panoptic_val"))
    assert all(len(result[key]) == 64 for key in ("dataset", "corruptions", "teacher/tiny"))
    assert result["calibration/tiny"] == "none"
    for key in result:
        with pytest.raises(InputError, match=f"FROZEN says that {key} has SHA-256 0bad"):
            run_study(write(FROZEN={**result, key: "0bad"}))
    assert not executed
    image = next((scenes_root / "demo" / "val").glob("*.png"))
    original = image.read_bytes()
    try:
        image.write_bytes(original + b"\0")
        with pytest.raises(InputError, match="FROZEN says that dataset"):
            run_study(write(FROZEN=result))
    finally:
        image.write_bytes(original)
    report = run_study(write(FROZEN=result, MAX_IMAGES=1))
    assert f"dataset: `{result['dataset']}` (frozen)" in report.markdown()


@pytest.mark.parametrize("block", [1, 2])
def test_paired_differences_are_those_of_the_json_lines(write, tmp_path, block):
    """From the lines on disk alone: resample by hand, score with `summarize`, take quantiles."""
    run_study(write(BLOCK=block, SEEDS=[0, 7], METRIC="mIoU"))
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    table = results["tables"][0]
    evaluator = SemanticEvaluator(get_dataset("demo_panoptic_val").metadata)
    names = ["clean", "contrast-3", "fog-3"]

    def statistics(method: str, seed: int, name: str) -> list:
        folder = tmp_path / "study" / "tiny" / "run1" / f"seed{seed}" / "inference"
        text = (folder / f"{name}.0.jsonl").read_text()
        lines = [line for chunk in text.splitlines() for line in json.loads(chunk)["images"]]
        by_id = {line["image_id"]: line["methods"][method]["sem_seg"] for line in lines}
        return [by_id[k] for k in range(5)]

    def score(method: str, name: str, selected) -> float:
        result = [statistics(method, seed, name) for seed in (0, 7)]
        return np.mean([evaluator.summarize([s[i] for i in selected])["mIoU"] for s in result])

    def mean(method: str, selected) -> float:
        return np.mean([score(method, name, selected) for name in names[1:]])

    random, samples = np.random.default_rng(0), []
    for _ in range(20):
        starts = random.integers(0, 5 - block + 1, size=-(-5 // block))
        selected = (starts[:, None] + np.arange(block)).reshape(-1)[:5]
        samples.append(mean("lqn", selected) - mean("teacher", selected))
    result = table["methods"]["lqn"]["minus_baseline"]["mean of corruptions"]
    expected = mean("lqn", range(5)) - mean("teacher", range(5))
    assert expected != 0
    assert result["difference"] == pytest.approx(expected)
    assert [result["low"], result["high"]] == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    scores = table["methods"]["lqn"]
    assert scores["scores"]["clean"] == pytest.approx(score("lqn", "clean", range(5)))
    by_seed = [scores["scores_by_seed"][seed]["fog-3"] for seed in ("0", "7")]
    assert scores["deviation_over_seeds"]["fog-3"] == pytest.approx(np.std(by_seed, ddof=1))
    assert table["focus_minus"]["apm"]["clean"]["difference"] == pytest.approx(
        score("lqn", "clean", range(5)) - score("apm", "clean", range(5))
    )


def test_resume_computes_nothing_again(write, executed, tmp_path):
    run_study(write())
    assert len(executed) == 15
    lines = tmp_path / "study" / "tiny" / "run1" / "seed0" / "inference" / "fog-3.0.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:3]))
    first = json.loads((tmp_path / "study" / "results.json").read_text())["tables"][0]
    executed.clear()
    run_study(write(), resume=True)
    assert executed == [("fog-3", 3), ("fog-3", 4)]
    second = json.loads((tmp_path / "study" / "results.json").read_text())["tables"][0]
    for method in first["methods"]:
        assert first["methods"][method]["scores"] == second["methods"][method]["scores"]


def test_what_another_run_has_evaluated_is_taken_from_it(write, executed):
    """Milder and stronger on fewer images: clean comes from the run with more of both."""
    runs = [
        {"SEVERITIES": [1, 5], "METHODS": ["teacher", "lqn"], "MAX_IMAGES": 2},
        {"SEVERITIES": [3]},
        {"SEEDS": [0, 7], "METHODS": ["teacher", "lqn"], "MAX_IMAGES": 2},
        {"METHODS": ["teacher", "lqn"], "OVERRIDES": ["MODEL.LQN.FIT.STEPS", 2], "MAX_IMAGES": 1},
    ]
    report = run_study(write(RUNS=runs))
    # run 2: 3 conditions x 5; run 1: 4 x 2, without clean; run 3: seed 7 alone; run 4: other steps
    assert len(executed) == 15 + 8 + 6 + 3
    tables = report.results["tables"]
    assert [(t["run"], t["severity"], t["images"]) for t in tables] == [
        *((1, 1, 2), (1, 5, 2), (2, 3, 5), (3, 3, 2), (4, 3, 1))
    ]
    text = report.markdown()
    for words in ("ms teacher", "ms fit", "GMACs", "token_cos", "Without a calibration"):
        assert words in text
    teacher = tables[0]["methods"]["teacher"]["statistics"]
    assert teacher["fog-1"]["token_cos"] == pytest.approx(1)
    first, seeds = (tables[k]["methods"]["lqn"] for k in (0, 3))
    assert seeds["scores_by_seed"]["0"]["clean"] == first["scores"]["clean"]


def test_a_semantic_study_of_clean_images(write):
    path = write(METRIC="mIoU", CORRUPTIONS=[], METHODS=["teacher", "apm"])
    (table,) = run_study(path).results["tables"]
    assert table["severity"] is None
    (job,) = plan(load_study(path), 5)
    evaluation = Evaluation(job.cfg, get_dataset("demo_panoptic_val"), resume=True)
    assert list(evaluation.evaluators) == ["sem_seg", "trimap", "confidence"]
    mine = evaluation.metrics("clean", "apm")["sem_seg"]["mIoU"]
    assert table["methods"]["apm"]["scores"] == {"clean": pytest.approx(mine)}


@pytest.mark.parametrize(
    "metric, task, key", [("mIoU", "sem_seg", "IoU"), ("PQ", "panoptic_seg", "PQ")]
)
def test_a_study_of_some_classes(write, monkeypatch, metric, task, key):
    """Read from the same results: the mean of their IoUs, or of their PQs; of made-up counts, for
    this small teacher finds no segment."""

    def counts(self, statistics) -> np.ndarray:
        shape = len(statistics), len(self.classes), 3 if key == "IoU" else 4
        return np.sort(np.random.default_rng(0).uniform(1, 9, shape))

    for make in (SemanticEvaluator, PanopticEvaluator):
        monkeypatch.setattr(make, "stack", counts)
    path = write(METRIC=metric, CORRUPTIONS=[], METHODS=["teacher"], CLASSES=["ring", "sky"])
    report = run_study(path)
    (table,) = report.results["tables"]
    (job,) = plan(load_study(path), 5)
    evaluation = Evaluation(job.cfg, get_dataset("demo_panoptic_val"), resume=True)
    whole = evaluation.metrics("clean", "teacher")[task]
    wanted = (whole[f"{key}-ring"] + whole[f"{key}-sky"]) / 2
    assert table["methods"]["teacher"]["scores"] == {"clean": pytest.approx(wanted)}
    assert f"{metric} of ring, sky on demo_panoptic_val" in report.markdown()


def test_a_sweep_is_a_table_and_a_plot(write, tmp_path, capsys):
    sweep = {
        "KEY": "MODEL.LQN.FIT.STEPS",
        "VALUES": [1, 4],
        "LABEL": "Adam steps N",
        "PAPER": [[4, 70.2]],
        "PAPER_LABEL": "top-1 accuracy (%)",
    }
    path = write(SWEEP=sweep, METHODS=["teacher", "lqn"], METRIC="mIoU")
    report = run_study(path, full=True)
    printed = capsys.readouterr().out
    assert report.summary() in printed and "paper: top-1 accuracy (%)" in report.summary()
    lines = report.markdown().splitlines()
    rows = [line for line in lines if "| LQN " in line and " clean " in line][:2]
    assert [row.split("|")[3].strip() for row in rows] == ["1", "4"]
    assert "70.2" not in rows[0] and "70.2" in rows[1]
    one, four = (table["methods"] for table in report.results["tables"])
    assert one["lqn"]["scores"]["clean"] != four["lqn"]["scores"]["clean"]
    assert one["teacher"]["scores"] == four["teacher"]["scores"]
    for value in (1, 4):
        folder = tmp_path / "study" / "tiny" / "run1" / str(value) / "seed0" / "inference"
        assert f"steps={value}," in (folder / "run.json").read_text()
    assert (tmp_path / "study" / "plot.png").stat().st_size > 10_000
    assert (tmp_path / "study" / "table.md").read_text() in printed


def test_the_shipped_studies_are_well_formed():
    folder = Path(__file__).parents[2] / "configs" / "study"
    assert len(list(folder.glob("*.yaml"))) >= 13
    for path in sorted(folder.glob("*.yaml")):
        study = load_study(str(path))
        assert study.output_dir == f"output/study/{path.stem}"
        assert plan(study, 1200)
        frozen = study.frozen.get("corruptions")
        assert frozen in (None, constants_hash(study))


def test_a_part_that_fails_takes_nothing_with_it(write, tmp_path, monkeypatch, capsys):
    count = study_module.count_gmacs

    def uncounted(segmenter, method, stats):
        if method == "lqn":
            raise UncountedOperatorError("an operator has no rule")
        return count(segmenter, method, stats)

    def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(study_module, "count_gmacs", uncounted)
    monkeypatch.setattr(curves, "draw_study", broken)
    report = run_study(write(SEEDS=[0, 7], MAX_IMAGES=2), full=True)
    said = capsys.readouterr()
    assert said.err.count("teacher tiny: the cost of LQN could not be counted") == 1
    assert said.err.count("Traceback") == 1 and "the plot could not be drawn" in said.err
    below = said.out[said.out.index("Cost per image") :].splitlines()
    rows = [line.split("|") for line in below if line.startswith("|")]
    costs, further = [row for row in rows if row[1].strip() == "LQN"][:2]
    assert [costs[7].strip(), further[2].strip()] == ["-", "-"] and float(costs[2]) > 0
    # Two images have no intervals.
    assert "2 images are too few for one (10 are needed)" in " ".join(said.out.split())
    assert all(len(line) <= WIDTH for line in report.summary().splitlines())
    assert all(len(line) <= WIDTH for line in report.markdown().splitlines())
    assert "[" not in said.out
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert results["tables"][0]["methods"]["lqn"]["gmacs"] == {}
    assert not results["tables"][0]["has_intervals"]
    assert (tmp_path / "study" / "table.md").read_text() in said.out

    report.results["tables"][0]["images"] = 10  # as many as are enough
    assert "with its 95% interval" in report.markdown() and "[" in report.markdown()


def test_two_values_of_a_sweep_never_share_a_folder(write):
    sweep = {
        "KEY": "MODEL.LQN.TEACHER.CONFIG",
        "VALUES": ["lqn", "LQN", "a b", "a_b", "../x", "a/b"],
    }
    study = load_study(write(SWEEP=sweep))
    folders = {job.cfg.OUTPUT_DIR.casefold() for job in plan(study, 5)}
    assert len(folders) == 6
    assert all(os.path.normpath(f).startswith(study.output_dir.casefold()) for f in folders)

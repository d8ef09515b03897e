"""Tables of made-up evaluations: tuned settings, p, ranks, classes; exports and the leaderboard."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from lqn_seg import cli
from lqn_seg.engine.evaluate import Condition
from lqn_seg.errors import InputError
from lqn_seg.evaluation.bootstrap import _resamples
from lqn_seg.evaluation.comparisons import holm
from lqn_seg.evaluation.semantic import SemanticEvaluator, TrimapEvaluator
from lqn_seg.lab.report.provenance import json_numbers
from lqn_seg.lab.report.wording import WIDTH
from lqn_seg.lab.study.export import COLUMNS, csv_text, latex_escaped, latex_text
from lqn_seg.lab.study.leaderboard import SOURCES, leaderboard
from lqn_seg.lab.study.schema import check_results, described, read_results
from lqn_seg.lab.study.study import Finished, Job
from lqn_seg.lab.study.study_file import Study, load_study
from lqn_seg.lab.study.study_report import StudyReport
from lqn_seg.lab.study.study_tables import section

ROOT = Path(__file__).parents[2]
TRIMAP = "mIoU within 3 px of boundaries"
METHODS = (
    "teacher",
    "tent",
    "lqn",
    "tent(steps=3)",
    "tent(steps=9,learning_rate=1e-3)",
    "sar(steps=2)",
)
CORRUPTIONS = ("contrast", "fog", "snow")
IMAGES, SAMPLES, CLASSES = 12, 60, ("road", "sky_2", "cat & dog")
BEST = {"tent": "contrast-3", "tent(steps=3)": "fog-3", METHODS[4]: "snow-3"}


@pytest.fixture
def study(tmp_path) -> Study:
    content = {
        **{"CONFIG": "c.yaml", "DATASET": "made_up", "OUTPUT_DIR": str(tmp_path / "out")},
        **{"TEACHERS": {"a_b": {"WEIGHTS": "x"}}, "METHODS": METHODS, "SEEDS": [0, 7]},
        **{"CORRUPTIONS": CORRUPTIONS, "METRIC": "mIoU", "ALSO": [TRIMAP], "TUNED": ["tent"]},
        "BOOTSTRAP_SAMPLES": SAMPLES,
    }
    path = tmp_path / "made.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(content))))
    return load_study(str(path))


@pytest.fixture
def finished() -> list[Finished]:
    """Two seeds; each setting of tent is the best on another corruption."""
    conditions = (Condition(), *(Condition(c, 3) for c in CORRUPTIONS))
    evaluators = {
        "mIoU": SemanticEvaluator(SimpleNamespace(class_names=CLASSES)),
        TRIMAP: TrimapEvaluator(SimpleNamespace(class_names=CLASSES)),
    }
    threads = SimpleNamespace(THREADS=1)
    cfg = SimpleNamespace(MODEL=SimpleNamespace(LQN=SimpleNamespace(EVAL=threads)))
    jobs = []
    for seed in (0, 7):
        random = np.random.default_rng(seed)
        lines: dict = {}
        for condition in map(str, conditions):
            lines[condition] = {}
            for k, method in enumerate(METHODS):
                stacks = {}
                for metric in evaluators:
                    right = random.uniform(1, 3, (IMAGES, 3)) + 2 * (BEST.get(method) == condition)
                    right += k * 0.1 * (method not in BEST and method != "lqn")
                    stacks[metric] = np.stack([right, right + 3, right + 4], -1)
                stats = [{"teacher_ms": 1.0 + k, "fit_ms": k, "query_ms": 0.0, "head_ms": 1.0}]
                lines[condition][method] = SimpleNamespace(stacks=stacks, stats=stats * IMAGES)
        gmacs = {m: {"gmacs_total": 2.0 * (k + 1)} for k, m in enumerate(METHODS)}
        job = Job("a_b", 0, seed, None, cfg, METHODS, conditions, IMAGES, "")
        jobs.append(Finished(job, lines, gmacs, evaluators))
    return jobs


@pytest.fixture
def report(study, finished) -> StudyReport:
    return StudyReport(study, finished, {"calibration/a_b": "0"}, 500, [])


@pytest.fixture
def results(report) -> dict:
    return json.loads(json.dumps(json_numbers(report.results)))


def test_a_tuned_row_is_that_of_a_slow_loop(report, finished):
    """The choice in every resample, for every condition, from sums by hand."""
    names, settings = ["clean", *(f"{c}-3" for c in CORRUPTIONS)], [*BEST]

    def score(method: str, name: str, images) -> float:
        by_seed = []
        for job in finished:
            totals = job.lines[name][method].stacks["mIoU"][images].sum(0)
            right, truth, predicted = totals.T
            by_seed.append(100 * np.mean(right / (truth + predicted - right)))
        return float(np.mean(by_seed))

    def choice(name: str, images) -> str:
        others = [n for n in names[1:] if n != name]
        means = [np.mean([score(m, n, images) for n in others]) for m in settings]
        return settings[int(np.argmax(means))]

    def mean(images, method: str = "") -> float:
        return float(np.mean([score(method or choice(n, images), n, images) for n in names[1:]]))

    (table,) = report.results["tables"]
    assert list(table["methods"]) == ["teacher", "tent, tuned", "lqn", "sar(steps=2)"]
    tuned = table["methods"]["tent, tuned"]
    every = np.arange(IMAGES)
    assert tuned["title"] == "TENT, tuned" and tuned["tuned"]["variants"] == settings
    assert tuned["tuned"]["chosen"] == {name: choice(name, every) for name in names}
    assert len(set(tuned["tuned"]["chosen"].values())) > 1
    assert all(tuned["tuned"]["chosen"][BEST[m]] != m for m in settings)
    assert tuned["scores"]["mean of corruptions"] == pytest.approx(mean(every))
    sets = list(_resamples(IMAGES, SAMPLES, 0, 1))
    values = [mean(images) - mean(images, "teacher") for images in sets]
    found = tuned["minus_baseline"]["mean of corruptions"]
    assert len({choice("clean", images) for images in sets}) > 1
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(values, [0.025, 0.975]))
    # What it costs is the mean over the conditions of what was chosen there.
    places = [METHODS.index(m) for m in tuned["tuned"]["chosen"].values()]
    assert tuned["budget"]["passes"] == pytest.approx(np.mean([k + 1 for k in places]))
    assert tuned["milliseconds"]["total"] == pytest.approx(np.mean([2 + 2 * k for k in places]))


def test_p_is_corrected_over_the_rows_of_the_table(report):
    (table,) = report.results["tables"]
    compared = [x for x in table["methods"].values() if "p" in x]
    assert len(compared) == 3  # of six methods three are one, and one is the baseline
    assert [x["p_holm"] for x in compared] == holm([x["p"] for x in compared])
    assert {x["rank"]["rank"] for x in table["methods"].values()} == {1, 2, 3, 4}
    assert min(x["p"] for x in compared) >= table["smallest_p"] == 2 / (SAMPLES + 1)


def test_classes_and_another_metric_are_differences_too(report, finished):
    (table,) = report.results["tables"]
    assert list(table["classes"]["scores"]["lqn"]) == list(CLASSES)
    # With every class in the truth mIoU is the mean of the classes' IoU.
    for method, by_class in table["classes"]["scores"].items():
        expected = table["methods"][method]["scores"]["mean of corruptions"]
        assert np.mean(list(by_class.values())) == pytest.approx(expected)
    evaluator = finished[0].evaluators[TRIMAP]
    totals = [f.lines["fog-3"]["lqn"].stacks[TRIMAP].sum(0) for f in finished]
    expected = np.mean([evaluator.metric(x) for x in totals])
    assert table["also"][TRIMAP]["scores"]["lqn"]["fog-3"] == pytest.approx(expected)


def test_tables_fit_and_say_what_they_are(report):
    text, summary = report.markdown(), report.summary()
    assert max(map(len, [*text.splitlines(), *summary.splitlines()])) <= WIDTH
    for words in ("p (Holm)", "rank", "passes", "TENT, tuned", TRIMAP, "mIoU of each class"):
        assert words in text
    assert re.search(r"TENT, tuned .*\[.*\] .*(< 0\.\d+|0\.\d{3}) +[\d.]+ \[", summary)
    used = " ".join(text.split())
    assert "TENT, tuned: settings that are best on the other corruptions: " in used
    assert "SAR (" not in summary.split("Settings: ")[0] and "Settings: SAR (steps=2)." in summary
    few = {**report.results["tables"][0], "images": 5, "has_intervals": False}
    assert "[" not in section(report.results, few).split("mIoU (0-100")[0]


def test_mistakes_of_also_and_tuned_are_one_sentence(study, tmp_path):
    content = yaml.safe_load((tmp_path / "made.yaml").read_text())
    for changes, message in (
        ({"ALSO": ["mIoU within"]}, "ALSO has no name .*did you mean 'mIoU within 3 px"),
        ({"ALSO": ["mIoU"]}, "which is the METRIC"),
        ({"ALSO": ["ECE of the pixels"], "CLASSES": ["road"]}, "leave CLASSES out"),
        ({"TUNED": ["tant"]}, "TUNED has no method 'tant': did you mean 'tent'"),
        ({"TUNED": ["lqn"]}, "no run has two settings"),
        ({"TUNED": ["teacher"]}, "which is the BASELINE"),
        ({"CORRUPTIONS": ["fog"]}, "run 1 has 1: at least 2"),
    ):
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        with pytest.raises(InputError, match=message):
            load_study(str(path))


# ---- export --------------------------------------------------------------------------------------


def test_csv_is_read_back(report, results):
    rows = list(csv.DictReader(io.StringIO(csv_text(results))))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 4 * 5
    (table,) = results["tables"]
    for row in rows:
        x = table["methods"][row["method"]]
        assert float(row["score"]) == x["scores"][row["condition"]]
        is_compared = row["condition"] == "mean of corruptions"
        assert bool(row["rank"]) == is_compared
        assert bool(row["p_holm"]) == (is_compared and row["method"] != "teacher")
        if row["method"] != "teacher":
            difference = x["minus_baseline"][row["condition"]]
            assert [float(row[k]) for k in difference] == list(difference.values())
        assert float(row["passes"]) == x["budget"]["passes"]
    assert csv_text(report.results) == csv_text(results)  # NaN and null are both empty


def test_latex_is_escaped_and_balanced(results):
    assert latex_escaped("50% of_a & b{~^}\\<") == (
        r"50\% of\_a \& b\{\textasciitilde{}\textasciicircum{}\}\textbackslash{}$<$"
    )
    text = latex_text(results)
    assert r"\caption{mIoU on made\_up: teacher a\_b, run 1" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    assert len(rows) == 5 and {row.count(" & ") for row in rows} == {len(columns) - 1}
    assert text.count(r"\textbf{") >= 2 and text.count("\\begin{") == text.count("\\end{")
    plain = re.sub(r"\\[%&#_{}$]", "", text)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert "_" not in plain.replace("% needs \\usepackage", "") and "<" not in plain.replace(
        "$<$", ""
    )


def test_results_follow_their_schema_and_no_other(results, tmp_path):
    assert check_results(results, "it") is results
    path = tmp_path / "results.json"
    for change, message in (
        (
            {"schema": "lqn-seg-study/0"},
            r"has the schema 'lqn-seg-study/0'.*reads 'lqn-seg-study/1'",
        ),
        ({"images_in_dataset": "many"}, r"not of the schema .*images_in_dataset"),
        ({"more": 1}, r"not of the schema .*more"),
    ):
        path.write_text(json.dumps({**results, **change}))
        with pytest.raises(InputError, match=message) as caught:
            read_results(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        read_results(path)
    page = (ROOT / "docs" / "results_file.md").read_text()
    assert described() in page, "make docs/results_file.md again of `schema.described`"


def test_a_continual_method_is_marked(study, finished):
    jobs = [replace(job, continual=frozenset({METHODS[-1]})) for job in finished]
    report = StudyReport(study, jobs, {"calibration/a_b": "0"}, 500, [])
    (table,) = report.results["tables"]
    assert table["continual"] == [METHODS[-1]]
    assert "continual, from image to image" in report.summary()
    assert (
        "continual" not in StudyReport(study, finished, {"calibration/a_b": "0"}, 500, []).summary()
    )


def test_everything_is_written_and_each_may_fail_alone(report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lqn_seg.lab.study.study_report.latex_text", lambda results: 1 / 0)
    (tmp_path / "out").mkdir()
    written = {path.name for path in report.conclude(full=False)}
    assert written == {
        *("results.json", "table.md", "table.csv"),
        *("plot.png", "plot.svg", "pareto.png", "pareto.svg"),
    }
    assert report.failed == ["table.tex could not be written: ZeroDivisionError: division by zero"]
    assert read_results(tmp_path / "out" / "results.json")["tables"][0]["front"]["passes"]


# ---- leaderboard ---------------------------------------------------------------------------------


def test_the_leaderboard_ranks_and_marks(results, tmp_path, capsys):
    path, page = tmp_path / "results.json", tmp_path / "board.md"
    path.write_text(json.dumps(results))
    assert cli.main(["leaderboard", str(page), str(path)]) == 0
    lines = page.read_text().splitlines()
    assert "## a_b on made_up, severity 3" in lines
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert rows[0][:4] == ["method", "source", "needs", "passes"] and len(rows) == 6
    ranks = [float(row[-1].split(" [")[0]) for row in rows[2:]]
    assert ranks == sorted(ranks)
    assert rows[2][5].startswith("**") and not rows[3][5].startswith("**")
    tuned = next(row for row in rows if row[0] == "TENT, tuned")
    assert tuned[1:3] == ["Wang et al., ICLR 2021", "gradients, other corruptions"]
    assert cli.main(["leaderboard", str(page), str(tmp_path / "none.json")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_the_committed_leaderboard_is_that_of_the_stored_results():
    folder = ROOT / "docs" / "results"
    made = leaderboard((folder / "roof").glob("*.json"))
    assert (folder / "leaderboard.md").read_text() == made


def test_every_method_of_the_project_has_a_source():
    from lqn_seg.adapt.dense.settings import DENSE
    from lqn_seg.adapt.methods import PIXEL_CONTROLS
    from lqn_seg.config.methods import method_config
    from lqn_seg.config.nodes import load_cfg

    assert {*DENSE, *PIXEL_CONTROLS} <= set(SOURCES)
    cfg = load_cfg("demo", device="cpu")
    for name in SOURCES:
        method_config(cfg, name)  # raises where there is no such method

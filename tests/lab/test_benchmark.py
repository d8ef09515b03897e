"""A benchmark of a tiny teacher and student: what it runs, prints and writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lqn_seg.core.config import PRESETS, FitConfig, LQNConfig, StudentConfig, with_variant
from lqn_seg.errors import InputError
from lqn_seg.lab.benchmark.benchmark import Benchmark, BenchmarkConfig, write_numbers
from lqn_seg.lab.benchmark.references import ApmReference, Run, drifts, with_fit
from lqn_seg.lab.benchmark.report import report_text
from lqn_seg.lab.benchmark.teachers import CLIPS, build_scene
from lqn_seg.lab.cost import speed
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.cost.flops import fit_bytes
from lqn_seg.lab.report.wording import WIDTH
from tests.core import plain_port

SMALL = LQNConfig(
    StudentConfig(input_size=28, stride=14, widths=(16, 8), position_dim=16),
    FitConfig(steps=4, positions_per_step=6),
)


def make_small(monkeypatch):
    monkeypatch.setitem(PRESETS, "paper", SMALL)
    default = replace(SMALL, student=replace(SMALL.student, guide=0.5, init="he"))
    default = replace(default, fit=replace(default.fit, target_norm="layer", alpha=0.0))
    default = replace(default, adapt=PRESETS["default"].adapt)
    monkeypatch.setitem(PRESETS, "default", default)
    monkeypatch.setattr(speed, "COPIED_FLOATS", 1 << 16)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool, **changes):
    config = BenchmarkConfig(teacher="eomt-tiny", repeats=2, **changes)
    said = []
    return Benchmark(config, said.append).run(), said


@pytest.fixture(scope="module")
def everything(tool):
    """Results of all there is, in both precisions, and what was said."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        return run(tool, precisions=("bfloat16", "float32"))


def test_students_are_timed_and_held_against_the_roofline(everything):
    results, said = everything
    assert len(said) == 8 + 1  # four variants in two precisions; APM's release
    variants = ("lqn", "lqn-src", "apm", "default")
    rows = {(row["method"], row["precision"]): row for row in results["methods"]}
    assert list(rows) == [(v, p) for v in variants for p in ("bfloat16", "float32")]
    for (_, precision), row in rows.items():
        assert row["steps"] == 4 and row["positions"] == 6 and row["peak_mib"] > 0
        for timing in row["times"].values():
            assert 0 < timing["median_ms"] <= timing["p95_ms"] and timing["runs"] == 2
        least = row["least_ms"]
        busy_ms = row["times"]["fit"]["busy_ms"]
        assert row["fraction_busy"] == pytest.approx(sum(least.values()) / busy_ms)
        rate = results["roofline"]["gmacs_per_ms"][precision]
        assert least["arithmetic"] == pytest.approx(row["gmacs"]["fit"] / rate)
        assert least["memory"] > 0
    assert rows["lqn", "float32"]["drift"] == 0 < rows["lqn", "bfloat16"]["drift"] < 1e-2


def test_apms_release_is_timed_beside_it(everything):
    results, _ = everything
    (row,) = results["references"]
    assert (row["method"], row["reference"]) == ("apm", "APM's release")
    fits = [x["times"]["fit"]["median_ms"] for x in results["methods"] if x["method"] == "apm"]
    ratios = [row["times"]["fit"]["median_ms"] / ms for ms in fits]
    assert list(row["ratio"].values()) == pytest.approx(ratios)


def test_apms_release_is_its_loop_on_the_plain_port():
    scene, config = build_scene("eomt-tiny"), with_variant(SMALL, "apm")
    run = Run(scene, with_fit(config, precision="float32", steps=0))
    student = plain_port.Student(config.student, run.width, torch.float32)
    student.load({name: w.detach().clone() for name, w in run.fit().students.weights.items()})
    whole = Run(scene, with_fit(config, precision="float32"))
    visited = whole.fitter.uniform(0, whole.keys[0])[0]
    destinations = [run.fitted.view.addresses[indices].long() for indices in visited]
    adam = torch.optim.Adam(student.parameters(), config.fit.learning_rate)
    last_layer = lambda: scene.encode()[0][0, -1].float()  # noqa: E731
    plain_port.fit_as_apm(student, adam, run.images[0], last_layer, destinations)
    ours = ApmReference(scene, config).run().students.weights
    for name, weight in student.tensors().items():
        assert torch.allclose(ours[name][0], weight, atol=1e-5), name


def test_results_are_written_as_numbers_and_tables(tool, everything, tmp_path, capsys):
    results, _ = everything
    text = report_text(results)
    for part in ("default", "Roofline", "APM's release"):
        assert part in text
    numbers, tables = write_numbers(results, tmp_path), tmp_path / "benchmark.txt"
    assert json.loads(numbers.read_text())["settings"]["teacher"] == "eomt-tiny"
    assert tool.main(["--read", str(numbers)]) == 0
    summary = capsys.readouterr().out
    assert tables.read_text() == f"{text}\n" and text not in summary
    assert "fit and query of lqn in bfloat16 take" in " ".join(summary.split())
    assert tool.main(["--read", str(numbers), "--full"]) == 0
    assert text in (out := capsys.readouterr().out) and summary.splitlines()[1] in out
    assert max(map(len, text.splitlines())) <= WIDTH


def fail_at_lqn(monkeypatch, error: BaseException) -> None:
    measure = Benchmark._variant

    def variant(self, name: str) -> None:
        if name == "lqn":
            raise error
        measure(self, name)

    monkeypatch.setattr(Benchmark, "_variant", variant)


QUICK = ["--teacher", "eomt-tiny", "--repeats", "1", "--variants", "apm,lqn", "--no-references"]
QUICK += ["--precisions", "float32", "--output"]


def test_ctrl_c_leaves_what_was_measured(tool, tmp_path, monkeypatch, capsys):
    fail_at_lqn(monkeypatch, KeyboardInterrupt())
    assert tool.main([*QUICK, str(tmp_path)]) == 130
    kept = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["method"] for row in kept["methods"]] == ["apm"]
    said = f"interrupted: measurements up to here are in {tmp_path}\n"
    assert capsys.readouterr().err == said


def test_what_fails_loses_nothing_that_was_measured(tool, tmp_path, monkeypatch, capsys):
    def broken(self) -> None:
        raise RuntimeError("broken")

    fail_at_lqn(monkeypatch, RuntimeError("broken"))
    monkeypatch.setattr(Run, "peak_bytes", broken)
    with pytest.raises(RuntimeError, match="broken"):
        tool.main([*QUICK, str(tmp_path)])
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["methods"]
    assert row["peak_mib"] is None and row["times"]["fit"]["median_ms"] > 0
    assert "the memory of apm float32 could not be counted" in capsys.readouterr().err
    assert tool.main(["--read", str(tmp_path / "benchmark.json")]) == 0

    def never(*_: object) -> None:
        raise AssertionError("nothing is measured before it is known where to")

    monkeypatch.setattr(Benchmark, "__init__", never)
    (tmp_path / "file").write_text("[]")
    assert tool.main([*QUICK, str(tmp_path / "file" / "below")]) == 2
    assert tool.main(["--read", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert (
        "cannot write to" in said
        and "is not a complete benchmark.json" in said
        and said.count("\n") == 2
    )


def test_the_methods_of_classification_on_one_clip(tool, monkeypatch):
    import open_clip

    name = "tiny-for-the-benchmark"
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8,
                       "head_width": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2,
                     "layers": 1},
    }  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    monkeypatch.setitem(CLIPS, "clip-tiny", name)
    settings = BenchmarkConfig(
        teacher="clip-tiny",
        classes=6,
        variants=("default",),
        precisions=("float32",),
        baselines=("zero", "mta", "tps", "tpt"),
        views=4,
        repeats=1,
    )
    results = Benchmark(settings, lambda _: None).run()
    rows = {row["method"]: row for row in results["baselines"]}
    parts = ["default", "default, one view", "default, no student"]
    assert list(rows) == ["zero", "mta", "tps", "tpt", *parts]
    assert rows["default"]["adapted"] == pytest.approx(1)  # nothing was skipped
    assert 0 < rows["default"]["views_ms"] < rows["tps"]["views_ms"]
    assert all(row["teacher_ms"] > 0 and row["method_ms"] > 0 for row in rows.values())
    text = report_text(results)
    assert "over default" in text and "4 views, 6 classes" in text
    # the closed form of the whole, against the counter
    scene = build_scene("clip-tiny", classes=6)
    counted = {"teacher": measure(scene.encode).gmacs, "head": measure(scene.answer).gmacs}
    assert counted == pytest.approx(scene.gmacs, rel=0.01)


def test_teachers_are_the_same_at_every_call_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (build_scene("eomt-tiny").teacher.model.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert build_scene("eomt-tiny", image_size=64).grid == (4, 8, 8)


def test_memory_traffic_of_a_fit():
    # Table 4's student in float32: parameters and gradients, and Adam's two moments
    paper = with_variant(LQNConfig(), "lqn-src")
    assert fit_bytes(paper, 768) == pytest.approx(15 * 2.1e9, rel=0.05)
    small = StudentConfig(input_size=14, stride=14, widths=(1,), position_dim=8)
    parameters = 3 * 14 * 14 + 1 + (1 + 8 + 8) * 1 + 1 + 1 * 2 + 2
    config = LQNConfig(small, FitConfig(steps=3))
    assert fit_bytes(config, 2) == (3 * 40 + 12) * parameters
    assert fit_bytes(config, 2, lowered=True) == (3 * 46 + 12) * parameters


def test_bad_requests_take_one_sentence(tool, capsys):
    for arguments, word in [
        (["--teacher", "eomt-tinny"], "did you mean 'eomt-tiny'"),
        (["--teacher", "eomt-tiny", "--variants", "lqm"], "unknown variant 'lqm'"),
        (["--teacher", "eomt-tiny", "--baselines", "tpt"], "clip teacher"),
        (["--teacher", "eomt-tiny", "--repeats", "0"], "repeats"),
        (["--baselines", "tpx"], "unknown baseline"),
    ]:
        assert tool.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and word in error
    with pytest.raises(InputError, match="multiples"):
        build_scene("eomt-tiny", image_size=50)


def test_drift_is_measured_in_the_teachers_variance():
    """A constant offset counts, and what all positions have in common is no variance."""
    tokens = 7 + torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    answer = torch.randn(1, 3, 4, 5)
    lowered, exact = (
        SimpleNamespace(query=lambda offset=offset: answer + offset) for offset in (0.5, 0.0)
    )
    variance = tokens.flatten(1, 2).var(1, correction=0).mean().item()
    both = drifts({"bfloat16": lowered, "float32": exact}, tokens)
    assert both == {"bfloat16": pytest.approx(0.25 / variance), "float32": 0.0}
    assert drifts({"bfloat16": lowered}, tokens) == {}


def test_a_gpu_machine_needs_little_beside_torch(tmp_path):
    """What the benchmark of a CLIP imports, where only its own libraries are installed."""
    others = ["fvcore", "yacs", "iopath", "matplotlib", "tabulate", "cv2", "pycocotools", "scipy"]
    others += ["cityscapesscripts", "termcolor"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others}))\n"
        "from lqn_seg.lab.benchmark.benchmark import Benchmark, BenchmarkConfig, write_numbers\n"
        "config = BenchmarkConfig('eomt-tiny', variants=())\n"
        "try:\n    Benchmark(config)\n"
        "except ImportError as error:\n    assert 'scipy' in str(error), error\n"  # transformers'
        f"write_numbers({{}}, __import__('pathlib').Path({str(tmp_path)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "benchmark.json").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "--growth"], "one at a time"),
        (["--growth", "--end-to-end", "demo"], "one at a time"),
        (["--growth", "--repeats", "0"], "repeats of at least 1"),
        (["--memory", "--precisions", ""], "needs a precision"),
        (["--precisions", "int8"], "precision"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(tool, tmp_path, capsys, words, said):
    assert tool.main([*words, "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()

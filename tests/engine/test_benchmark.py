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

from lqn_seg.core.config import PRESETS, FitConfig, LQNConfig, StudentConfig
from lqn_seg.errors import InputError
from lqn_seg.lab.benchmark import teachers as benchmark_teachers
from lqn_seg.lab.benchmark import ways as benchmark_ways
from lqn_seg.lab.benchmark.benchmark import Benchmark, BenchmarkConfig, _drifts, write_numbers
from lqn_seg.lab.benchmark.report import report_text, write_report
from lqn_seg.lab.benchmark.teachers import TEACHERS, _Clip, build_subject
from lqn_seg.lab.cost import speed
from lqn_seg.lab.cost.flops import (
    count_torch,
    fit_bytes,
    fit_gmacs,
    plain_attention,
    step_bytes,
)

SMALL = LQNConfig(
    StudentConfig(input_size=28, stride=14, widths=(16, 8), position_dim=16),
    FitConfig(steps=4, positions_per_step=6),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(PRESETS, "paper", SMALL)
    default = replace(SMALL, student=replace(SMALL.student, guide=0.5, init="he"))
    default = replace(default, fit=replace(default.fit, target_norm="layer", alpha=0.0))
    default = replace(default, adapt=PRESETS["default"].adapt)
    monkeypatch.setitem(PRESETS, "default", default)
    monkeypatch.setattr(speed, "_COPIED_FLOATS", 1 << 16)


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
    return Benchmark(config, tool.load_reference(), said.append).run(), said


def test_everything_is_measured_and_written(tool, tmp_path):
    results, said = run(tool, precisions=("bfloat16", "float32"))
    assert len(said) == 8 + 4  # four variants in two precisions; the plain ways
    found = [(row["method"], row["precision"]) for row in results["methods"]]
    variants = ("lqn", "lqn-src", "apm", "default")
    assert found == [(v, p) for v in variants for p in ("bfloat16", "float32")]
    for row in results["methods"]:
        assert row["steps"] == 4 and row["positions"] == 6
        for timing in row["times"].values():
            assert 0 < timing["median_ms"] <= timing["p95_ms"] and timing["runs"] == 2
        assert row["peak_mib"] > 0 and row["fraction"] > 0 and row["least_ms"]["memory"] > 0
    ways = [(row["method"], row["reference"]) for row in results["references"]]
    assert ways == [
        ("lqn", "plain port"),
        ("lqn-src", "plain port"),
        ("apm", "plain port"),
        ("apm", "APM's release"),
    ]
    for row in results["references"]:
        assert row["ratio"].keys() == {"bfloat16", "float32"}
        fit = next(m for m in results["methods"] if m["method"] == row["method"])["times"]["fit"]
        expected = row["times"]["fit"]["median_ms"] / fit["median_ms"]
        assert row["ratio"]["bfloat16"] == pytest.approx(expected)
        if row["reference"] == "plain port":
            assert row["loss_difference"] < 1e-4
        else:  # it sees nothing but the last layer, and gradients pile up: another curve altogether
            assert row["loss_difference"] is None
    drifts = {row["precision"]: row["drift"] for row in results["methods"]}
    assert drifts["float32"] == 0 < drifts["bfloat16"] < 1e-2
    for row in results["methods"]:
        least = sum(row["least_ms"].values())
        assert row["fraction"] == pytest.approx(least / row["times"]["fit"]["median_ms"])
        rate = results["roofline"]["gmacs_per_ms"][row["precision"]]
        assert row["least_ms"]["arithmetic"] == pytest.approx(row["gmacs"]["fit"] / rate)
    assert results["depth"]["layers"] == [1, 2, 3, 4]
    assert len(results["depth"]["teacher_ms"]) == len(results["depth"]["student_ms"]) == 4
    teacher_ms = results["depth"]["teacher_ms"]
    assert teacher_ms == sorted(teacher_ms)
    # GMACs of a student are close to linear in all three, teacher and read-out in the pixels
    for name, low, high in [
        ("steps", 0.99, 1.01),
        ("batch", 0.99, 1.01),
        ("positions", 0.3, 1.0),
        ("image_side_teacher", 1.5, 2.5),
    ]:
        assert low < results["sweeps"][name]["exponent_gmacs"] < high, name
    text = report_text(results)
    for part in (*variants, "Roofline", "plain port", "APM's release", "image side", "busy"):
        assert part in text
    written = [write_numbers(results, tmp_path), *write_report(results, tmp_path)]
    assert [path.name for path in written] == [
        f"benchmark.{kind}" for kind in ("json", "txt", "png", "svg")
    ]
    assert json.loads(written[0].read_text())["settings"]["teacher"] == "eomt-tiny"
    assert written[2].read_bytes()[:4] == b"\x89PNG"


def test_ctrl_c_leaves_what_was_measured(tool, tmp_path, monkeypatch, capsys):
    def interrupt(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Benchmark, "_sweeps", interrupt)
    quick = ["--teacher", "eomt-tiny", "--repeats", "1", "--variants", "apm", "--no-references"]
    assert tool.main([*quick, "--precisions", "float32", "--output", str(tmp_path)]) == 130
    kept = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["method"] for row in kept["methods"]] == ["apm"] and kept["sweeps"] == {}
    said = f"interrupted: what was measured until then is in {tmp_path}\n"
    assert capsys.readouterr().err == said


def test_what_fails_loses_nothing_that_was_measured(tool, tmp_path, monkeypatch, capsys):
    def broken(self) -> None:
        raise RuntimeError("broken")

    quick = ["--teacher", "eomt-tiny", "--repeats", "1", "--variants", "apm", "--no-references"]
    quick += ["--precisions", "float32", "--output"]
    monkeypatch.setattr(Benchmark, "_sweeps", broken)
    monkeypatch.setattr(benchmark_ways.Run, "peak_bytes", broken)
    with pytest.raises(RuntimeError, match="broken"):
        tool.main([*quick, str(tmp_path)])
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["methods"]
    assert row["peak_mib"] is None and row["times"]["fit"]["median_ms"] > 0
    assert "the memory of apm float32 could not be counted" in capsys.readouterr().err
    assert tool.main(["--read", str(tmp_path / "benchmark.json")]) == 0

    def never(*_: object) -> None:
        raise AssertionError("nothing is measured before it is known where to")

    monkeypatch.setattr(Benchmark, "__init__", never)
    (tmp_path / "file").write_text("[]")
    assert tool.main([*quick, str(tmp_path / "file" / "below")]) == 2
    assert tool.main(["--read", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert "cannot write to" in said and "is no benchmark.json" in said and said.count("\n") == 2


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
    monkeypatch.setitem(TEACHERS, "clip-tiny", _Clip(name, classes=6))
    settings = BenchmarkConfig(
        teacher="clip-tiny",
        classes=6,
        variants=("default",),
        precisions=("float32",),
        baselines=("zero", "mta", "tps", "tpt"),
        views=4,
        repeats=1,
        sweep=False,
    )
    results = Benchmark(settings, None, lambda _: None).run()
    rows = {row["method"]: row for row in results["baselines"]}
    parts = ["default", "default, one view", "default, no student"]
    assert list(rows) == ["zero", "mta", "tps", "tpt", *parts]
    assert rows["default"]["adapted"] == pytest.approx(1)  # nothing was skipped
    assert 0 < rows["default"]["views_ms"] < rows["tps"]["views_ms"]
    assert all(row["teacher_ms"] > 0 and row["method_ms"] > 0 for row in rows.values())
    text = report_text(results)
    assert "over default" in text and "4 views, 6 classes" in text
    # the closed form of the whole, against the counter
    subject = build_subject("clip-tiny", classes=6)
    image = torch.zeros(1, 3, 32, 32)
    field, context = subject.teacher.encode(image)
    with plain_attention():
        counted = count_torch(lambda: subject.teacher.encode(image)).gmacs
    assert counted == pytest.approx(subject.gmacs["teacher"], rel=0.01)
    counted = count_torch(lambda: subject.answer(field[:, -1], context)).gmacs
    assert counted == pytest.approx(subject.gmacs["head"], rel=0.01)


def test_teachers_are_the_same_at_every_call_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (build_subject("eomt-tiny").teacher.model.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert build_subject("eomt-tiny", image_size=64).grid == (4, 8, 8)


def test_memory_traffic_of_a_step():
    # Table 4's student in float32: parameters and gradients, and Adam's two moments, "about 2 GB"
    small = StudentConfig(input_size=14, stride=14, widths=(1,), position_dim=8, source=False)
    parameters = 3 * 14 * 14 + 1 + (1 + 8) * 1 + 1 + 1 * 2 + 2
    assert step_bytes(small, 2) == 40 * parameters
    assert step_bytes(small, 2, lowered=True) == 46 * parameters
    config = LQNConfig(replace(small, source=True), FitConfig(steps=3))
    parameters += 8  # the source's block
    assert fit_bytes(config, 2) == (3 * 40 + 12) * parameters


def test_the_papers_arithmetic():
    paper = LQNConfig()
    assert fit_gmacs(paper, (12, 14, 14), 768, literal=True) == pytest.approx(1450, rel=0.02)
    source_less = replace(paper.student, source=False)
    assert step_bytes(source_less, 768) == pytest.approx(2.1e9, rel=0.05)


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
        benchmark_teachers.build_subject("eomt-tiny", image_size=50)


def test_drift_is_measured_in_the_teachers_variance():
    """A constant offset counts, and what all positions have in common is no variance."""
    tokens = 7 + torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    answer = torch.randn(1, 3, 4, 5)
    runs = {
        precision: SimpleNamespace(readout=lambda offset=offset: answer + offset)
        for precision, offset in {"bfloat16": 0.5, "float32": 0.0}.items()
    }
    variance = tokens.flatten(1, 2).var(1, correction=0).mean().item()
    assert _drifts(runs, tokens) == [pytest.approx(0.25 / variance), 0.0]
    del runs["float32"]
    assert _drifts(runs, tokens) == [None]


def test_a_gpu_machine_needs_little_beside_torch(tmp_path):
    """What the benchmark of a CLIP imports, where only its own libraries are installed."""
    others = ["fvcore", "yacs", "iopath", "matplotlib", "tabulate", "cv2", "pycocotools", "scipy"]
    others += ["cityscapesscripts", "sklearn", "termcolor"]
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


def test_tables_are_made_again_from_the_numbers(tool, tmp_path, capsys):
    small = ["--teacher", "eomt-tiny", "--steps", "1", "--repeats", "1", "--no-sweep"]
    small += ["--no-references", "--output", str(tmp_path)]
    assert tool.main(small) == 0
    first = (tmp_path / "benchmark.txt").read_text()
    (tmp_path / "benchmark.txt").unlink()
    assert tool.main(["--read", str(tmp_path / "benchmark.json")]) == 0
    assert (tmp_path / "benchmark.txt").read_text() == first and first in capsys.readouterr().out

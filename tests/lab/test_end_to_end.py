"""Where an evaluation's time goes: stages that add up, and a run that is none the wiser."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from lqn_seg.adapt.journey import Images
from lqn_seg.core.config import PRESETS, FitConfig, LQNConfig, StudentConfig
from lqn_seg.errors import InputError
from lqn_seg.lab.benchmark.end_to_end import EndToEnd, EndToEndConfig, SceneRun, parse_scene
from lqn_seg.lab.benchmark.report import report_text
from lqn_seg.lab.benchmark.stages import OTHER, STAGES, StageClock, stages_timed
from lqn_seg.lab.report.wording import WIDTH
from lqn_seg.segmentation import postprocess

CPU = torch.device("cpu")
CONFIG = EndToEndConfig(("eomt-tiny",), images=2, classes=14, precision="float32", repeats=1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    student = StudentConfig(input_size=28, stride=14, widths=(16, 8), position_dim=16)
    fit = FitConfig(steps=2, positions_per_step=6)
    recipe = replace(LQNConfig(student, fit), adapt=PRESETS["default"].adapt)
    monkeypatch.setitem(PRESETS, "default", recipe)


def test_a_stage_does_not_count_the_stages_inside_of_it(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "process_time", lambda: 3 * now)
    clock = StageClock(CPU)

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    inner = clock.timed("head", lambda: work(2))
    with clock.within("teacher"):
        work(1)
        inner()
        work(4)
    with pytest.raises(ZeroDivisionError), clock.within("head"):
        work(8)
        raise ZeroDivisionError
    work(16)
    clock.lap()
    taken = {stage: ms for stage, ms in clock.ms.items() if ms}
    assert taken == {"teacher": 5000, "head": 10000, OTHER: 16000}
    assert clock.busy_ms == {stage: 3 * ms for stage, ms in clock.ms.items()}
    assert clock.calls["head"] == 2 and clock.running == [OTHER]


def test_all_stages_of_lqn_are_met_and_change_nothing(tmp_path):
    scene = SceneRun("eomt-tiny", tmp_path, CONFIG)
    plain = scene.open("lqn")
    plain.run(progress=False)
    expected = list(plain.lines(plain.conditions[0], "lqn"))
    encode, hashing = Images.inputs, postprocess.mask_hash
    clock = scene.time("lqn")
    assert Images.inputs is encode and postprocess.mask_hash is hashing  # put back
    assert {stage for stage in STAGES if not clock.calls[stage]} == set()
    assert all(clock.ms[stage] > 0 for stage in STAGES)
    timed = scene.open("lqn")
    with stages_timed(CPU):
        timed.run(progress=False)
    lines = timed.lines(timed.conditions[0], "lqn")
    for one, other in zip(expected, lines, strict=True):
        assert one["lqn"]["mixing_weight"] > 0  # nothing is skipped
        assert all(one[key] == other[key] for key in one if key != "lqn")


def test_results_are_a_table_whose_shares_are_of_the_total(tmp_path):
    said: list[str] = []
    results = EndToEnd(CONFIG, tmp_path, said.append).run()
    (row,) = results["end_to_end"]
    assert list(row["methods"]) == ["teacher", "restore", "field", "lqn"]
    for by_stage in row["methods"].values():
        whole = by_stage["total"]["ms"]
        parts = sum(values["ms"] for stage, values in by_stage.items() if stage != "total")
        assert parts == pytest.approx(whole)  # of one run
    assert row["methods"]["teacher"]["fit"]["ms"] == 0 < row["methods"]["lqn"]["fit"]["ms"]
    text = report_text(results)
    assert max(map(len, text.splitlines())) <= WIDTH
    ((shown,),) = ([line.split() for line in text.splitlines() if line.startswith("fit ")],)
    share = 100 * row["methods"]["lqn"]["fit"]["ms"] / row["methods"]["lqn"]["total"]["ms"]
    assert float(shown[-1]) == pytest.approx(share, abs=0.06)
    assert "14 classes" in text and "2 images" in text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []  # files are removed


def test_a_scene_is_a_name_and_a_side():
    assert parse_scene("eomt-l:512") == ("eomt-l", 512) and parse_scene("demo") == ("demo", 0)
    for text in ("eomt-l:big", "eomt-l:0", "demo:96", "eomt-x"):
        with pytest.raises(InputError):
            parse_scene(text)
    with pytest.raises(InputError, match="at least 1"):
        EndToEndConfig(("demo",), repeats=0)

"""A study in four independent jobs finds what one run finds, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lqn_seg.adapt.timing import Clock
from lqn_seg.cli.study import main
from lqn_seg.engine import launch
from lqn_seg.engine.evaluate import Evaluation
from lqn_seg.engine.shard import Shard
from lqn_seg.engine.store import ResultStore
from lqn_seg.errors import InputError
from lqn_seg.lab.study.shards import merge, run_shard
from lqn_seg.lab.study.study_report import run_study
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.visualization import curves, pareto


@pytest.fixture
def study(small_config, teacher_folder, tmp_path, monkeypatch) -> str:
    """Five images in batches of two; every time is a millisecond, so that tables can be equal."""
    monkeypatch.setattr(Clock, "lap", lambda self: 1.0)
    for module, name in ((curves, "draw_study"), (pareto, "draw_pareto")):
        monkeypatch.setattr(module, name, lambda *_: [])
    content = {
        "CONFIG": str(small_config),
        "DATASET": "demo_panoptic_val",
        "OUTPUT_DIR": str(tmp_path / "study"),
        "TEACHERS": {"tiny": {"WEIGHTS": str(teacher_folder)}},
        "METHODS": ["teacher", "lqn"],
        "CORRUPTIONS": ["fog"],
        "OVERRIDES": ["MODEL.LQN.PRESET", "distill", "MODEL.LQN.BATCH", 2],
        "BOOTSTRAP_SAMPLES": 20,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def found(folder: Path) -> tuple[str, dict]:
    return (folder / "table.md").read_text(), json.loads((folder / "results.json").read_text())


def in_folder(folder: Path) -> list[str]:
    return ["OUTPUT_DIR", str(folder)]


def test_four_shards_find_what_one_run_finds(study, tmp_path, executed, capsys):
    run_study(study, in_folder(tmp_path / "one"))
    expected, all_images = found(tmp_path / "one"), sorted(executed)
    executed.clear()
    for k in (4, 2, 1, 3):  # in one folder; the fourth has no batch
        assert main([study, "--shard", f"{k}/4"]) == 0
        assert not (tmp_path / "study" / "results.json").exists()
    said = capsys.readouterr().out
    assert "shard 2/4, 2 of 5 images" in said and "10 of 10 images done" in said
    assert sorted(executed) == all_images  # each once
    files = sorted(path.name for path in (tmp_path / "study").rglob("clean.*"))
    assert files == ["clean.1of4.jsonl", "clean.2of4.jsonl", "clean.3of4.jsonl"]
    assert main([study, "--resume"]) == 0
    assert found(tmp_path / "study") == expected and sorted(executed) == all_images

    executed.clear()
    folders = [tmp_path / f"machine{k}" for k in (1, 2)]  # without a folder in common
    for k, folder in enumerate(folders, 1):
        run_shard(study, in_folder(folder), Shard(k, 2))
    assert sorted(executed) == all_images
    merged = tmp_path / "merged"
    assert main([study, "--merge", *map(str, folders), *in_folder(merged)]) == 0
    assert found(merged) == expected and sorted(executed) == all_images
    (merged / "table.md").unlink()
    assert main([study, "--merge", str(merged), *in_folder(merged)]) == 0  # what they shared
    assert found(merged) == expected and sorted(executed) == all_images


def test_a_shard_goes_on_and_removes_nothing(study, tmp_path, executed):
    run_shard(study, [], Shard(1, 2))
    folder = tmp_path / "study" / "tiny" / "run1" / "seed0" / "inference"
    path = folder / "fog-3.1of2.jsonl"
    first, done = path.read_text().splitlines(keepends=True)[0], len(executed)
    path.write_text(first)
    executed.clear()
    run_shard(study, [], Shard(2, 2))
    run_shard(study, [], Shard(1, 2))
    assert done == 6 and sorted(executed) == [
        *(("clean", 2), ("clean", 3)),
        *(("fog-3", 2), ("fog-3", 3), ("fog-3", 4)),
    ]
    assert path.read_text().startswith(first)


def test_what_is_missing_or_foreign_is_one_sentence(study, tmp_path):
    folders = [str(tmp_path / "machine1"), str(tmp_path / "machine2")]
    run_shard(study, in_folder(Path(folders[0])), Shard(1, 2))
    merged = in_folder(tmp_path / "merged")
    with pytest.raises(
        InputError, match=r"4 of 10 results .* are missing, of shard 2/2 2 images; run what"
    ):
        merge(study, merged, folders[:1])
    with pytest.raises(InputError, match=r"machine2 holds no results of the study study: .*tiny"):
        merge(study, merged, folders)
    other = ["MODEL.LQN.FIT.STEPS", "2"]
    run_shard(study, [*in_folder(Path(folders[1])), *other], Shard(2, 2))
    with pytest.raises(
        InputError, match=r"machine2.* \(it differs in: methods\): its results cannot be merged"
    ):
        merge(study, merged, folders)
    with pytest.raises(InputError, match=r"differs in: methods\): choose another OUTPUT_DIR"):
        run_shard(study, in_folder(Path(folders[1])), Shard(2, 2))
    folder = Path(folders[1]) / "tiny" / "run1" / "seed0" / "inference"
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match=r"inference has no run\.json, so it holds no results"):
        merge(study, merged, folders)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--shard", "0/4"], "such as 3/16, with a number from 1 to the count, not '0/4'"),
        (["--shard", "5/4"], "not '5/4'"),
        (["--shard", "x"], "not 'x'"),
        (["--shard", "1/2", "--merge", "a"], "--shard evaluates and --merge reports"),
        (["study/demo", "--merge", "a"], "--merge takes one study"),
    ],
)
def test_wrong_options_are_one_sentence(words, message, capsys):
    assert main(["study/quick", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


def test_torchrun_shares_the_images_itself(monkeypatch, capsys):
    monkeypatch.setattr(launch, "size", lambda: 2)
    monkeypatch.setattr(launch, "gather", lambda value: [value])
    assert main(["study/quick", "--shard", "1/2"]) == 2
    assert "start them without torchrun" in capsys.readouterr().err


def test_folders_are_no_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
    Path("my.yaml").write_text("CONFIG: x\n")
    assert main(["my.yaml", "--merge", "a", "b", "MAX_IMAGES", "3"]) == 2
    assert "my.yaml: TEACHERS must be" in capsys.readouterr().err  # all words were understood


def test_a_shard_of_what_learns_on_the_way_is_refused(study):
    learning = ["METHODS", "[teacher, 'tent(continual=true)']", "MODEL.LQN.BATCH", "1"]
    with pytest.raises(InputError, match=r"tent\(continual=true\) learns .* without --shard"):
        run_shard(study, learning, Shard(1, 2))


def test_shards_partition_whole_batches():
    parts = [Shard(k, 3).of(range(10), 2) for k in (1, 2, 3)]
    assert parts == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5]]
    assert Shard.parse("1/1").of("abc", 2) == ["a", "b", "c"]


def test_the_store_of_a_shard_needs_the_same_run(tmp_path):
    def store(content: str, shard: str) -> ResultStore:
        return ResultStore(tmp_path, {"records": content}, ["clean"], shard=shard)

    store("x", "1of2").append("clean", [{"image_id": 1}])
    assert set(store("x", "2of2").results("clean")) == {1}
    with pytest.raises(InputError, match=r"differs in: records\)"):
        store("y", "2of2")


def test_what_learns_on_the_way_begins_every_condition_afresh(study, tmp_path, monkeypatch):
    """Condition by condition; without images between, the second is what it is alone."""
    events: list[str] = []
    reset, predict = Segmenter.reset, Evaluation.predict
    monkeypatch.setattr(Segmenter, "reset", lambda self: events.append("reset") or reset(self))

    def watched(self, condition, samples):
        events.append(str(condition))
        return predict(self, condition, samples)

    monkeypatch.setattr(Evaluation, "predict", watched)
    learning = ["METHODS", "[teacher, 'tent(continual=true,learning_rate=0.1)']"]
    few = [*learning, "MODEL.LQN.BATCH", "1", "MAX_IMAGES", "3", "METRIC", "mIoU"]

    def stored(folder: Path, severities: str) -> str:
        events.clear()
        run_study(study, [*few, *in_folder(folder), "SEVERITIES", severities])
        return next(folder.rglob("fog-5.0.jsonl")).read_text()

    several = stored(tmp_path / "several", "[3, 5]")
    assert events == [x for c in ("clean", "fog-3", "fog-5") for x in ("reset", *[c] * 3)]
    alone = stored(tmp_path / "alone", "[5]")
    assert several == alone

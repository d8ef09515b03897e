"""KEY VALUE pairs on the command line: wherever they stand, no option swallows them."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

PAIRS = ["MODEL.LQN.FIT.STEPS", "5", "SEED", "-1", "DATASETS.TEST", "('a', 'b')"]
CONFIG = ["--config", "configs/demo_lqn.yaml"]
# tool, its words, each option with its values
TOOLS: dict[str, tuple[str, list[list[str]]]] = {
    "train_net": ("train_net", [["--eval-only"], CONFIG, ["--methods", "teacher,lqn"]]),
    "classify": ("classify", [CONFIG, ["--resume"], ["--calibrate", "DATA"], ["--max", "3"]]),
    "calibrate": ("calibrate", [CONFIG, ["--images", "photos"], ["--output", "OUT.ST"]]),
    "calibrate of a data set": ("calibrate", [CONFIG, ["--dataset", "MY.DATA"]]),
    "explore": ("explore", [["--teacher", "A=x", "B=y"], ["--port", "0"], ["--no-browser"]]),
    "train_clip": ("train_clip", [CONFIG, ["--device", "cpu"]]),
    "study": ("study", [["a.yaml", "b.yml"], ["--resume"]]),
    **{
        f"visualize {figure}": ("visualize", [["--output", "out"], ["--input", "a.jpg", "b/"]])
        for figure in ("panels", "error", "steps", "depth", "alignment", "reconstruct")
    },
    "visualize tokens": (
        "visualize",
        [["--input", "a.jpg", "DSC_1.JPG"], ["--layers", "1", "2"], ["--output", "out"]],
    ),
}


@pytest.fixture
def parse(script, monkeypatch) -> Callable[..., Namespace]:
    def parsed(name: str, words: list[str]) -> Namespace:
        tool = script("tools", TOOLS[name][0])
        figure = name.split()[1:] if TOOLS[name][0] == "visualize" else []
        monkeypatch.setattr(sys, "argv", [f"{TOOLS[name][0]}.py", *figure, *words])
        return tool.parse_arguments()

    return parsed


@pytest.mark.parametrize("name", TOOLS)
def test_pairs_may_stand_anywhere(name, parse):
    words = TOOLS[name][1]
    alone = vars(parse(name, [w for group in words for w in group]))
    assert not alone.pop("overrides")
    for place in range(len(words) + 1):
        groups = [*words[:place], PAIRS, *words[place:]]
        result = vars(parse(name, [w for group in groups for w in group]))
        assert result.pop("overrides") == PAIRS, place
        assert result == alone, place
    spread = [w for k, group in enumerate(words[:2]) for w in (*group, *PAIRS[2 * k : 2 * k + 2])]
    spread += [w for group in words[2:] for w in group]
    assert parse(name, spread).overrides == PAIRS[:4]


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["MODEL.LQN.FIT.STEPS"], "MODEL.LQN.FIT.STEPS has no value"),
        (["SEED", "1", "MODEL.LQN.FIT.STEPS"], "MODEL.LQN.FIT.STEPS has no value"),
        (["MODEL.LQN.FIT.STEPS", "--device", "cpu"], "MODEL.LQN.FIT.STEPS has no value"),
        (["MODEL.LQN.FIT.STEPS=5"], "write MODEL.LQN.FIT.STEPS 5, not MODEL.LQN.FIT.STEPS=5"),
        (["SEED", "1", "--devcie", "cpu"], "unrecognized arguments: --devcie"),
        (["SEED", "1", "stray"], "stray"),
    ],
)
def test_what_is_no_pair_is_one_sentence(name, wrong, said, script, monkeypatch, capsys):
    if name == "study":  # which has no --device
        wrong = [{"--device": "--resume", "cpu": "a.yaml"}.get(word, word) for word in wrong]
        said = said.replace("stray", "no study file")  # what is no key is a file
    tool, groups = TOOLS[name]
    words = [w for group in groups for w in group]
    figure = name.split()[1:] if tool == "visualize" else []
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *figure, *words, *wrong])
    try:
        status = script("tools", tool).main()
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize("name", ["train_net", "visualize panels"])
def test_names_that_are_not_joined_by_commas_are_said(name, parse, capsys):
    words = [w for group in TOOLS[name][1] if group[0] != "--methods" for w in group]
    for order in (["--methods", "teacher", "lqn", *words], [*words, "--methods", "teacher", "lqn"]):
        with pytest.raises(SystemExit):
            parse(name, order)
        assert "'lqn' is neither an option nor a KEY" in (said := capsys.readouterr().err)
        assert "separated by commas" in said and said.count("\n") == 1


def test_a_file_in_capitals_is_a_file(parse):
    files = ["IMG.1", "DATA", "a.JPG", "IMG_2.PNG"]
    result = parse("visualize panels", ["--output", "MODEL.X", "--input", *files, "SEED", "1"])
    assert result.input == files and result.overrides == ["SEED", "1"]
    assert result.output == Path("MODEL.X")


def test_tools_without_a_configuration_say_so(script, monkeypatch, capsys):
    for tool, words in {
        "benchmark": [],
        "validate_dataset": ["x"],
        "convert_checkpoint": ["a", "b"],
    }.items():
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *words, "SEED", "1"])
        with pytest.raises(SystemExit) as end:
            script("tools", tool).main()
        said = capsys.readouterr().err
        assert end.value.code == 2 and "SEED" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("tool", "words", "said"),
    [
        ("visualize", ["tokens", "--output", "{file}"], "cannot write to {file} "),
        ("visualize", ["panels", "--output", "{file}/in/it"], "cannot write to {file}/in/it "),
    ],
)
def test_a_place_that_cannot_be_written_to_is_found_first(
    tool, words, said, tmp_path, script, monkeypatch, capsys
):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *(word.format(file=file) for word in words)])
    assert script("tools", tool).main() == 2
    assert capsys.readouterr().err.startswith(f"error: {said.format(file=file)}")


@pytest.mark.parametrize("tool", ["classify", "train_clip"])
def test_a_file_need_not_say_that_it_is_of_classification(
    tool, tmp_path, script, monkeypatch, capsys
):
    file = tmp_path / "clip.yaml"
    file.write_text("SOLVER: {BACKBONE_MULTIPLIER: 0.1}\nDATASETS: {TRAIN: [nowhere]}\n")
    pairs = ["CLASSIFICATION.VIEWS", "4", "MODEL.LQN.TEACHER.NAME", "clip"]
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", "--config", str(file), *pairs])
    assert script("tools", tool).main() == 2
    assert "there is no key" not in capsys.readouterr().err

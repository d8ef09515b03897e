"""What a user sees who mistypes a word, or presses Ctrl-C."""

from __future__ import annotations

import re
import signal
import threading

import pytest

from lqn_seg.cli import explore
from lqn_seg.cli.parser import Parser, exit_status, names
from lqn_seg.engine.interruption import patient
from lqn_seg.errors import InputError, PeerError


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="tool", description="Does it.\n\nExamples:\n    tool draw")
    parser.add_argument("--config-file")
    parser.add_argument("--engine", choices=("native", "detectron2"))
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind in ("tokens", "panels"):
        kinds.add_parser(kind).add_argument("--methods")
    return parser


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["token"], "did you mean tokens?"),
        (["--engine", "nativ", "tokens"], "did you mean native?"),
        (["tokens", "--methds", "lqn"], "did you mean --methods?"),
        (["tokens", "--methds=lqn"], "did you mean --methods?"),
        (["--confg-file", "x", "tokens"], "did you mean --config-file?"),
        (["--zzz", "tokens"], None),
        ([], None),
    ],
)
def test_a_wrong_word_is_one_sentence_with_the_nearest(parser, words, hint, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert "--help\n" in said
    assert (hint in said) if hint else ("did you mean" not in said)


def test_help_keeps_the_lines_of_the_docstring(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0 and "Examples:\n    tool draw\n" in capsys.readouterr().out


def test_help_tells_defaults_and_leaves_switches_alone(capsys):
    parser = Parser(prog="tool")
    defaults = {"one": 1, "none": 0, "whole": 1.0, "word": "auto", "empty": "", "nothing": None}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default, help="it is")
    parser.add_argument("--switch", action="store_true", help="it is")
    parser.add_argument("--own", default=1, help="it is (default: one)")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    told = dict(re.findall(r"^  --(\w+)(?: [A-Z]+)? +(it is.*)$", capsys.readouterr().out, re.M))
    said = {"one": "1", "none": "0", "whole": "1.0", "word": "auto", "own": "one"}
    assert told == {
        name: f"it is (default: {said[name]})" if name in said else "it is"
        for name in (*defaults, "switch", "own")
    }


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


def test_an_end_is_a_status_and_a_sentence(capsys, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert exit_status(lambda: None) == 0 and exit_status(lambda: 3) == 3
    assert exit_status(raising(PeerError("said by another"))) == 2
    assert capsys.readouterr().err == ""
    assert exit_status(raising(InputError("x.yaml is missing"))) == 2
    assert capsys.readouterr().err == "error: x.yaml is missing\n"
    assert exit_status(raising(PermissionError(13, "Permission denied", "a/b"))) == 2
    assert capsys.readouterr().err == "error: no permission to read or write a/b\n"
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted: continue with --resume\n"
    assert exit_status(raising(KeyboardInterrupt("3 of 4 are done")), "nothing is") == 130
    assert capsys.readouterr().err == "interrupted: 3 of 4 are done\n"
    for key, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(key, value)
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""  # process 0 says it


def test_ctrl_c_waits_once_for_a_good_moment():
    before = signal.getsignal(signal.SIGINT)
    with patient() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_is_never_interrupted():
    seen = []

    def work() -> None:
        with patient() as stop:
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_names_are_separated_by_commas():
    assert names("teacher,lqn@paper") == ["teacher", "lqn@paper"] and names("") == []
    assert names("a,") == ["a"]


def test_a_configuration_without_its_option_is_told_the_option(capsys):
    with pytest.raises(SystemExit):
        explore.parse_arguments(["demo"])
    assert "a configuration follows --config-file; see lqn-seg explore --help" in (
        capsys.readouterr().err
    )

"""Command lines: every error is one sentence, Ctrl-C is another. Standard library only."""

import argparse
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from lqn_seg.engine.interruption import is_launched
from lqn_seg.errors import InputError, PeerError

DEMO = "demo"
# What the keys of a configuration begin with; `TEST` is Detectron2's.
_ROOTS = (
    *("MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST", "CLASSIFICATION"),
    *("SEED", "OUTPUT_DIR", "VERSION"),
)
_PAIRS = "overrides are KEY VALUE pairs such as MODEL.LQN.FIT.STEPS 50"


def is_config_key(word: str) -> bool:
    return word.split(".")[0] in _ROOTS


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the docstring, and adds the defaults that a help text does not state."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        # A switch's default goes without saying; 0 and 1 are equal to switches, and do not.
        is_stated = isinstance(default, int | float | str | Path) and not isinstance(default, bool)
        if not is_stated or default == "" or "default" in text or default == argparse.SUPPRESS:
            return text
        return f"{text} (default: {default})"


class _Pair(argparse.Action):
    """``--override=KEY=VALUE``, which `Parser` writes for ``KEY VALUE``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        namespace.overrides = [*namespace.overrides, *values.split("=", 1)]


class Parser(argparse.ArgumentParser):
    """A command line whose help is a docstring, and whose complaints are one sentence each."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, **keywords})
        self.is_key: Callable[[str], bool] = lambda word: False

    def add(self, name: str, default: Any, help: str, **keywords: Any) -> None:
        """An option whose default says its type; False makes it a switch."""
        if default is False:
            self.add_argument(name, action="store_true", help=help, **keywords)
        else:
            self.add_argument(name, type=type(default), default=default, help=help, **keywords)

    def add_overrides(self, is_key: Callable[[str], bool] = is_config_key) -> None:
        """Take ``KEY VALUE`` pairs, wherever they stand, as ``overrides``; a word is a key where
        ``is_key`` says so and it does not follow an option, whose value it would be."""
        hidden = argparse.SUPPRESS
        self.add_argument("--override", action=_Pair, dest="overrides", default=[], help=hidden)
        self.epilog = "\n".join(
            filter(None, [self.epilog, "KEY VALUE pairs override keys of the configuration"])
        )
        self.is_key = is_key

    def parse(self, words: Sequence[str] | None = None) -> Namespace:
        """`parse_args` where options and words mix; of a configuration's two forms one must be
        there, and becomes ``config_file``."""
        arguments = self.parse_intermixed_args(words)
        if "config" in arguments:
            named = arguments.config
            del arguments.config
            if named and arguments.config_file:
                self.error(f"unrecognized arguments: {named}")
            arguments.config_file = named or arguments.config_file
            if not arguments.config_file:
                self.error("name a configuration: a YAML file, or a shipped one such as demo")
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever, but an unknown option is found before its value is taken for something else."""
        words, known = list(sys.argv[1:] if args is None else args), self._options()
        for name in (word.partition("=")[0] for word in words):
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(f"unrecognized arguments: {name}")
        return super().parse_known_args(self._mark_pairs(words), namespace)

    def _mark_pairs(self, words: Sequence[str]) -> list[str]:
        """The words with each ``KEY VALUE`` as one option, which ends the values of any other."""
        marked: list[str] = []
        left = list(words)
        while left:
            word = left.pop(0)
            key, assigned, value = word.partition("=")
            if word.startswith("--"):
                marked.append(word)
                if not assigned and self._takes_a_value(word) and left:
                    marked += [left.pop(0)] if not left[0].startswith("--") else []
            elif not self.is_key(key):
                marked.append(word)
            elif assigned:
                self.error(f"{_PAIRS}: write {key} {value or 'VALUE'}, not {word}")
            elif not left or left[0].startswith("--"):
                self.error(f"{_PAIRS}; {word} has no value")
            else:
                marked.append(f"--override={word}={left.pop(0)}")
        return marked

    def _takes_a_value(self, word: str) -> bool:
        options = self._option_string_actions.items()
        return any(name.startswith(word) and action.nargs != 0 for name, action in options)

    def error(self, message: str) -> NoReturn:
        """End with status 2; of a word that is unknown the nearest known one is suggested."""
        hint = ""
        if match := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            hint = _did_you_mean(match[1], re.findall(r"[\w.@-]+", match[2]))
        elif match := re.search(r"unrecognized arguments: (-\S+)", message):
            hint = _did_you_mean(match[1].partition("=")[0], self._options())
        elif message.startswith("unrecognized") and "--override" in self._options():
            word = message.split()[2]
            message = f"{word!r} is neither an option nor a KEY: {_PAIRS}, and several names in "
            message += "one option are separated by commas"
            # Where a configuration may stand alone, `config`, the word is a second one.
            if {"config_file", "config"} & {a.dest for a in self._actions} == {"config_file"}:
                message += "; a configuration follows --config-file"
        self.exit(2, f"error: {message}{hint}; see {self.prog} --help\n")

    def _options(self) -> list[str]:
        options = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action.choices, dict):
                options += [o for p in action.choices.values() for o in p._option_string_actions]
        return options


def _did_you_mean(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def find_choice(parser: Parser, name: str, choices: Collection[str]) -> str:
    """A word that must be one of several; ends the process where it is not."""
    if name not in choices:
        listed = ", ".join(choices)
        parser.error(f"invalid choice: {name!r} (choose from {listed})")
    return name


def names(given: str) -> list[str]:
    """What a comma-separated option names; commas in brackets are a name's own."""
    return [name for name in re.split(r",(?![^(]*\))", given) if name]


def exit_status(command: Callable[[], int | None], left: str = "continue with --resume") -> int:
    """A command's exit status; bad input is one sentence, from one of the processes. ``left`` says
    what is left after Ctrl-C, unless the `KeyboardInterrupt` does."""
    try:
        return command() or 0
    except PeerError:
        return 2
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:  # of a folder: those who read files say it themselves
        if error.filename is None:
            raise
        print(f"error: no permission to read or write {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if not is_launched() or os.environ.get("RANK") == "0":
            print(f"interrupted: {str(stop) or left}", file=sys.stderr)
        return 130


def add_config_flags(parser: Parser, default: str = "") -> None:
    """``--config-file``; without a default the configuration may stand alone, as ``config``, too
    (`Parser.parse`)."""
    what = "YAML configuration, or the name of a shipped one: demo is configs/demo_lqn.yaml"
    if not default:
        parser.add_argument("config", nargs="?", metavar="CONFIG", help=what)
        what = "the same as CONFIG"
    parser.add_argument("--config-file", metavar="FILE", default=default, help=what)
    parser.add("--device", "", "auto, cpu, cuda or mps")
    parser.add_overrides()


def add_run_flags(parser: Parser) -> None:
    parser.add("--resume", False, "continue from the results in OUTPUT_DIR")
    parser.add(
        "--strict",
        False,
        "stop at the first image that cannot be read or scored, and when the disk is full; "
        "by default the run reports them and continues (native; detectron2 always stops)",
    )
    parser.add("--full", False, "print all tables, not only the summary")
    parser.add("--num-gpus", 1, "processes per machine, also without GPUs")
    parser.add("--num-machines", 1, "number of machines")
    parser.add("--machine-rank", 0, "number of this machine, from 0")
    parser.add("--dist-url", "auto", "tcp://HOST:PORT of machine 0")


def all_overrides(arguments: Namespace, methods: str) -> list[str]:
    """The ``KEY VALUE`` pairs, with the key that ``--methods`` stands for."""
    listed = names(arguments.methods)
    return [*arguments.overrides, *((methods, repr(tuple(listed))) if listed else ())]


def check_config(arguments: Namespace, methods: str = "", classification: bool = False) -> Any:
    """The configuration on a CPU; what is mistyped is found before torch is imported, in seconds.

    Args:
        methods: the key that ``--methods`` stands for.
        classification: the command takes classification's keys; otherwise the file says it.
    """
    from lqn_seg.config.nodes import load_any_cfg, load_classification_cfg

    load = load_classification_cfg if classification else load_any_cfg
    pairs = all_overrides(arguments, methods) if methods else arguments.overrides
    return load(arguments.config_file, pairs, "cpu")


def processes(arguments: Namespace) -> int:
    return arguments.num_gpus * arguments.num_machines


def start_processes(arguments: Namespace) -> int:
    """Run this command again in as many processes as were asked for; returns its exit status."""
    from lqn_seg.engine import launch

    machines = (arguments.num_machines, arguments.machine_rank, arguments.dist_url)
    return launch.start(sys.argv, arguments.num_gpus, *machines)


def prepare_splits(
    description: str, folder: str, splits: Collection[str], write: Callable[[Path, str], int | Path]
) -> int:
    """Run a preparation script, whose docstring is the description, on a root that holds
    ``folder``: `--root`, `--split`, and a line for each split. ``write`` takes (root, split) and
    returns how many files it wrote, or the one that names them."""
    from lqn_seg.data.catalog import dataset_roots

    parser = Parser(description=description)
    parser.add("--root", dataset_roots()[0], f"folder that holds {folder}/", metavar="DIR")
    parser.add_argument("--split", choices=tuple(splits), action="append", help="default: all")
    arguments = parser.parse_args()

    def prepare() -> None:
        for split in arguments.split or splits:
            written = write(arguments.root, split)
            print(f"{split}: {written if isinstance(written, Path) else f'{written} files'}")

    return exit_status(prepare, "start again, because the last split is incomplete")

"""Command lines: one sentence for what is wrong, a word for Ctrl-C. Standard library only."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

from lqn_seg.errors import InputError, PeerError


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the docstring, and tells defaults that a help text does not tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told, default = action.help or "", action.default
        # A switch's default goes without saying; 0 and 1 are equal to switches, and do not.
        is_said = isinstance(default, int | float | str) and not isinstance(default, bool)
        if not is_said or default == "" or "default" in told or default == argparse.SUPPRESS:
            return told
        return f"{told} (default: {default})"


# A key of a configuration: MODEL.LQN.FIT.STEPS, SEED, TEACHERS.small.WEIGHTS.
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[\w+-]+)*")
# What looks like a key and is a file: DSC_0001.JPG.
_FILE = re.compile(
    r".*\.(jpe?g|png|bmp|gif|webp|tiff?|ya?ml|json|npy|safetensors|bin|pth?|st)", re.I
)
_PAIRS = "overrides are KEY VALUE pairs, as in MODEL.LQN.FIT.STEPS 50"


class Parser(argparse.ArgumentParser):
    """A command line whose help is a docstring, and whose complaints are one sentence each."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        keywords.setdefault("formatter_class", _Help)
        super().__init__(*args, **keywords)
        self._takes_overrides = False

    def add_overrides(self) -> None:
        """Take ``KEY VALUE`` pairs, wherever they stand, as ``overrides``."""
        self.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override config keys")
        self._takes_overrides = True

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever, but an unknown option is found before its value is taken for something else, and
        ``KEY VALUE`` pairs before an option takes them for values of its own."""
        words, known = list(sys.argv[1:] if args is None else args), self._options()
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(f"unrecognized arguments: {name}")
        if not self._takes_overrides:
            return super().parse_known_args(words, namespace)
        words, pairs = self.split_overrides(words)
        found, extras = super().parse_known_args(words, namespace)
        for word in (*found.overrides, *extras):
            if not word.startswith("-"):
                self._refuse(word)
        found.overrides = pairs
        return found, extras

    def split_overrides(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The words without ``KEY VALUE`` pairs, and the pairs.

        What directly follows an option is its value, whatever it looks like; where an option takes
        any number of values, a word that looks like a key ends them unless it is a file.
        """
        rest: list[str] = []
        pairs: list[str] = []
        left = list(words)
        option: argparse.Action | None = None  # takes any number of values, more may follow
        interrupted = False  # it did, until a pair came
        while left:
            word = left.pop(0)
            if word.startswith("--"):
                rest.append(word)
                option, interrupted = self._option(word), False
                for _ in range(_least(option) if "=" not in word else 0):
                    if left and not left[0].startswith("--"):
                        rest.append(left.pop(0))
                option = option if option and option.nargs in ("+", "*") else None
                continue
            key, assigned, value = word.partition("=")
            is_key = _KEY.fullmatch(key) and not _FILE.fullmatch(key)
            if option and (os.path.exists(word) or ("=" in str(option.metavar) and assigned)):
                is_key = None
            if not is_key:
                if interrupted:
                    self._refuse(word)
                rest.append(word)
            elif assigned:
                self.error(f"{_PAIRS}: write {key} {value or 'VALUE'}, not {word}")
            elif not left or left[0].startswith("--"):
                self.error(f"{_PAIRS}; {word} has no value")
            else:
                pairs += [word, left.pop(0)]
                interrupted, option = interrupted or option is not None, None
        return rest, pairs

    def _refuse(self, word: str) -> NoReturn:
        """Of a word that belongs to nothing."""
        self.error(
            f"{word!r} is no option and no KEY: {_PAIRS}, and several names in one option are "
            "separated by commas"
        )

    def _option(self, word: str) -> argparse.Action | None:
        """The option that a word names, by its beginning too."""
        name = word.partition("=")[0]
        known = self._option_string_actions
        near = [option for option in known if option.startswith(name)]
        return known.get(name) or (known[near[0]] if len(near) == 1 else None)

    def error(self, message: str) -> NoReturn:
        """End with status 2; of a word that is unknown the nearest known one is suggested."""
        hint = ""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            hint = _did_you_mean(found[1], re.findall(r"[\w.@-]+", found[2]))
        elif found := re.search(r"unrecognized arguments: (-\S+)", message):
            hint = _did_you_mean(found[1].partition("=")[0], self._options())
        self.exit(2, f"error: {message}{hint}; {self.prog} --help explains\n")

    def _options(self) -> list[str]:
        """All options, those of sub-commands too."""
        options = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action.choices, dict):
                options += [o for p in action.choices.values() for o in p._option_string_actions]
        return options


def _least(option: argparse.Action | None) -> int:
    """How many words at least are an option's values."""
    if option is None or option.nargs in ("*", "?"):
        return 0
    return option.nargs if isinstance(option.nargs, int) else 1


def _did_you_mean(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def names(given: str) -> list[str]:
    """What a comma-separated option names."""
    return [name for name in given.split(",") if name]


def is_launched() -> bool:
    """Whether this is one of several processes that `torchrun` started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def exit_status(command: Callable[[], int | None], left: str = "go on with --resume") -> int:
    """A command's exit status; bad input is one sentence, from one of the processes.

    Args:
        left: what Ctrl-C leaves behind, where the `KeyboardInterrupt` itself does not say it.
    """
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
        print(f"error: {error.filename} may not be read or written here", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if not is_launched() or os.environ.get("RANK") == "0":
            print(f"interrupted: {str(stop) or left}", file=sys.stderr)
        return 130


@contextmanager
def patient() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for a good moment: the block asks whether it was pressed.

    The second one does not wait. In another thread than the main one nobody can press it.
    """
    asked = False

    def remember(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)

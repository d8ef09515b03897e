"""Command lines: one sentence for what is wrong, a word for Ctrl-C. Standard library only."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from lqn_seg.engine.interruption import is_launched
from lqn_seg.errors import InputError, PeerError

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo_lqn.yaml"


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


def add_config_flags(parser: Parser, default: Path | None = None) -> None:
    """``--config-file``, ``--device`` and ``KEY VALUE`` pairs."""
    parser.add_argument(
        "--config-file",
        required=default is None,
        default=default and str(default),
        metavar="FILE",
        help="YAML configuration" + (" (default: the demo's)" if default else ""),
    )
    parser.add_argument("--device", default="", help="auto, cpu, cuda or mps")
    parser.add_overrides()


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Going on, stopping early, and how many processes share the job."""
    parser.add_argument("--resume", action="store_true", help="go on from what is in OUTPUT_DIR")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first image that cannot be read or scored, and when the disk is full; "
        "else both are named and counted, and the run goes on (native; detectron2 always stops)",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes per machine, also where there is no GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")


def check_config(arguments: argparse.Namespace, *more: str, classification: bool = False) -> None:
    """Find what is mistyped before torch is imported, which takes seconds.

    Args:
        more: ``KEY VALUE`` pairs that other flags stand for.
        classification: the command takes classification's keys, whatever the file holds; otherwise
            the file says which it is of.

    Raises:
        InputError: the file is missing or malformed, or a key or value is wrong.
    """
    if classification:
        from lqn_seg.config.classification import load_classification_cfg as load
    else:
        from lqn_seg.config.nodes import load_any_cfg as load
    load(arguments.config_file, [*arguments.overrides, *more], "cpu")


def processes(arguments: argparse.Namespace) -> int:
    """How many processes were asked for, on all machines together."""
    return arguments.num_gpus * arguments.num_machines


def start_processes(arguments: argparse.Namespace) -> int:
    """Run this command again in as many processes as were asked for; returns its exit status."""
    from lqn_seg.engine import launch

    machines = (arguments.num_machines, arguments.machine_rank, arguments.dist_url)
    return launch.start(sys.argv, arguments.num_gpus, *machines)


def prepare_splits(
    description: str, folder: str, splits: Collection[str], write: Callable[[Path, str], int | Path]
) -> int:
    """Run a preparation script: `--root`, `--split`, and a line for each split that was written.

    Args:
        description: the script's docstring.
        folder: what the root has to hold.
        write: (root, split) -> how many files it wrote, or the one that names them.

    Returns:
        The exit status, as `exit_status` has it.
    """
    from lqn_seg.data.catalog import dataset_roots

    parser = Parser(description=description)
    root = dataset_roots()[0]
    parser.add_argument(
        "--root", type=Path, default=root, metavar="DIR", help=f"holds {folder}/ (default: {root})"
    )
    parser.add_argument("--split", choices=tuple(splits), action="append", help="default: all")
    arguments = parser.parse_args()

    def prepare() -> None:
        for split in arguments.split or splits:
            written = write(arguments.root, split)
            print(f"{split}: {written if isinstance(written, Path) else f'{written} files'}")

    return exit_status(prepare, "start again, for the last split is not whole")

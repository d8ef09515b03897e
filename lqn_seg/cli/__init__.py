"""The command `lqn-seg`. Each sub-command is a module of this folder, imported when it is called.

    lqn-seg predict street.jpg --out out/    # segment or classify images and videos
    lqn-seg eval demo                        # compare methods on a data set

`lqn-seg COMMAND --help` explains a command. `tools/*.py` call the same functions.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lqn_seg import __version__
from lqn_seg.cli.parser import Parser, find_choice

# command -> its module, and what it does
COMMANDS = {
    "predict": ("predict", "segment or classify images, folders of them, videos"),
    "eval": ("evaluate", "compare methods on a data set, clean and corrupted, with intervals"),
    "classify": ("classify", "the same for classification with CLIP"),
    "calibrate": ("calibrate", "calibrate a teacher on clean images"),
    "train": ("train", "train a teacher: an EoMT, a linear head on DINOv2, or a CLIP"),
    "figures": ("figures", "draw the inside of a fit, as PNG and SVG"),
    "explore": ("explore", "the same as an interactive page on this machine"),
    "study": ("study", "run teachers x corruptions x methods x seeds from one YAML file"),
    "leaderboard": ("leaderboard", "make a page of the stored results of studies"),
    "benchmark": ("benchmark", "time every stage of every method on this machine"),
    "flops": ("flops", "count the multiply-adds of every method"),
    "validate": ("validate", "check a data set and the evaluators"),
    "convert": ("convert", "convert an EoMT checkpoint of either layout to safetensors"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns its exit status, 2 where the command line is wrong."""
    given = list(sys.argv[1:] if words is None else words)
    parser = Parser("lqn-seg", usage="lqn-seg COMMAND ...", description=__doc__)
    parser.epilog = "commands:\n" + "\n".join(f"  {k:<12} {COMMANDS[k][1]}" for k in COMMANDS)
    parser.add_argument("--version", action="version", version=f"lqn-seg {__version__}")
    if not given or given[0].startswith("-"):
        parser.parse_args(given)
        parser.print_help()
        return 0 if given else 2
    command, *rest = given
    return command_of(find_choice(parser, command, COMMANDS))(rest)


def command_of(name: str) -> Callable[[Sequence[str] | None], int]:
    """A sub-command's `main`."""
    return import_module(f"lqn_seg.cli.{COMMANDS[name][0]}").main

"""What the commands have in common: their flags, and how many processes they run in.

Needs no torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lqn_seg.command_line import Parser

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo_lqn.yaml"


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
        from lqn_seg.engine.classification_config import load_classification_cfg as load
    else:
        from lqn_seg.engine.config import load_any_cfg as load
    load(arguments.config_file, [*arguments.overrides, *more], "cpu")


def processes(arguments: argparse.Namespace) -> int:
    """How many processes were asked for, on all machines together."""
    return arguments.num_gpus * arguments.num_machines


def start_processes(arguments: argparse.Namespace) -> int:
    """Run this command again in as many processes as were asked for; returns its exit status."""
    from lqn_seg.engine import launch

    machines = (arguments.num_machines, arguments.machine_rank, arguments.dist_url)
    return launch.start(sys.argv, arguments.num_gpus, *machines)

#!/usr/bin/env python
"""A door to `lqn-seg eval` with --eval-only, and else to `lqn-seg train`."""

import sys
from argparse import Namespace
from types import ModuleType

from lqn_seg.cli import evaluate, train


def _command() -> tuple[ModuleType, list[str]]:
    words = [word for word in sys.argv[1:] if word != "--eval-only"]
    return (evaluate if "--eval-only" in sys.argv else train), words


def parse_arguments() -> Namespace:
    command, words = _command()
    return command.parse_arguments(words)


def main() -> int:
    command, words = _command()
    return command.main(words)


if __name__ == "__main__":
    raise SystemExit(main())

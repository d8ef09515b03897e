#!/usr/bin/env python
"""A door to `lqn-seg study`, which takes the same words and explains them with --help."""

from lqn_seg.cli.study import main, parse_arguments

__all__ = ["main", "parse_arguments"]

if __name__ == "__main__":
    raise SystemExit(main())

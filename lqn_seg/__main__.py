"""`python -m lqn_seg` is `lqn-seg`."""

from lqn_seg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

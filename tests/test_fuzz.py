"""A short run of `fuzz_readers.py`: mutated files end in a result or a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_readers
from fuzz_readers import READERS, Reader, fuzz

from lqn_seg.errors import InputError


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused_in_a_sentence(name):
    outcome = fuzz(name, inputs=20, seed=3)
    assert not outcome.findings, outcome.findings
    assert outcome.read + outcome.refused == 20


def test_what_must_not_happen_would_be_found(monkeypatch):
    """A traceback, a hang, a process that dies, a sentence of two lines."""

    def make(folder: Path) -> None:
        (folder / "file.txt").write_text("0")

    def read(folder: Path) -> None:
        text = (folder / "file.txt").read_bytes()
        if text == b"0":
            return
        {0: long, 1: dies, 2: raises, 3: speaks}[len(text) % 4]()

    def long() -> None:
        while True:
            pass

    def dies() -> None:
        import os

        os._exit(1)

    def raises() -> None:
        raise KeyError("here")

    def speaks() -> None:
        raise InputError("two\nlines")

    monkeypatch.setitem(fuzz_readers.READERS, "broken", Reader(make, read))
    result = "\n".join(fuzz("broken", inputs=40, seed=0, patience=0.3).findings)
    for text in ("more than 0.3 s", "the process died", "KeyError", "not one sentence"):
        assert text in result

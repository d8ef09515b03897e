"""`import lqn_seg` is fast, and everything public is there all the same."""

from __future__ import annotations

import pydoc
import re
import subprocess
import sys

import pytest

import lqn_seg


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_takes_neither_torch_nor_time():
    code = "import time; t = time.process_time(); import lqn_seg, sys; "
    code += "print(time.process_time() - t, [m for m in ('torch', 'numpy') if m in sys.modules])"
    seconds, heavy = run(code).split(" ", 1)
    assert float(seconds) < 0.3 and heavy.strip() == "[]"


def test_heavy_imports_would_be_seen():
    code = "import lqn_seg, sys; lqn_seg.load; print('torch' in sys.modules)"
    assert run(code).strip() == "True"


def test_the_public_names_are_there_and_say_what_they_are():
    for name in lqn_seg.__all__:
        assert name in dir(lqn_seg) and getattr(lqn_seg, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        lqn_seg.lode  # noqa: B018
    text = pydoc.plain(pydoc.render_doc(lqn_seg))
    assert re.search(r"load\(\s*model: ", text)  # Python 3.13 breaks lines of signatures
    assert "class Result" in text and "class Model" in text

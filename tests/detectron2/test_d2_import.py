"""What someone without Detectron2 is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocker())
try:
    import lqn_seg.detectron2
except ImportError as error:
    print(error)
"""


def test_without_detectron2_one_sentence_says_how_to_get_it():
    said = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.count("\n") == 1
    assert "lqn_seg.detectron2 needs Detectron2" in said
    assert "pip install --no-build-isolation git+https://" in said

"""The import directions of the house, and life without Detectron2."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lqn_seg"
LOW = {"errors"}
# part -> parts of the package that it may import
ALLOWED = {
    "core": LOW,
    "teachers": LOW | {"core"},
    "heads": LOW | {"core"},
    "data": LOW | {"core", "command_line"},
    "evaluation": LOW | {"core"},
    "visualization": LOW | {"core"},
    "segmentation": LOW | {"core", "teachers", "heads", "data", "evaluation"},
    "classification": LOW | {"core", "teachers", "data", "evaluation"},
}
ALLOWED["engine"] = LOW | {*ALLOWED, "command_line"}
ALLOWED["explorer"] = ALLOWED["engine"] | {"engine"}
ALLOWED["detectron2"] = ALLOWED["engine"] | {"engine"}


def imported_modules(source: str) -> set[str]:
    """Full names of what a module imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


def breaches(part: str, source: str) -> set[str]:
    ours = {name.split(".")[1] for name in imported_modules(source) if name.startswith("lqn_seg.")}
    wrong = ours - ALLOWED[part] - {part}
    if part == "core":
        standard = set(sys.stdlib_module_names)
        tops = {name.split(".")[0] for name in imported_modules(source)}
        wrong |= tops - standard - {"torch", "lqn_seg"}
    if part != "detectron2":
        wrong |= {n for n in imported_modules(source) if n.split(".")[0] == "detectron2"}
    return wrong


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("*/**/*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_downwards(path):
    assert not breaches(path.relative_to(PACKAGE).parts[0], path.read_text())


def test_a_breach_would_be_seen():
    assert breaches("core", "from lqn_seg.data.images import read_image") == {"data"}
    for part in ("core", "teachers", "heads", "evaluation", "visualization"):
        assert breaches(part, "from lqn_seg.command_line import patient") == {"command_line"}
    assert not breaches("data", "from lqn_seg.command_line import patient")
    assert breaches("core", "import numpy") == {"numpy"}
    assert breaches("teachers", "def f():\n    import lqn_seg.heads.eomt") == {"heads"}
    assert breaches("engine", "from detectron2.config import get_cfg") == {"detectron2.config"}


BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'detectron2':
            raise ImportError('blocked')
sys.meta_path.insert(0, Blocker())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *arguments],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )


def test_the_native_path_works_with_detectron2_blocked(small_config):
    code = "import sys; from lqn_seg.engine.run import evaluate; evaluate(sys.argv[1])"
    result = run_python(code, str(small_config))
    assert result.returncode == 0, result.stderr
    assert "PQ by condition" in result.stdout


def test_the_blocker_blocks():
    result = run_python("import lqn_seg.detectron2")
    assert result.returncode != 0
    assert "needs Detectron2, which is not installed here" in result.stderr

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


BLOCK = "import sys; sys.modules['{}'] = None\n"  # as if it were not installed


def run_python(
    code: str, *arguments: str, blocked: str = "detectron2"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked) + code, *arguments],
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


MISTYPED = {
    "no config file configs/demo_lqm.yaml": ("--config", "configs/demo_lqm.yaml"),
    "no key MODEL.LQN.FIT.STPES; did you mean MODEL.LQN.FIT.STEPS?": (
        *("--config", "configs/demo_lqn.yaml"),
        *("MODEL.LQN.FIT.STPES", "3"),
    ),
}


@pytest.mark.parametrize("said", MISTYPED)
@pytest.mark.parametrize(
    "tool", ["train_net.py --eval-only", "train_net.py", "explore.py", "calibrate.py --images ."]
)
def test_what_is_mistyped_is_answered_without_torch(tool, said):
    """Importing torch, and what stands on it, takes 5 seconds and more."""
    file, *flags = tool.split()
    code = f"import runpy; runpy.run_path('tools/{file}', run_name='__main__')"
    result = run_python(code, *flags, *MISTYPED[said], blocked="torch")
    assert (result.returncode, said in result.stderr) == (2, True), result.stderr
    assert result.stderr.count("\n") == 1


def test_a_mistyped_study_is_answered_without_torch():
    code = "import runpy; runpy.run_path('tools/study.py', run_name='__main__')"
    result = run_python(code, "configs/study/quick.yaml", "METRIC", "PW", blocked="torch")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "did you mean 'PQ'?" in result.stderr


def test_a_blocked_torch_would_be_seen():
    assert "torch" in run_python("import lqn_seg.core.fit", blocked="torch").stderr

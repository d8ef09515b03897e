"""The import directions of the house, and life without Detectron2."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lqn_seg"
# Rooms from the ground up; those of one floor do not know each other.
FLOORS = (
    ("errors",),
    ("core",),
    ("teachers", "data", "evaluation", "visualization"),
    ("adapt",),
    ("segmentation", "classification"),
    ("config",),
    ("engine",),
    ("detectron2", "lab", "api"),
    ("cli",),
)
BELOW = {
    room: {below for lower in FLOORS[:floor] for below in lower}
    for floor, rooms in enumerate(FLOORS)
    for room in rooms
}
SHARED_IN_LAB = {"report", "cost"}  # may be used by the lab's other rooms


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


def breaches(path: str, source: str) -> set[str]:
    """What a module imports that lies above it or beside it.

    Args:
        path: of the module, below the package: "lab/study/study.py".
    """
    room, *below = path.removesuffix(".py").split("/")
    modules = imported_modules(source)
    ours = [name.split(".")[1:] for name in modules if name.startswith("lqn_seg.")]
    wrong = {name[0] for name in ours if name[0] not in BELOW[room] | {room}}
    if room == "lab":
        beside = {name[1] for name in ours if name[0] == "lab" and len(name) > 1}
        wrong |= beside - SHARED_IN_LAB - {below[0]}
    if room == "core":
        tops = {name.split(".")[0] for name in modules}
        wrong |= tops - set(sys.stdlib_module_names) - {"torch", "lqn_seg"}
    if room != "detectron2":
        wrong |= {name for name in modules if name.split(".")[0] == "detectron2"}
    return wrong


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("[a-z]*/**/*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_downwards(path):
    assert not breaches(path.relative_to(PACKAGE).as_posix(), path.read_text())


def test_a_breach_would_be_seen():
    assert breaches("core/lqn.py", "from lqn_seg.data.images import read_image") == {"data"}
    assert breaches("data/images.py", "from lqn_seg.teachers.base import normalise") == {"teachers"}
    assert breaches("core/lqn.py", "import numpy") == {"numpy"}
    assert breaches("adapt/a.py", "def f():\n    import lqn_seg.engine.build") == {"engine"}
    assert breaches("engine/build.py", "import detectron2.config") == {"detectron2.config"}
    assert breaches("lab/study/a.py", "from lqn_seg.lab.inspect import b") == {"inspect"}
    assert not breaches("lab/study/a.py", "from lqn_seg.lab.report import b")


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
    code = "import sys; from lqn_seg.lab.report.run import evaluate; evaluate(sys.argv[1])"
    result = run_python(code, str(small_config))
    assert result.returncode == 0, result.stderr
    assert "scores 0-100" in result.stdout


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
    assert "torch" in run_python("import lqn_seg.core.lqn", blocked="torch").stderr

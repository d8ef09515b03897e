"""Every code block of every page, executed: each alone, in one process, in a folder of its own."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lqn_seg import cli
from lqn_seg.config.nodes import load_any_cfg, load_cfg, load_classification_cfg
from lqn_seg.data.shipped import find_config
from lqn_seg.errors import InputError

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
API = sorted((ROOT / "docs" / "api").glob("*.md"))
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))  # tables, nothing to run
LISTED = re.compile(r"^::: (\S+)$", re.MULTILINE)
DOCUMENTS = [
    *(*ROOT.glob("*.md"), *PAGES, *ROOT.glob("lqn_seg/cli/*.py"), *ROOT.glob("datasets/*.*")),
    *RESULTS,
    *ROOT.glob("configs/**/*.yaml"),
]
# What a command reads its configuration with; all others read segmentation's.
LOADERS = {
    "classify": load_classification_cfg,
    **dict.fromkeys(("train", "figures", "explore"), load_any_cfg),
}


def run_commands(source: str) -> None:
    for line in source.strip().splitlines():
        program, *words = shlex.split(line)
        assert program == "lqn-seg" and cli.main(words) == 0, line


def execute(source: str, file: Path) -> dict:
    """The names that a script leaves, as a reader has it: functions can be asked for their
    source."""
    file.write_text(source)
    names: dict = {"__name__": file.stem}
    exec(compile(source, file, "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_a_page_runs_alone(page, like_the_repository, code_blocks):
    for number, (kind, source) in enumerate(code_blocks(page)):
        if kind == "bash":
            run_commands(source)
        elif kind == "yaml":
            Path("my.yaml").write_text(source)
            assert load_cfg("my.yaml").MODEL.LQN.DATASETS
        elif kind == "python" and "detectron2" not in source:  # tests/detectron2 runs those
            execute(source, like_the_repository / f"{page.stem}_{number}.py")


def test_a_block_says_its_language(code_blocks):
    kinds = {kind for page in PAGES for kind, _ in code_blocks(page)}
    assert kinds == {"python", "bash", "yaml", "bibtex"}


def test_the_notebook_runs_without_a_notebook(like_the_repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    content = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    source = "\n".join("".join(cell["source"]) for cell in cells)
    names = execute(source, like_the_repository / "notebook.py")
    damaged = names["damaged"]
    assert [*damaged.compared] == ["teacher", "apm", "lqn"] and damaged._repr_png_()
    assert names["other"].is_calibrated and names["picture"].top(1)[0][0] == "star"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_worked_teacher_is_short(code_blocks):
    source = code_blocks(ROOT / "docs" / "teacher.md")[0][1]
    assert len(source.strip().splitlines()) < 60


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pages_link_to_what_is_there():
    for page in [*ROOT.glob("*.md"), *PAGES, *API, *RESULTS]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target, part in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            if part:
                headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
                assert part in map(anchor, headings), f"{page.name}: {target}#{part}"


def test_pages_and_pictures_are_all_reached():
    site = (ROOT / "mkdocs.yml").read_text()
    for page in [*PAGES[:-1], *API, *RESULTS]:
        assert str(page.relative_to(ROOT / "docs")) in site
    shown = "".join(page.read_text() for page in [*PAGES, *RESULTS, *ROOT.glob("*.md")])
    for picture in (ROOT / "docs" / "images").iterdir():
        assert f"images/{picture.name}" in shown, picture.name
        assert picture.stat().st_size < 600_000, picture.name


# ---- commands that are too long to be run here ---------------------------------------------------


def commands_in(text: str) -> list[str]:
    """Every `lqn-seg ...` and `python tools/...` of a text or of its comments, continued lines
    joined."""
    joined = re.sub(r"\\+\n#? *", " ", text)  # a docstring doubles the backslash
    return re.findall(r"^(?:#? *)((?:python tools/|lqn-seg ).+)$", joined, re.MULTILINE)


def commands() -> list[str]:
    """`commands_in` every document."""
    actual = [line for document in DOCUMENTS for line in commands_in(document.read_text())]
    return sorted({" ".join(line.split(" #")[0].split()) for line in actual})


def understand(command: str, script, monkeypatch) -> None:
    """Parse a command as it does itself, and read its configuration as it does itself."""
    program, first, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [first, *words])
    if program == "python":
        module = script("tools", Path(first).stem)
        actual = module.parse_arguments()  # ends the process where an option is unknown
    else:
        module = importlib.import_module(f"lqn_seg.cli.{cli.COMMANDS[first][0]}")
        actual = module.parse_arguments(words)
    path = getattr(actual, "config_file", None)
    if path not in (None, "my.yaml", "YOUR.yaml"):  # a reader's own
        owner = sys.modules[module.parse_arguments.__module__]
        load = LOADERS.get(owner.__name__.rpartition(".")[2], load_cfg)
        load(path, getattr(actual, "overrides", ()))
    for study in getattr(actual, "studies", ()):
        assert "*" in study or find_config(study, "study")


@pytest.mark.parametrize("command", commands())
def test_commands_in_documents_are_understood(command, script, monkeypatch):
    understand(command, script, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "calibrate.py --images . --config configs/classification/demo.yaml",
        "train_net.py --eval-only --config configs/classification/demo.yaml",
        "classify.py --config configs/demo_lqn.yaml MODEL.WEIGHT x",
    ],
)
def test_a_tool_with_anothers_configuration_would_be_seen(command, script, monkeypatch):
    with pytest.raises(InputError, match="there is no key"):
        understand(f"python tools/{command}", script, monkeypatch)


def test_commands_of_comments_and_over_lines_are_found():
    text = "# by\n#     python tools/a.py \\\n#         --b c\nX: 1  # python tools/no.py\n"
    assert [" ".join(line.split()) for line in commands_in(text)] == ["python tools/a.py --b c"]
    assert commands_in("    python tools/a.py \\\n        --b\n")[0].split()[-1] == "--b"


# ---- API pages -----------------------------------------------------------------------------------


def resolve(name: str):
    """The object of a dotted name, whichever part of it is the module."""
    module, _, rest = name.rpartition(".")
    return getattr(importlib.import_module(module), rest)


@pytest.mark.parametrize("page", API, ids=lambda p: p.name)
def test_what_an_api_page_lists_exists_and_is_documented(page):
    listed = LISTED.findall(page.read_text())
    assert len(listed) >= 3 and len(set(listed)) == len(listed)
    for name in listed:
        if name.startswith("lqn_seg.detectron2."):
            assert is_documented(*name.rsplit(".", 1))  # tests/detectron2 imports it
            continue
        actual = resolve(name)
        if not inspect.isclass(actual):
            assert inspect.getdoc(actual), f"{name} has no docstring"
            continue
        # Its own words, as they are written: a dataclass makes some up, and a module inherits some.
        assert is_documented(actual.__module__, actual.__qualname__), f"{name} has no docstring"
        for key, member in vars(actual).items():
            public = not key.startswith("_") and inspect.isfunction(member)
            assert not public or inspect.getdoc(getattr(actual, key)), f"{name}.{key}"


def is_documented(module: str, name: str) -> bool:
    """Whether the source of a module has a docstring for one of its classes or functions."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    (node,) = (n for n in tree.body if getattr(n, "name", "") == name)
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return bool(ast.get_docstring(node))


def test_api_pages_cover_what_packages_offer():
    listed = {name for page in API for name in LISTED.findall(page.read_text())}
    objects = {id(resolve(n)) for n in listed if not n.startswith("lqn_seg.detectron2.")}
    for package in ("data", "evaluation"):
        module = importlib.import_module(f"lqn_seg.{package}")
        for name in module.__all__:
            offered = getattr(module, name)
            if callable(offered):  # constants are described where they are used
                assert id(offered) in objects, f"{package}.{name}"
    plugin = (ROOT / "lqn_seg" / "detectron2" / "__init__.py").read_text()
    for name in re.findall(r'"(\w+)"', plugin[plugin.index("__all__") :]):
        assert any(n.endswith(f".{name}") for n in listed), name


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "api" / "core" / "index.html").read_text()
    assert "StudentFitter" in page and "recirculate" in page
    for built in tmp_path.rglob("*.html"):  # nothing is asked from elsewhere when a page is opened
        tags = re.findall(r"<(?:script|img|link|iframe)[^>]*>", built.read_text())
        asked = [address for tag in tags for address in re.findall(r"(?:src|href)=.?(\S+)", tag)]
        outside = [a for a in asked if a.startswith(("http", "//"))]
        assert not outside, f"{built.name}: {outside}"

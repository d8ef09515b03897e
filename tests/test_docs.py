"""Every code block of every page, executed: in order, in one process, in a folder of its own."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lqn_seg.engine.classification_config import load_classification_cfg
from lqn_seg.engine.config import load_any_cfg

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
API = sorted((ROOT / "docs" / "api").glob("*.md"))
LISTED = re.compile(r"^::: (\S+)$", re.MULTILINE)
DOCUMENTS = [*ROOT.glob("*.md"), *PAGES, *ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.*")]


def run_commands(source: str, script, monkeypatch) -> None:
    for line in source.strip().splitlines():
        python, tool, *arguments = shlex.split(line)
        assert python == "python"
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        assert script("tools", Path(tool).stem).main() == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_a_page_runs(page, like_the_repository, script, code_blocks, monkeypatch):
    names: dict = {"__name__": page.stem}
    for number, (kind, source) in enumerate(code_blocks(page)):
        if kind == "bash":
            run_commands(source, script, monkeypatch)
        elif kind == "python" and "detectron2" not in source:  # tests/detectron2 runs those
            file = like_the_repository / f"{page.stem}_{number}.py"
            file.write_text(source)  # as a reader has it: functions can be asked for their source
            exec(compile(source, file, "exec"), names)
        else:
            assert kind in ("python", "") and (kind or page.name == "README.md"), kind


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "README.md"], ids=lambda p: p.name)
def test_every_page_has_something_to_run(page, code_blocks):
    assert code_blocks(page)


def test_the_worked_teacher_is_short(code_blocks):
    source = code_blocks(ROOT / "docs" / "teacher.md")[0][1]
    assert len(source.strip().splitlines()) < 60


def test_pages_link_to_what_is_there():
    for page in [*PAGES, *API]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_and_pictures_are_all_reached():
    site = (ROOT / "mkdocs.yml").read_text()
    for page in [*PAGES[:-1], *API]:
        assert str(page.relative_to(ROOT / "docs")) in site
    shown = "".join(page.read_text() for page in [*PAGES, *ROOT.glob("*.md")])
    for picture in (ROOT / "docs" / "images").iterdir():
        assert f"images/{picture.name}" in shown, picture.name
        assert picture.stat().st_size < 600_000, picture.name


# ---- commands that are too long to be run here ---------------------------------------------------


def commands() -> list[str]:
    """Every `python tools/...` of every document, continued lines joined."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ").replace("\\ ", " ")
        found += re.findall(r"^(?:    )?(python tools/.+)$", text, re.MULTILINE)
    return sorted({" ".join(line.split(" #")[0].split()) for line in found})


@pytest.mark.parametrize("command", commands())
def test_commands_in_documents_are_understood(command, script, monkeypatch):
    _, tool, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    module = script("tools", Path(tool).stem)
    found = module.parse_arguments()  # ends the process where an option is unknown
    path = getattr(found, "config_file", None)
    if path not in (None, "my.yaml", "YOUR.yaml"):  # a reader's own
        load = load_classification_cfg if module.__name__ == "train_clip" else load_any_cfg
        load(path, getattr(found, "overrides", ()))
    for study in getattr(found, "studies", ()):
        assert "*" in study or Path(study).is_file()


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
            assert_documented_in_source(name)  # tests/detectron2 imports it
            continue
        found = resolve(name)
        assert inspect.getdoc(found), f"{name} has no docstring"
        if inspect.isclass(found):
            for key, member in vars(found).items():
                public = not key.startswith("_") and inspect.isfunction(member)
                assert not public or inspect.getdoc(getattr(found, key)), f"{name}.{key}"


def assert_documented_in_source(name: str) -> None:
    import ast

    module, _, rest = name.rpartition(".")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    (node,) = (n for n in tree.body if getattr(n, "name", "") == rest)
    assert isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node), name


def test_api_pages_cover_what_packages_offer():
    listed = {name for page in API for name in LISTED.findall(page.read_text())}
    objects = {id(resolve(n)) for n in listed if not n.startswith("lqn_seg.detectron2.")}
    for package in ("core", "data", "evaluation"):
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
    assert "StudentFitter" in page and "Adam" in page
    for built in tmp_path.rglob("*.html"):  # nothing is asked from elsewhere when a page is opened
        tags = re.findall(r"<(?:script|img|link|iframe)[^>]*>", built.read_text())
        asked = [address for tag in tags for address in re.findall(r"(?:src|href)=.?(\S+)", tag)]
        outside = [a for a in asked if a.startswith(("http", "//"))]
        assert not outside, f"{built.name}: {outside}"

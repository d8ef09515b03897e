"""Every code block of every page, executed: in order, in one process, in a folder of its own."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that looks like the repository, where pages may write."""
    for name in ("configs", "datasets", "tools"):
        os.symlink(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(source: str, script, monkeypatch) -> None:
    for line in source.strip().splitlines():
        python, tool, *arguments = shlex.split(line)
        assert python == "python"
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        assert script("tools", Path(tool).stem).main() == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_a_page_runs(page, elsewhere, script, monkeypatch):
    names: dict = {"__name__": page.stem}
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    for kind, source in blocks:
        if kind == "bash":
            run_commands(source, script, monkeypatch)
            continue
        assert kind == "python", f"{page.name} has a block that no test knows: {kind!r}"
        if "detectron2" in source:
            try:
                import detectron2.config  # noqa: F401
            except ImportError:
                continue  # with Detectron2, tests/detectron2 is run and this block too
        exec(compile(source, f"{page.name}", "exec"), names)


def test_the_worked_teacher_is_short():
    source = BLOCK.findall((ROOT / "docs" / "teacher.md").read_text())[0][1]
    assert len(source.strip().splitlines()) < 60


def test_pages_link_to_what_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", BLOCK.sub("", page.read_text())):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"

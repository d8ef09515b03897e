"""The blocks of the pages that need Detectron2."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["quickstart", "detectron2"])
def test_blocks_with_detectron2_run_alone(page, like_the_repository, code_blocks, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    blocks = code_blocks(ROOT / "docs" / f"{page}.md")
    sources = [source for kind, source in blocks if kind == "python" and "detectron2" in source]
    assert sources
    for source in sources:
        exec(compile(source, page, "exec"), {"__name__": page})


def test_no_other_page_has_such_blocks(code_blocks):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    sources = {page.stem: [source for _, source in code_blocks(page)] for page in pages}
    found = {name for name, given in sources.items() if "detectron2" in "".join(given)}
    assert found == {"quickstart", "detectron2"}


def test_what_the_plugins_api_page_lists_exists():
    import re
    from importlib import import_module

    text = (ROOT / "docs" / "api" / "detectron2.md").read_text()
    for module, name in re.findall(r"^::: (\S+)\.(\w+)$", text, re.MULTILINE):
        assert getattr(import_module(module), name).__doc__

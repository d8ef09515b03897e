"""The blocks of the pages that need Detectron2."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/use.md", "docs/detectron2.md", "README.md"])
def test_blocks_with_detectron2_run(page, like_the_repository, code_blocks, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    sources = [source for _, source in code_blocks(ROOT / page) if "detectron2" in source]
    assert sources
    names: dict = {"__name__": page}
    for source in sources:
        exec(compile(source, page, "exec"), names)


def test_what_the_plugins_api_page_lists_exists():
    import re
    from importlib import import_module

    text = (ROOT / "docs" / "api" / "detectron2.md").read_text()
    for module, name in re.findall(r"^::: (\S+)\.(\w+)$", text, re.MULTILINE):
        assert getattr(import_module(module), name).__doc__

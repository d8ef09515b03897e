"""Models that are loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

import lqn_seg

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def scenes() -> list[Path]:
    """Three shipped scenes."""
    return sorted((ROOT / "datasets" / "demo" / "val").glob("*.png"))[:3]


@pytest.fixture(scope="session")
def objects() -> list[Path]:
    """Shipped pictures of one thing each."""
    return sorted((ROOT / "datasets" / "demo_objects" / "val").glob("*/*.png"))[:40:20]


@pytest.fixture(scope="session")
def demo():
    return lqn_seg.load("demo", compare=("teacher", "restore"), threads=1)

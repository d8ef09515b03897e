"""What the tests of the engine share."""

from __future__ import annotations

import pytest

from lqn_seg.engine.evaluate import Evaluation


@pytest.fixture
def executed(monkeypatch) -> list:
    """(condition, image) of every prediction that is made."""
    found: list = []
    original = Evaluation._predict

    def counting(self, condition, records):
        found.extend((str(condition), record["image_id"]) for record in records)
        return original(self, condition, records)

    monkeypatch.setattr(Evaluation, "_predict", counting)
    return found

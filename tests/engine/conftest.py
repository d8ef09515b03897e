"""What the tests of the engine share."""

from __future__ import annotations

import pytest

from lqn_seg.engine.evaluate import Evaluation


@pytest.fixture
def executed(monkeypatch) -> list:
    """(condition, image) of every prediction that is made."""
    done: list = []
    original = Evaluation.predict

    def counting(self, condition, samples):
        done.extend((str(condition), sample.record["image_id"]) for sample in samples)
        return original(self, condition, samples)

    monkeypatch.setattr(Evaluation, "predict", counting)
    return done

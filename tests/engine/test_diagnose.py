"""What a diagnosis says of students whose behaviour is known in advance."""

from __future__ import annotations

from pathlib import Path

import pytest

from lqn_seg.engine.diagnose import diagnose
from lqn_seg.errors import InputError

CONFIG = str(Path(__file__).parents[2] / "configs" / "demo_lqn.yaml")


def test_the_literal_recipe_does_not_see_positions_and_a_fitted_one_does():
    fitted = ["MODEL.LQN.STUDENT.WIDTHS", "(64,)", "MODEL.LQN.FIT.PRECISION", "float32"]
    found = diagnose(CONFIG, ["lqn@paper", "lqn-src@distill"], images=1, overrides=fitted)
    literal, distilled = found["lqn@paper"], found["lqn-src@distill"]
    assert len(literal.error) == len(literal.sensitivity) == 8
    assert max(literal.sensitivity) < 0.01 and min(literal.error) > 0.9
    assert min(distilled.sensitivity) > 0.1 and max(distilled.error) < 0.9
    assert distilled.loss[2] < distilled.loss[1] < distilled.loss[0]
    # Error over variance of a least-squares fit is 1 less what it explains.
    for error, seen in zip(distilled.error, distilled.sensitivity):
        assert error == pytest.approx(1 - seen, abs=0.25)


@pytest.mark.parametrize("method", ["teacher", "apm", "kernel", "blur"])
def test_a_method_without_a_student_of_all_layers_is_refused(method):
    with pytest.raises(InputError, match=f"--methods: {method} has no student"):
        diagnose(CONFIG, [method], images=1)

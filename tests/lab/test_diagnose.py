"""What a diagnosis says of students whose behaviour is known in advance."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from lqn_seg.errors import InputError
from lqn_seg.lab.inspect.diagnose import FitDiagnosis, diagnose, write_diagnosis

CONFIG = str(Path(__file__).parents[2] / "configs" / "demo_lqn.yaml")


def test_the_literal_recipe_does_not_see_positions_and_a_fitted_one_does():
    fitted = ["MODEL.LQN.STUDENT.WIDTHS", "(64,)", "MODEL.LQN.FIT.PRECISION", "float32"]
    diagnoses = dict(diagnose(CONFIG, ["lqn@paper", "lqn-src@distill"], 1, fitted))
    literal, distilled = diagnoses["lqn@paper"], diagnoses["lqn-src@distill"]
    assert len(literal.error) == len(literal.sensitivity) == 8
    assert max(literal.sensitivity) < 0.01 and min(literal.error) > 0.9
    assert min(distilled.sensitivity) > 0.1 and max(distilled.error) < 0.9
    assert len(literal.loss) == 15 and len(distilled.loss) == 250
    # Of random positions each, so single losses vary.
    first, middle, last = (sum(distilled.loss[k : k + 25]) for k in (0, 112, 225))
    assert last < middle < first
    # Error over variance of a least-squares fit is 1 less what it explains.
    for error, sensitivity in zip(distilled.error, distilled.sensitivity):
        assert error == pytest.approx(1 - sensitivity, abs=0.25)


def test_a_diagnosis_on_disk_is_the_one_that_was_made(tmp_path):
    overrides = ["MODEL.LQN.STUDENT.WIDTHS", "(8,)", "MODEL.LQN.FIT.STEPS", "3"]
    diagnoses = dict(diagnose(CONFIG, ["lqn", "lqn@paper"], 1, overrides))
    numbers, picture = write_diagnosis(diagnoses, tmp_path / "deep" / "down")
    read = json.loads(numbers.read_text())
    assert {name: FitDiagnosis(**values) for name, values in read.items()} == diagnoses
    assert [len(values["loss"]) for values in read.values()] == [3, 15]
    pixels = cv2.imread(str(picture))
    assert pixels.shape[1] > 1000 and pixels.std() > 5
    with pytest.raises(InputError, match="cannot write"):
        write_diagnosis(diagnoses, numbers / "below")


@pytest.mark.parametrize(
    ("method", "words"),
    [(name, "has no student") for name in ("teacher", "apm", "kernel", "blur")]
    + [("lqn", "makes no step")],
)
def test_a_method_without_a_student_of_all_layers_is_refused(method, words):
    with pytest.raises(InputError, match=f"--methods: {method} {words}"):
        dict(diagnose(CONFIG, [method], 1, ["MODEL.LQN.FIT.STEPS", "0"]))

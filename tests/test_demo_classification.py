"""The shipped classification demo: small, complete, and worth looking at."""

from __future__ import annotations

from pathlib import Path

from lqn_seg.config.nodes import load_classification_cfg
from lqn_seg.engine.classify import classifications
from lqn_seg.lab.report.classification import ClassificationReport

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "classification" / "demo.yaml"


def test_the_teacher_is_under_ten_megabytes():
    folder = ROOT / "datasets" / "demo_objects" / "teacher"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6


def test_it_recognises_things_and_restoring_helps_against_contrast(tmp_path, monkeypatch):
    monkeypatch.setenv("LQN_SEG_CACHE", str(tmp_path))
    overrides = {
        "CLASSIFICATION.METHODS": "('restore', 'ensemble')",
        "CLASSIFICATION.HISTORY": "False",
        "OUTPUT_DIR": str(tmp_path),
        "MODEL.LQN.EVAL.CORRUPTIONS": "('contrast',)",
        "MODEL.LQN.EVAL.MAX_IMAGES": "0",
    }
    pairs = [word for pair in overrides.items() for word in pair]
    (run,) = classifications(load_classification_cfg(str(CONFIG), pairs)).values()
    run.run(progress=False)
    report = ClassificationReport([run])
    assert report.value("clean", "zero-shot", "acc1") > 65  # one in eight is 12.5
    assert report.value("clean", "ensemble", "acc1") > 65
    assert report.differences["restore"]["contrast-3"].low > 10

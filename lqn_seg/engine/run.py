"""The native engine's evaluation from a config file to a printed report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.config import load_cfg
from lqn_seg.engine.inference import Evaluation
from lqn_seg.engine.report import Report
from lqn_seg.errors import InputError


def evaluate(
    config_file: str,
    overrides: Sequence[str] = (),
    device: str = "",
    chosen: Sequence[str] = (),
    resume: bool = False,
) -> Report:
    """Evaluate the methods of a configuration side by side; print and write the report.

    Args:
        config_file: YAML file.
        overrides: ``KEY VALUE`` pairs.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or empty for the configuration's.
        chosen: methods in place of the configuration's.
        resume: go on from the results in the output folder.

    Raises:
        InputError: something from outside is missing or wrong.
    """
    if chosen:
        overrides = [*overrides, "MODEL.LQN.METHODS", repr(tuple(chosen))]
    cfg = load_cfg(config_file, overrides, device)
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(f"{config_file}: DATASETS.TEST must name exactly one data set")
    evaluation = Evaluation(cfg, get_dataset(cfg.DATASETS.TEST[0]), resume)
    print(
        f"teacher: {cfg.MODEL.LQN.TEACHER.WEIGHTS or 'random weights'} on {cfg.MODEL.DEVICE}; "
        f"results: {evaluation.folder}",
        flush=True,
    )
    if unheard := evaluation.segmenter.unheard:
        print(
            f"no calibration: {', '.join(unheard)} will answer as the teacher does; "
            "tools/calibrate.py makes one from clean images",
            flush=True,
        )
    evaluation.run()
    report = Report(evaluation)
    print(f"\n{report.text()}\n")
    if len(report.methods) == 1:
        print(f"{report.copypaste()}\n")
    print(f"results: {report.write()}")
    panels = report.draw_panels()
    if panels is not None:
        first = sorted(Path(panels).glob("*.png"))[0]
        print(f"pictures: {first}")
    return report

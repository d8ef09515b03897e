"""The native engine's evaluation from a config file to a printed report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.build import describe_teacher
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
    strict: bool = False,
) -> Report | None:
    """Evaluate the methods of a configuration side by side; print and write the report.

    Every process that `launch.joined` has joined takes its share of the images.

    Args:
        config_file: YAML file.
        overrides: ``KEY VALUE`` pairs.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or empty for the configuration's.
        chosen: methods in place of the configuration's.
        resume: go on from the results in the output folder.
        strict: stop at the first image that fails, or when the disk is full.

    Returns:
        the report, in the main process.

    Raises:
        InputError: something from outside is missing or wrong, or there is no room for results.
    """
    if chosen:
        overrides = [*overrides, "MODEL.LQN.METHODS", repr(tuple(chosen))]
    with launch.together():
        cfg = load_cfg(config_file, overrides, device)
        if len(cfg.DATASETS.TEST) != 1:
            raise InputError(f"{config_file}: DATASETS.TEST must name exactly one data set")
        dataset = get_dataset(cfg.DATASETS.TEST[0])
        evaluation = Evaluation(cfg, dataset, resume, strict=strict)
    if launch.is_main():
        _announce(evaluation)
    try:
        evaluation.run()
    except KeyboardInterrupt:
        if launch.is_main():
            print(f"\ninterrupted with {evaluation.progress()}", file=sys.stderr)
        raise
    return _conclude(evaluation) if launch.is_main() else None


def _announce(evaluation: Evaluation) -> None:
    """What is about to run, and from where."""
    cfg = evaluation.cfg
    print(
        f"{describe_teacher(cfg, evaluation.segmenter.teacher, evaluation.segmenter.calibration)}; "
        f"results: {evaluation.folder}",
        flush=True,
    )
    if evaluation.is_subset:
        print(f"SUBSET: {len(evaluation.records)} of {evaluation.total} images", flush=True)
    for problem in evaluation.dataset.problems:
        print(f"left out: {problem}", flush=True)
    print(f"{evaluation.progress()}; processes: {launch.size()}", flush=True)
    if unheard := evaluation.segmenter.unheard:
        print(
            f"no calibration: {', '.join(unheard)} will answer as the teacher does; "
            "tools/calibrate.py makes one from clean images",
            flush=True,
        )


def _conclude(evaluation: Evaluation) -> Report:
    """Print, write and draw what was found."""
    report = Report(evaluation)
    print(f"\n{report.text()}\n")
    if len(report.methods) == 1:
        print(f"{report.copypaste()}\n")
    print(f"results: {report.write()}")
    panels = report.draw_panels()
    if panels is not None:
        first = sorted(Path(panels).glob("*.png"))[0]
        print(f"pictures: {first}")
    if evaluation.shards.unwritten:
        raise InputError(
            f"{evaluation.shards.complaint}: the numbers above are right, but --resume would "
            f"evaluate {len(evaluation.shards.unwritten)} batches of images again"
        )
    return report

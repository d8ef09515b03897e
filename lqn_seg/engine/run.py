"""The native engine's evaluation from a config file to a printed report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.build import describe_calibration, describe_teacher
from lqn_seg.engine.config import load_cfg
from lqn_seg.engine.inference import DatasetRun, Evaluation
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
    execute([evaluation])
    return _conclude(evaluation) if launch.is_main() else None


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
    check_written([evaluation])
    return report


def execute(runs: Sequence[DatasetRun]) -> None:
    """Say what is about to run, and run it; each process does its share.

    Raises:
        KeyboardInterrupt: Ctrl-C; it says how much is done.
    """
    if launch.is_main():
        _announce(runs)
    try:
        for run in runs:
            run.run()
    except KeyboardInterrupt:
        if not launch.is_main():
            raise
        done = ", ".join(run.progress() for run in runs)
        resumable = all(run.resumable for run in runs)
        left = "go on with --resume" if resumable else "what learns on the way starts again"
        raise KeyboardInterrupt(f"{done}; {left}") from None


def _announce(runs: Sequence[DatasetRun]) -> None:
    """What is about to run, and from where."""
    first = runs[0]
    print(
        f"{describe_teacher(first.cfg, first.model.teacher)}; "
        f"{describe_calibration(first.cfg, first.model.calibration)}; "
        f"results: {Path(first.cfg.OUTPUT_DIR) / 'inference'}",
        flush=True,
    )
    for run in runs:
        name = f"{run.dataset.metadata.name}: " if len(runs) > 1 else ""
        if run.is_subset:
            print(f"{name}SUBSET: {len(run.records)} of {run.total} images", flush=True)
        for problem in run.dataset.problems:
            print(f"{name}left out: {problem}", flush=True)
        for note in run.dataset.notes:
            print(f"{name}note: {note}", flush=True)
        print(f"{name}{run.progress()}; processes: {launch.size()}", flush=True)
    if unheard := runs[0].model.unheard:
        print(
            f"no calibration: {', '.join(unheard)} without restoring, and without a student; "
            "tools/calibrate.py makes one from clean images",
            flush=True,
        )


def check_written(runs: Sequence[DatasetRun]) -> None:
    """Raises:
    InputError: the disk had no room for some results, which the report has all the same.
    """
    for run in runs:
        if run.shards.unwritten:
            count = f"{len(run.shards.unwritten)} batches of images"
            lost = (
                f"--resume would evaluate {count} again" if run.resumable else f"{count} are lost"
            )
            raise InputError(f"{run.shards.complaint}: the numbers above are right, but {lost}")

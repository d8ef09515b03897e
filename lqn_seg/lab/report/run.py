"""The native engine's evaluation from a config file to a printed report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lqn_seg.adapt.ineffective import shown
from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.acquaintance import known_classes
from lqn_seg.engine.build import describe_calibration, describe_teacher
from lqn_seg.engine.evaluate import DatasetRun, Evaluation
from lqn_seg.errors import InputError
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.pictures import draw_panels
from lqn_seg.lab.report.report import Report


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
        the report, in the main process. What cannot be made of the scores (a cost, a table, a
        picture) is named on stderr and in ``report.failed``, and is no error; `check_failed` says
        whether too many images were left out.

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
    """Write, print and draw what was found: the scores first, for what follows may fail."""
    report = Report(evaluation)
    conclude(report, [report.copypaste()] if len(report.methods) == 1 else [])
    if panels := draw_panels(evaluation, report.failed):
        print(f"pictures: {panels[0]}")
    check_written([evaluation])
    return report


class AnyReport(Protocol):
    """Of any kind of run."""

    @property
    def failed(self) -> list[str]: ...
    @property
    def score_parts(self) -> list[str]: ...
    @property
    def cost_parts(self) -> list[str]: ...
    def write_results(self) -> Path: ...
    def write(self) -> Path: ...


def conclude(report: AnyReport, more: Sequence[str] = ()) -> None:
    """Write a report's scores, print its tables, count and print its costs, and write all.

    Raises:
        InputError: a file cannot be written; everything is printed all the same.
    """
    attempt("the scores are not written yet", report.write_results, None, report.failed)
    print()
    for part in (*report.score_parts, *report.cost_parts, *more):
        print(f"{part}\n", flush=True)
    print(f"results: {report.write()}", flush=True)


def check_failed(runs: Sequence[DatasetRun]) -> None:
    """Refuse to call a run complete that left out too much: more than ``MODEL.LQN.EVAL.MAX_FAILED``
    of its images, or of its annotations.

    Raises:
        InputError: a data set lacks more; what could be scored is printed and written.
    """
    for run in runs:
        most, failed = run.cfg.MODEL.LQN.EVAL.MAX_FAILED, len(run.records) - len(run.scored)
        problems = len(run.dataset.problems)
        for count, total, what in (
            (failed, len(run.records), "images failed"),
            (problems, run.total + problems, "entries of the data set could not be listed"),
        ):
            if count > most * total:
                raise InputError(
                    f"{run.dataset.metadata.name}: {count} of {total} {what}, more than "
                    f"MODEL.LQN.EVAL.MAX_FAILED allows ({most:g} of them); the numbers above are "
                    "without them"
                )


def execute(runs: Sequence[DatasetRun]) -> None:
    """Say what is about to run, and run it; each process does its share.

    Raises:
        KeyboardInterrupt: Ctrl-C; it says how much is done.
    """
    warnings = shown(runs[0].model.ineffective.values())  # on the console, and there alone
    if launch.is_main():
        _announce(runs)
        for sentence in warnings:
            print(f"warning: {sentence}", flush=True)
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
        who = "this run" if run.model.teacher.name == "CLIP" else "this teacher"
        print(f"{name}{known_classes(run.dataset.metadata.class_names, who)}", flush=True)
        if run.is_subset:
            print(f"{name}SUBSET: {len(run.records)} of {run.total} images", flush=True)
        for problem in run.dataset.problems:
            print(f"{name}left out: {problem}", flush=True)
        for note in run.dataset.notes:
            print(f"{name}note: {note}", flush=True)
        print(f"{name}{run.progress()}; processes: {launch.size()}", flush=True)


def check_written(runs: Sequence[DatasetRun]) -> None:
    """Raises:
    InputError: the disk had no room for some results, which the report has all the same.
    """
    for run in runs:
        if run.store.unwritten:
            count = f"{len(run.store.unwritten)} batches of images"
            lost = (
                f"--resume would evaluate {count} again" if run.resumable else f"{count} are lost"
            )
            raise InputError(f"{run.store.complaint}: the numbers above are right, but {lost}")

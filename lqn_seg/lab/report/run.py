"""From a configuration file to a printed report, for both tasks.

Evaluate and store, print the tables of scores, count and print costs, draw pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lqn_seg.adapt.ineffective import shown
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.config.nodes import load_cfg, load_classification_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine import launch
from lqn_seg.engine.build import describe_calibration, describe_teacher
from lqn_seg.engine.classify import classifications
from lqn_seg.engine.evaluate import DatasetRun, Evaluation
from lqn_seg.engine.probe import known_classes
from lqn_seg.errors import InputError
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.classification import ClassificationReport
from lqn_seg.lab.report.pictures import Panels
from lqn_seg.lab.report.report import Report
from lqn_seg.lab.report.segmentation import SegmentationReport
from lqn_seg.lab.report.wording import wrapped

R = TypeVar("R", bound=Report)


def evaluate(
    config_file: str,
    overrides: Sequence[str] = (),
    device: str = "",
    methods: Sequence[str] = (),
    resume: bool = False,
    strict: bool = False,
    full: bool = False,
) -> SegmentationReport | None:
    """Segment with the methods of a configuration side by side; print and write the report.

    Every process that `launch.joined` has joined takes its share of the images.

    Args:
        methods: methods in place of the configuration's.
        resume: continue from the results in the output folder.
        strict: stop at the first image that fails, or when the disk is full.
        full: print all tables, not the summary alone.

    Returns:
        the report, in the main process. A cost, table or picture that cannot be made is named on
        stderr and in ``report.failed``, and is no error; `check_failed` says whether too many
        images were left out.

    Raises:
        InputError: something from outside is missing or wrong, or there is no room for results.
    """
    if methods:
        overrides = [*overrides, "MODEL.LQN.METHODS", repr(tuple(methods))]
    with launch.together():
        cfg = load_cfg(config_file, overrides, device)
        if len(cfg.DATASETS.TEST) != 1:
            raise InputError(f"{config_file}: DATASETS.TEST must name exactly one data set")
        dataset = get_dataset(cfg.DATASETS.TEST[0])
        evaluation = Evaluation(cfg, dataset, resume, strict=strict)
    panels = Panels(evaluation).watch()
    return _report([evaluation], lambda: SegmentationReport(evaluation, panels), full)


def classify(
    config_file: str,
    overrides: Sequence[str] = (),
    device: str = "",
    resume: bool = False,
    strict: bool = False,
    full: bool = False,
) -> ClassificationReport | None:
    """Classify with the methods of a configuration side by side, as `evaluate` segments."""
    with launch.together():
        cfg = load_classification_cfg(config_file, overrides, device)
        runs = list(classifications(cfg, resume, strict).values())
    return _report(runs, lambda: ClassificationReport(runs), full)


def _report(runs: Sequence[DatasetRun], make: Callable[[], R], full: bool) -> R | None:
    execute(runs)
    if not launch.is_main():
        return None
    report = make()
    conclude(report, full)
    return report


def execute(runs: Sequence[DatasetRun]) -> None:
    """Say what is about to run, and run it; after Ctrl-C, how much is done."""
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
        left = "continue with --resume" if resumable else "a method that keeps a state restarts"
        raise KeyboardInterrupt(f"{done}; {left}") from None


def _announce(runs: Sequence[DatasetRun]) -> None:
    first = runs[0]
    print(
        describe_teacher(first.cfg, first.model.teacher),
        describe_calibration(first.cfg, first.model.calibration),
        f"results: {Path(first.cfg.OUTPUT_DIR) / 'inference'}",
        sep="\n",
    )
    for run in runs:
        metadata = run.dataset.metadata
        who = "this run" if run.model.teacher.name == "CLIP" else "this teacher"
        names = metadata.class_names
        if isinstance(run, Evaluation) and run.segmenter.class_map:
            names = run.segmenter.head.class_names
        lines = [known_classes(names, who)]
        lines += [f"SUBSET: {len(run.records)} of {run.total} images"] if run.is_subset else []
        lines += [f"left out: {problem}" for problem in run.dataset.problems]
        lines += [f"note: {note}" for note in run.dataset.notes]
        lines.append(f"{run.progress()}; processes: {launch.size()}")
        name = f"{metadata.name}: " if len(runs) > 1 else ""
        print("\n".join(wrapped(f"{name}{line}") for line in lines), flush=True)


def conclude(report: Report, full: bool) -> None:
    """Write a report's scores, count its costs, print its summary or all of it, write all, and
    draw. If a file cannot be written, an InputError says so after everything is printed."""
    with fixed_threads(report.cfg.MODEL.LQN.EVAL.THREADS):
        attempt("the scores are not written yet", report.write, None, report.failed)
        print()
        text = ""
        for parts, is_shown in ((report.summary(), True), (report.tables(), full)):
            for part in parts:
                text += f"{part}\n\n"
                if is_shown:
                    print(f"{part}\n", flush=True)
        print(f"results: {report.write(text)}", flush=True)
        if not full:
            print(f"all tables: {Path(report.cfg.OUTPUT_DIR) / 'log.txt'} (--full prints them)")
        for picture in report.draw()[:1]:
            print(f"pictures: {picture}")
    for run in report.runs:
        if count := len(run.store.unwritten):
            lost = "--resume would evaluate {} again" if run.resumable else "{} are lost"
            lost = lost.format(f"{count} batches of images")
            raise InputError(f"{run.store.complaint}: the numbers above are right, but {lost}")


def check_failed(runs: Sequence[DatasetRun]) -> None:
    """Refuse to call a run complete that left out more than ``MODEL.LQN.EVAL.MAX_FAILED``
    allows."""
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

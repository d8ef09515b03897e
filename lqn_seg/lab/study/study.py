"""A study: teachers x seeds x corruptions x severities x methods, from one YAML file.

The file says what is compared (`Study`), `plan` turns it into evaluations of the native engine
(`Job`), and `run_jobs` runs them. What was already evaluated under the same teacher, seed and
overrides is not evaluated again: a run of fewer images, or of other severities, takes the clean
images from the run before it. All scores come from the evaluations' lines (`Evaluation.lines`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.catalog import Dataset
from lqn_seg.data.corruptions import corruption_constants
from lqn_seg.data.file_names import file_names
from lqn_seg.engine import launch
from lqn_seg.engine.build import build_calibration, build_teacher, find_local
from lqn_seg.engine.evaluate import (
    Condition,
    Evaluation,
    calibration_hash,
    mean_stats,
    weights_hash,
)
from lqn_seg.errors import InputError
from lqn_seg.evaluation.panoptic import PanopticEvaluator
from lqn_seg.evaluation.semantic import SemanticEvaluator
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.report import count_gmacs
from lqn_seg.lab.report.wording import title
from lqn_seg.lab.study.study_file import (
    METRICS,
    RunEntry,
    Study,
    value_name,
)

NONE = "none"  # in place of the hash of a calibration that is not there
_OUTPUTS = ("PANOPTIC_ON", "SEMANTIC_ON", "INSTANCE_ON")

# ---- what the files hold -------------------------------------------------------------------------


def study_hashes(study: Study, dataset: Dataset) -> dict[str, str]:
    """SHA-256 of everything that the result depends on beside code and configuration.

    ``dataset`` covers every record (ids, sizes, segments) and the bytes of its files, wherever they
    lie; ``teacher/<name>`` names and values of the weights; ``calibration/<name>`` the numbers of
    the calibration that is used ("none" without one); ``corruptions`` the constants of all
    corruptions.

    Raises:
        InputError: a file is missing.
    """
    constants = json.dumps(corruption_constants(), sort_keys=True)
    hashes = {
        "dataset": dataset_hash(dataset),
        "corruptions": hashlib.sha256(constants.encode()).hexdigest(),
    }
    for name in study.teachers:
        cfg = study_cfg(study, name, ())
        teacher = build_teacher(cfg)
        hashes[f"teacher/{name}"] = weights_hash(teacher.model, digits=64)
        calibration = build_calibration(cfg, teacher)
        hashes[f"calibration/{name}"] = calibration_hash(calibration, digits=64) or NONE
    return hashes


def dataset_hash(dataset: Dataset) -> str:
    """SHA-256 over all records and the bytes of the files they name, wherever those lie."""
    digest = hashlib.sha256()
    for record in dataset.records(strict=False):
        facts = dict(record)
        for key in sorted(facts):
            if key.endswith("file_name"):
                where = f"data set {dataset.metadata.name}, image {record['image_id']}"
                facts[key] = _file_hash(facts[key], where)
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _file_hash(path: str, where: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{where}: cannot read {path} ({error.strerror})") from error


def check_frozen(study: Study, found: Mapping[str, str]) -> None:
    """Refuse to run on other files than those the study was frozen with.

    Raises:
        InputError: a hash of ``FROZEN`` is not the one that was found.
    """
    for name, expected in study.frozen.items():
        if found[name] != expected:
            raise InputError(
                f"study {study.name}: FROZEN says that {name} has SHA-256 {expected}, but it has "
                f"{found[name]}: these are other files than the study's"
            )


# ---- what is evaluated ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One evaluation: a run with one teacher, one seed and one value of the sweep.

    Attributes:
        teacher: its name.
        run: index into the study's runs.
        seed: of every random number.
        value: index into the sweep's values; None without a sweep.
        cfg: the evaluation's configuration; its ``OUTPUT_DIR`` is the job's own.
        methods: in the order of the report.
        conditions: clean first.
        images: how many, from the data set's first.
        same: what has to be equal for two jobs' lines to be interchangeable.
    """

    teacher: str
    run: int
    seed: int
    value: int | None
    cfg: CfgNode
    methods: tuple[str, ...]
    conditions: tuple[Condition, ...]
    images: int
    same: str

    def __str__(self) -> str:
        value = "" if self.value is None else f", value {self.value + 1}"
        return f"teacher {self.teacher}, run {self.run + 1}{value}, seed {self.seed}"

    def covers(self, other: Job, condition: Condition) -> bool:
        """Whether this job's lines hold all that the other asks for under a condition."""
        return (
            self.same == other.same
            and condition in self.conditions
            and set(other.methods) <= set(self.methods)
            and other.images <= self.images
        )


def plan(study: Study, images: int) -> list[Job]:
    """All evaluations of a study, teacher by teacher, with every configuration checked.

    Args:
        images: number of images in the data set.

    Raises:
        InputError: a configuration is wrong, or a run has fewer images than ``BLOCK``.
    """
    jobs = []
    values = range(len(study.sweep.values)) if study.sweep else (None,)
    for teacher in study.teachers:
        for k, run in enumerate(study.runs):
            jobs += [
                _job(study, teacher, k, run, value, seed, images)
                for value in values
                for seed in run.seeds
            ]
    return jobs


def _job(
    study: Study, teacher: str, k: int, run: RunEntry, value: int | None, seed: int, images: int
) -> Job:
    folder = Path(study.output_dir) / teacher / f"run{k + 1}"
    overrides = list(run.overrides)
    if study.sweep and value is not None:
        overrides.append((study.sweep.key, study.sweep.values[value]))
        folders = file_names(map(value_name, study.sweep.values))
        folder /= folders[value_name(study.sweep.values[value])]
    count = min(n for n in (images, run.max_images, study.max_images) if n)
    if study.block > count:
        raise InputError(f"study {study.name}: BLOCK is {study.block}, a run has {count} images")
    cfg = study_cfg(study, teacher, overrides)
    cfg.MODEL.LQN.METHODS = run.methods
    cfg.MODEL.LQN.EVAL.MAX_IMAGES = count
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(folder / f"seed{seed}")
    damaged = [Condition(c, severity) for severity in run.severities for c in run.corruptions]
    return Job(
        teacher=teacher,
        run=k,
        seed=seed,
        value=value,
        cfg=cfg,
        methods=run.methods,
        conditions=(Condition(), *damaged),
        images=count,
        same=repr((teacher, seed, overrides)),
    )


def study_cfg(study: Study, teacher: str, overrides: Sequence[tuple[str, Any]]) -> CfgNode:
    """The evaluation's configuration: the study's, for one of its teachers, with overrides.

    Only the output that the metric needs is made.
    """
    entry, metric_output = study.teachers[teacher], METRICS[study.metric][1]
    pairs: list[tuple[str, Any]] = [
        ("MODEL.LQN.TEACHER.WEIGHTS", entry.weights),
        ("DATASETS.TEST", (study.dataset,)),
        *((f"MODEL.MASK_FORMER.TEST.{key}", key == metric_output) for key in _OUTPUTS),
    ]
    if entry.calibration:
        pairs.append(("MODEL.LQN.CALIBRATION", entry.calibration))
    # All methods of all runs, so that a wrong name is found now.
    methods = tuple(sorted({name for run in study.runs for name in run.methods}))
    pairs += [*overrides, ("MODEL.LQN.METHODS", methods)]
    flat = [text for key, value in pairs for text in (key, _override_text(value))]
    return load_cfg(find_local(study.config), flat)


def _override_text(value: Any) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(value, str):
        return value
    return repr(tuple(value) if isinstance(value, list) else value)


@dataclass(frozen=True)
class Lines:
    """One method's images under one condition.

    Attributes:
        stack: (images, ...) statistics that the metric sums up.
        stats: each image's `Prediction.stats`.
    """

    stack: NDArray[np.float64]
    stats: list[dict[str, float]]


@dataclass
class Finished:
    """A job's lines and costs.

    Attributes:
        lines: condition -> method -> lines of the job's images.
        gmacs: method -> `method_gmacs`; a method whose cost cannot be counted is missing.
        metric: totals (S, ...) -> (S,).
    """

    job: Job
    lines: dict[str, dict[str, Lines]]
    gmacs: dict[str, dict[str, float]]
    metric: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def run_jobs(
    jobs: Sequence[Job],
    dataset: Dataset,
    resume: bool,
    task: str,
    progress: bool = True,
    failed: list[str] | None = None,
) -> list[Finished]:
    """Run what no earlier job of the list has evaluated; jobs with more come first.

    Args:
        failed: receives a sentence for each cost that cannot be counted.

    Raises:
        InputError: as `Evaluation`.
    """
    finished: dict[int, Finished] = {}
    failed = [] if failed is None else failed
    order = sorted(range(len(jobs)), key=lambda k: (-jobs[k].images, -len(jobs[k].methods), k))
    done: list[Finished] = []
    for k in order:
        job = jobs[k]
        sources = {
            str(c): next((f for f in done if f.job.covers(job, c)), None) for c in job.conditions
        }
        todo = [c for c in job.conditions if sources[str(c)] is None]
        fresh = None
        if todo:
            if progress and launch.is_main():
                names = ", ".join(map(str, todo))
                print(f"{job}: {job.images} images, {', '.join(job.methods)}; {names}", flush=True)
            fresh = _evaluate(job, todo, dataset, resume, task, progress, failed)
        lines = {}
        for name, source in sources.items():
            held = (source or fresh).lines[name]  # type: ignore[union-attr]
            lines[name] = {
                method: Lines(held[method].stack[: job.images], held[method].stats[: job.images])
                for method in job.methods
            }
        origin = fresh or next(f for f in sources.values() if f is not None)
        gmacs = {m: origin.gmacs[m] for m in job.methods if m in origin.gmacs}
        finished[k] = Finished(job, lines, gmacs, origin.metric)
        done.append(finished[k])
    return [finished[k] for k in range(len(jobs))]


def _evaluate(
    job: Job,
    todo: Sequence[Condition],
    dataset: Dataset,
    resume: bool,
    task: str,
    progress: bool,
    failed: list[str],
) -> Finished:
    # Strict: differences are paired over images, so every job needs all of them.
    with launch.together():
        evaluation = Evaluation(job.cfg, dataset, resume, conditions=todo, strict=True)
    evaluation.run(progress)
    evaluator = evaluation.evaluators[task]
    assert isinstance(evaluator, PanopticEvaluator | SemanticEvaluator)
    lines: dict[str, dict[str, Lines]] = {}
    gmacs: dict[str, dict[str, float] | None] = {}
    for condition in todo:
        lines[str(condition)] = by_method = {}
        for method in job.methods:
            found = evaluation.lines(condition, method)
            stats = [line["lqn"] for line in found]
            by_method[method] = Lines(evaluator.stack([line[task] for line in found]), stats)
            if method not in gmacs:
                gmacs[method] = attempt(
                    f"teacher {job.teacher}: the cost of {title(method)} could not be counted",
                    partial(count_gmacs, evaluation.segmenter, method, mean_stats(stats)),
                    None,
                    failed,
                )
    counted = {method: costs for method, costs in gmacs.items() if costs}
    return Finished(job, lines, counted, evaluator.metric)

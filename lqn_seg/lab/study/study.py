"""A study: teachers x seeds x corruptions x severities x methods, from one YAML file.

`plan` turns a `Study` into evaluations of the native engine (`Job`), and `run_jobs` runs them. What
was evaluated under the same teacher, seed and overrides is not evaluated again: a run of fewer
images, or of other severities, takes the clean images from the run before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fvcore.common.config import CfgNode

from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.catalog import Dataset, get_dataset
from lqn_seg.data.corruptions import strengths_of
from lqn_seg.data.file_names import file_names
from lqn_seg.engine import launch
from lqn_seg.engine.build import build_calibration, build_teacher
from lqn_seg.engine.evaluate import (
    CLEAN,
    Condition,
    Evaluation,
    calibration_hash,
    mean_stats,
    weights_hash,
)
from lqn_seg.engine.shard import WHOLE, Shard
from lqn_seg.errors import InputError, nearest
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.lab.report.wording import title
from lqn_seg.lab.study.lines import Counting, Lines, Shelf, shelve
from lqn_seg.lab.study.study_file import METRICS, RunEntry, Study, load_study, value_name

NONE = "none"  # in place of the hash of a calibration that is not there

# ---- what the files hold -------------------------------------------------------------------------


def study_hashes(study: Study, dataset: Dataset) -> dict[str, str]:
    """SHA-256 of everything that the result depends on beside code and configuration.

    ``dataset`` covers every record (ids, sizes, segments) and the bytes of its files, wherever they
    lie; ``teacher/<name>`` names and values of the weights; ``calibration/<name>`` its numbers
    ("none" without one); ``corruptions`` is `constants_hash`. An InputError if a file is missing.
    """
    digest = hashlib.sha256()
    for record in dataset.records(strict=False):
        where = f"data set {dataset.metadata.name}, image {record['image_id']}"
        files = [key for key in record if key.endswith("file_name")]
        facts = record | {key: _file_hash(record[key], where) for key in files}
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    hashes = {"dataset": digest.hexdigest(), "corruptions": constants_hash(study)}
    for name in study.teachers:
        cfg = study_cfg(study, name)
        teacher = build_teacher(cfg)
        hashes[f"teacher/{name}"] = weights_hash(teacher.model, digits=64)
        calibration = build_calibration(cfg, teacher)
        hashes[f"calibration/{name}"] = calibration_hash(calibration, digits=64) or NONE
    return hashes


def constants_hash(study: Study) -> str:
    """SHA-256 of the constants of the corruptions in a study."""
    used = {name: strengths_of(name) for run in study.runs for name in run.corruptions}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def _file_hash(path: str, where: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{where}: cannot read {path} ({error.strerror})") from error


def check_frozen(study: Study, hashes: Mapping[str, str]) -> None:
    """Refuse to run on other files than those the study was frozen with."""
    for name, expected in study.frozen.items():
        if hashes[name] != expected:
            raise InputError(
                f"study {study.name}: FROZEN says that {name} has SHA-256 {expected}, but it has "
                f"{hashes[name]}: the files differ from those of the study"
            )


class Opened(NamedTuple):
    """A study's file, its images, all evaluations, and what the files hold (`study_hashes`)."""

    study: Study
    dataset: Dataset
    images: int
    jobs: list[Job]
    hashes: dict[str, str]


def open_study(path: str, overrides: Sequence[str]) -> Opened:
    """Read and check all that can be before the first evaluation."""
    study = load_study(path, overrides)
    dataset = get_dataset(study.dataset)
    images = len(dataset.records(strict=False))
    jobs = plan(study, images)
    hashes = study_hashes(study, dataset)
    check_frozen(study, hashes)
    return Opened(study, dataset, images, jobs, hashes)


# ---- what is evaluated ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One evaluation: a run with one teacher, one seed and one value of the sweep."""

    teacher: str
    run: int  # index into the study's runs, as `value` into the sweep's values
    seed: int
    value: int | None
    cfg: CfgNode
    methods: tuple[str, ...]
    conditions: tuple[Condition, ...]  # clean first
    images: int  # from the data set's first
    same: str  # what has to be equal for two jobs' lines to be interchangeable

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
    """All evaluations of a study on a data set of so many images, every configuration checked."""
    values = range(len(study.sweep.values)) if study.sweep else (None,)
    return [
        _job(study, teacher, k, run, value, seed, images)
        for teacher in study.teachers
        for k, run in enumerate(study.runs)
        for value in values
        for seed in run.seeds
    ]


def _job(
    study: Study, teacher: str, k: int, run: RunEntry, value: int | None, seed: int, images: int
) -> Job:
    folder, overrides = Path(study.output_dir) / teacher / f"run{k + 1}", run.pairs
    if study.sweep and value is not None:
        names = [value_name(v) for v in study.sweep.values]
        overrides = [*overrides, (study.sweep.key, study.sweep.values[value])]
        folder /= file_names(names)[names[value]]
    count = min(n for n in (images, run.max_images, study.max_images) if n)
    if study.block > count:
        raise InputError(
            f"study {study.name}: BLOCK is {study.block}, but a run has {count} images"
        )
    cfg = study_cfg(study, teacher, overrides)
    cfg.MODEL.LQN.METHODS = run.methods
    cfg.MODEL.LQN.EVAL.MAX_IMAGES = count
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(folder / f"seed{seed}")
    damaged = (Condition(c, severity) for severity in run.severities for c in run.corruptions)
    conditions, same = (Condition(), *damaged), repr((teacher, seed, overrides))
    return Job(teacher, k, seed, value, cfg, run.methods, conditions, count, same)


def study_cfg(study: Study, teacher: str, overrides: Sequence[tuple[str, Any]] = ()) -> CfgNode:
    """The study's configuration for a teacher; only outputs that the metrics need are made."""
    outputs, entry = ("PANOPTIC_ON", "SEMANTIC_ON", "INSTANCE_ON"), study.teachers[teacher]
    needed = {METRICS[metric][1] for metric in study.metrics}
    pairs: list[tuple[str, Any]] = [
        ("MODEL.LQN.TEACHER.WEIGHTS", entry.weights),
        *([("MODEL.LQN.TEACHER.NAME", entry.name)] if entry.name else []),
        ("DATASETS.TEST", (study.dataset,)),
        *((f"MODEL.MASK_FORMER.TEST.{o}", o in needed) for o in outputs),
        *overrides,
        # All methods of all runs, so that a wrong name is found now.
        ("MODEL.LQN.METHODS", tuple(sorted({name for run in study.runs for name in run.methods}))),
    ]

    def typed(value: Any) -> str:
        """As on the command line."""
        plain = tuple(value) if isinstance(value, list) else value
        return plain if isinstance(plain, str) else repr(plain)

    flat = [text for key, value in pairs for text in (key, typed(value))]
    return load_cfg(study.config, flat)


@dataclass
class Finished:
    """A job's lines, by condition and method, and what is made of them."""

    job: Job
    lines: dict[str, dict[str, Lines]]
    gmacs: dict[str, dict[str, float]]  # of methods whose cost can be counted
    evaluators: dict[str, Counting]  # by metric, of totals (S, ...)
    continual: frozenset[str] = frozenset()  # methods that start afresh for no image


def run_jobs(
    study: Study, jobs: Sequence[Job], dataset: Dataset, resume: bool, failed: list[str]
) -> list[Finished]:
    """Run what no earlier job of the list has evaluated; jobs with more come first. `failed`
    receives a sentence for each cost that cannot be counted."""
    left_out = _left_out(study, dataset.metadata.class_names)
    done: dict[int, Finished] = {}
    for k, missing in missing_jobs(jobs).items():
        job, sources = jobs[k], list(done.values())
        if missing.conditions:
            sources.append(_evaluate(study, missing, dataset, resume, failed, left_out))
        by_condition = {
            str(c): next(f for f in sources if f.job.covers(job, c)) for c in job.conditions
        }
        lines = {
            name: {m: source.lines[name][m].first(job.images) for m in job.methods}
            for name, source in by_condition.items()
        }
        origin = sources[-1] if missing.conditions else by_condition[CLEAN]
        gmacs = {m: origin.gmacs[m] for m in job.methods if m in origin.gmacs}
        done[k] = Finished(job, lines, gmacs, origin.evaluators, origin.continual)
    return [done[k] for k in range(len(jobs))]


def missing_jobs(jobs: Sequence[Job]) -> dict[int, Job]:
    """Each job with those conditions alone that no job before it covers, by its index, in the order
    in which they run: jobs with more come first."""
    result: dict[int, Job] = {}
    for k in sorted(range(len(jobs)), key=lambda k: (-jobs[k].images, -len(jobs[k].methods), k)):
        job, earlier = jobs[k], [jobs[other] for other in result]
        todo = (c for c in job.conditions if not any(e.covers(job, c) for e in earlier))
        result[k] = replace(job, conditions=tuple(todo))
    return result


def evaluation_of(
    job: Job, dataset: Dataset, resume: bool = False, shard: Shard = WHOLE
) -> Evaluation:
    """Of a job's images under its conditions. Strict: differences are paired over images, so every
    job needs all of them."""
    with launch.together():
        return Evaluation(job.cfg, dataset, resume, job.conditions, strict=True, shard=shard)


def _evaluate(
    study: Study,
    job: Job,
    dataset: Dataset,
    resume: bool,
    failed: list[str],
    left_out: Sequence[int],
) -> Finished:
    if launch.is_main():
        names = ", ".join(map(str, job.conditions))
        print(f"{job}: {job.images} images, {', '.join(job.methods)}; {names}", flush=True)
    evaluation = evaluation_of(job, dataset, resume)
    evaluation.run()
    evaluators: dict[str, Counting] = {}
    for metric in study.metrics:
        evaluator = evaluation.evaluators[METRICS[metric][0]]
        assert isinstance(evaluator, Counting)
        evaluators[metric] = evaluator
    shelf = Shelf(evaluation.folder)
    lines = {
        str(condition): shelve(evaluation.each(condition), job.methods, evaluators, left_out, shelf)
        for condition in job.conditions
    }
    gmacs = {}
    for method in job.methods:
        complaint = f"teacher {job.teacher}: the cost of {title(method)} could not be counted"
        count = partial(_mean_gmacs, evaluation, method, [by[method] for by in lines.values()])
        if counted := attempt(complaint, count, None, failed):
            gmacs[method] = counted
    adapters = evaluation.segmenter.adapters
    continual = frozenset(name for name, adapter in adapters.items() if adapter.history)
    return Finished(job, lines, gmacs, evaluators, continual)


def _mean_gmacs(evaluation: Evaluation, method: str, lines: Sequence[Lines]) -> dict[str, float]:
    """`count_gmacs` per image, where a student is fitted for some of the images alone."""
    means = mean_stats(s for one in lines for s in one.stats)
    if "mixing_weight" not in means:
        return count_gmacs(evaluation.segmenter, method, means)
    share = float(np.mean([s["mixing_weight"] > 0 for one in lines for s in one.stats]))
    without, fitted = (
        count_gmacs(evaluation.segmenter, method, {**means, "mixing_weight": weight})
        for weight in (0.0, 1.0)
    )
    return {key: (1 - share) * without[key] + share * fitted[key] for key in fitted}


def _left_out(study: Study, names: Sequence[str]) -> list[int]:
    """Classes of a data set that do not count."""
    wanted = [nearest(name, names, "class in CLASSES") for name in study.classes or names]
    return [k for k, name in enumerate(names) if name not in wanted]

"""A study in independent jobs, each of which evaluates its part of the images, and the gathering of
what they have found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lqn_seg.data.catalog import Dataset
from lqn_seg.engine.evaluate import Evaluation
from lqn_seg.engine.shard import Shard
from lqn_seg.errors import InputError
from lqn_seg.lab.study.study import Job, evaluation_of, missing_jobs, open_study
from lqn_seg.lab.study.study_file import Study


def run_shard(path: str, overrides: Sequence[str], shard: Shard) -> None:
    """Evaluate a shard of a study's images, going on from what is there, and say what is left. It
    makes no report, because the other shards may not be done."""
    study, dataset, jobs = _opened(path, overrides)
    for job in jobs:
        evaluation = evaluation_of(job, dataset, resume=True, shard=shard)
        print(f"{job}: shard {shard}, {len(evaluation.mine)} of {job.images} images", flush=True)
        evaluation.run()
        print(f"{evaluation.progress()} in {evaluation.folder}", flush=True)
    print(
        f"study {study.name}: shard {shard} is done. When all are, make the report: lqn-seg study "
        f"{path} --resume if they share one OUTPUT_DIR, --merge with their folders if not"
    )


def merge(path: str, overrides: Sequence[str], folders: Sequence[str]) -> None:
    """Copy the results of a study that lie in other folders into its own ``OUTPUT_DIR``.

    Raises:
        InputError: a folder holds nothing of this study, or results that do not belong to those of
            this configuration, or not all results are there.
    """
    study, dataset, jobs = _opened(path, overrides)
    for folder in folders:
        if not any(_beside(folder, study, job).is_dir() for job in jobs):
            raise InputError(
                f"--merge: {folder} holds no results of the study {study.name}: it has no "
                f"{_beside('', study, jobs[0])}"
            )
    absent: list[str] = []
    for job in jobs:
        evaluation = evaluation_of(job, dataset, resume=True)
        counts = set(evaluation.store.found.shards)
        for folder in folders:
            if (there := _beside(folder, study, job)).is_dir():
                counts |= evaluation.store.copy_from(there)
        evaluation.forget_changed()
        if text := _absent(evaluation, counts):
            absent.append(f"{job}: {text}")
        print(f"{job}: {evaluation.progress()}", flush=True)
    if absent:
        raise InputError(
            f"study {study.name} is not complete: {'; '.join(absent)}; run what is missing, or "
            "evaluate it here with --resume in place of --merge"
        )


def _opened(path: str, overrides: Sequence[str]) -> tuple[Study, Dataset, list[Job]]:
    """A study's file, its images, and all evaluations that have something to do."""
    opened = open_study(path, overrides)
    jobs = [job for job in missing_jobs(opened.jobs).values() if job.conditions]
    return opened.study, opened.dataset, jobs


def _beside(folder: str, study: Study, job: Job) -> Path:
    """Where a job's results lie if a folder is its OUTPUT_DIR."""
    return Path(folder) / Path(job.cfg.OUTPUT_DIR).relative_to(study.output_dir) / "inference"


def _absent(evaluation: Evaluation, counts: set[int]) -> str:
    """What is missing, by shard if all runs were split into as many; empty for nothing."""
    batch = evaluation.model.config.batch
    lacking = {
        record["image_id"]: len(names)
        for some in evaluation.store.left(evaluation.records, batch)
        for record, names in some
    }
    if not lacking:
        return ""
    total = len(evaluation.records) * len(evaluation.conditions)
    text = f"{sum(lacking.values())} of {total} results (images x conditions) are missing"
    if len(counts) == 1:
        (count,) = counts
        of = Counter(
            Shard.holding(place, batch, count)
            for place, record in enumerate(evaluation.records)
            if record["image_id"] in lacking
        )
        text += ", of " + ", ".join(f"shard {s} {n} images" for s, n in sorted(of.items()))
    return text

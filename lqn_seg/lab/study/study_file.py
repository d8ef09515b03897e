"""A study's YAML file: what it may say, read with one sentence for each mistake. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.data.file_names import file_names
from lqn_seg.errors import InputError

# Metric -> the evaluator's task, and the one output that it needs.
METRICS = {"PQ": ("panoptic_seg", "PANOPTIC_ON"), "mIoU": ("sem_seg", "SEMANTIC_ON")}


@dataclass(frozen=True)
class TeacherEntry:
    """Keys under a name in ``TEACHERS``.

    Attributes:
        weights: what ``MODEL.LQN.TEACHER.WEIGHTS`` becomes.
        calibration: what ``MODEL.LQN.CALIBRATION`` becomes; empty leaves that key alone, and the
            file beside the weights is taken.
    """

    weights: str
    calibration: str = ""


@dataclass(frozen=True)
class RunEntry:
    """One entry of ``RUNS``; all keys but ``NAME`` and ``MAX_IMAGES`` may stand at the top instead.

    Attributes:
        name: what the report calls it.
        methods: as ``MODEL.LQN.METHODS``.
        corruptions: names; () evaluates clean images alone.
        severities: 1 .. 5.
        seeds: each is an evaluation of its own; it also draws other noise and fog.
        max_images: the first so many images; 0 takes all.
        overrides: (key, value) of the evaluation's configuration.
    """

    name: str = ""
    methods: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (3,)
    seeds: tuple[int, ...] = (0,)
    max_images: int = 0
    overrides: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class SweepEntry:
    """Keys under ``SWEEP``: the methods are evaluated once per value of one key.

    Attributes:
        key, values: of the evaluation's configuration.
        label: of the horizontal axis.
        paper: (value, score) pairs that somebody else published.
        paper_label: metric, data set and convention of those.
    """

    key: str
    values: tuple[Any, ...]
    label: str = ""
    paper: tuple[tuple[Any, float], ...] = ()
    paper_label: str = ""


@dataclass(frozen=True)
class Study:
    """A study's file.

    Attributes:
        name: of the file, without its suffix.
        config: evaluation configuration that every evaluation starts from.
        dataset, metric: what is scored; ``PQ`` or ``mIoU``.
        output_dir: receives the evaluations, ``results.json``, ``table.md`` and ``plot.png``.
        teachers, runs, sweep: what is evaluated.
        baseline: method that differences are taken to.
        focus: method that is also compared with every other one; ignored by runs without it.
        block: neighbouring images that the bootstrap keeps together (video frames).
        bootstrap_samples: of every interval.
        max_images: no run takes more; 0 is no limit.
        frozen: name -> SHA-256 that has to be found, see `study_hashes`.
        splits: which split was tuned on and which is reported, for the report.
    """

    name: str
    config: str
    dataset: str
    output_dir: str
    teachers: dict[str, TeacherEntry]
    runs: tuple[RunEntry, ...]
    metric: str = "PQ"
    sweep: SweepEntry | None = None
    baseline: str = "teacher"
    focus: str = "lqn"
    block: int = 1
    bootstrap_samples: int = 2000
    max_images: int = 0
    frozen: dict[str, str] = field(default_factory=dict)
    splits: str = ""


_RUN_KEYS = tuple(f.name.upper() for f in dataclasses.fields(RunEntry))
_SHARED_KEYS = tuple(key for key in _RUN_KEYS if key not in ("NAME", "MAX_IMAGES"))
_STUDY_KEYS = (
    *(f.name.upper() for f in dataclasses.fields(Study) if f.name != "name"),
    *_SHARED_KEYS,
)


def load_study(path: str, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study's YAML file.

    Args:
        path: the file.
        overrides: ``KEY VALUE`` pairs. A key of the study (``OUTPUT_DIR``,
            ``TEACHERS.small.WEIGHTS``) changes the study, one of a run (``SEEDS``) all its runs;
            any other is a key of the evaluation's configuration and goes into every run.

    Raises:
        InputError: the file is missing or malformed, a key is unknown (the nearest is suggested), a
            value is of the wrong kind, or names do not fit together.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no study file {path}")
    if len(overrides) % 2:
        raise InputError(f"overrides come as KEY VALUE pairs; {overrides[-1]!r} has no value")
    try:
        raw = yaml.safe_load(Path(path).read_text())
        given = {key: yaml.safe_load(text) for key, text in zip(overrides[::2], overrides[1::2])}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"study {path}: {' '.join(str(error).split())}") from error
    whole = _Node(raw, path, "")
    further = []
    for (key, value), text in zip(given.items(), overrides[1::2]):
        if key == "SEED":
            raise InputError("SEED is set by the study: override SEEDS")
        if key.split(".")[0] in _STUDY_KEYS:
            if key in _SHARED_KEYS and isinstance(raw.get("RUNS"), list):
                for run in raw["RUNS"]:
                    if isinstance(run, dict):
                        run.pop(key, None)
            _replace(raw, key.split("."), value)
        else:
            further.append((key, text))
    return _study(whole, Path(path).stem, tuple(further))


def _replace(raw: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise InputError(f"override {'.'.join(parts)}: {part} has no keys below it")
    raw[parts[-1]] = value


class _Node:
    """A mapping of the file, with readers that say in one sentence what is wrong, and where."""

    def __init__(self, raw: Any, path: str, where: str, keys: Iterable[str] = ()) -> None:
        self.raw, self.path, self.where = raw, path, where
        if not isinstance(raw, dict):
            raise self.error("", f"must be a mapping of keys, not {raw!r}")
        for key in raw if keys else ():
            self.choice("", key, tuple(keys), "key")

    def error(self, key: str, complaint: str) -> InputError:
        name = ".".join(part for part in (self.where, key) if part)
        return InputError(f"study {self.path}: {name + ' ' if name else ''}{complaint}")

    def __contains__(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def choice(self, key: str, value: Any, choices: Sequence[str], what: str) -> Any:
        """The value if it is one of the choices; else the nearest is suggested."""
        if value in choices:
            return value
        folded = {choice.lower(): choice for choice in choices}
        near = get_close_matches(str(value).lower(), folded, n=1, cutoff=0)[0]
        raise self.error(key, f"has no {what} {value!r}: did you mean {folded[near]!r}?")

    def get(self, key: str, kind: str, fits: Callable[[Any], bool], default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            if default is None:
                raise self.error(key, "is missing")
            return default
        if not fits(value):
            raise self.error(key, f"must be {kind}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return self.get(key, "text", lambda v: isinstance(v, str), default)

    def whole(self, key: str, default: int, least: int = 0) -> int:
        kind = f"a whole number of at least {least}"
        return self.get(key, kind, lambda v: _is_whole(v) and v >= least, default)

    def list(self, key: str, kind: str, fits: Callable[[Any], bool], default: Any) -> tuple:
        """A list without repetitions whose every entry fits."""

        def right(value: Any) -> bool:
            return isinstance(value, list) and all(map(fits, value)) and not _twice(value)

        return tuple(self.get(key, f"a list of {kind}, none of them twice", right, default))

    def node(self, key: str, keys: Iterable[str] = ()) -> _Node:
        where = f"{self.where}.{key}" if self.where else key
        return _Node(self.raw.get(key), self.path, where, keys)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _twice(values: Sequence[Any]) -> bool:
    return any(value in values[:k] for k, value in enumerate(values))


def _study(node: _Node, name: str, further: tuple[tuple[str, Any], ...]) -> Study:
    node = _Node(node.raw, node.path, "", _STUDY_KEYS)
    shared = dataclasses.replace(_run(node, RunEntry()), max_images=0)
    runs = [shared]
    if "RUNS" in node:
        entries = node.get("RUNS", "a list of runs", lambda v: isinstance(v, list) and bool(v), [])
        nodes = [
            _Node(entry, node.path, f"RUNS[{k}]", _RUN_KEYS) for k, entry in enumerate(entries)
        ]
        runs = [_run(entry, shared) for entry in nodes]
    runs = [dataclasses.replace(run, overrides=(*run.overrides, *further)) for run in runs]
    metric = node.choice("METRIC", node.text("METRIC", "PQ"), tuple(METRICS), "name")
    baseline, focus = node.text("BASELINE", "teacher"), node.text("FOCUS", "lqn")
    for k, run in enumerate(runs):
        if not run.methods:
            raise node.error("METHODS", f"is missing, also in run {k + 1}")
        if baseline not in run.methods:
            raise node.error("", f"run {k + 1} lacks the BASELINE {baseline} among its METHODS")
    teachers = {
        str(key): TeacherEntry(entry.text("WEIGHTS"), entry.text("CALIBRATION", ""))
        for key in node.node("TEACHERS").raw
        for entry in [node.node("TEACHERS").node(key, ("WEIGHTS", "CALIBRATION"))]
    }
    if not teachers:
        raise node.error("TEACHERS", "names no teacher")
    for key, name in file_names(teachers).items():
        if name != key:
            raise node.error("TEACHERS", f"cannot name a folder after {key!r}")
    of_teachers = [f"{what}/{key}" for what in ("teacher", "calibration") for key in teachers]
    known = ("dataset", "corruptions", *of_teachers)
    frozen = node.node("FROZEN", known) if "FROZEN" in node else None
    return Study(
        name=name,
        config=node.text("CONFIG"),
        dataset=node.text("DATASET"),
        output_dir=node.text("OUTPUT_DIR"),
        teachers=teachers,
        runs=tuple(runs),
        metric=metric,
        sweep=_sweep(node) if "SWEEP" in node else None,
        baseline=baseline,
        focus=focus,
        block=node.whole("BLOCK", 1, least=1),
        bootstrap_samples=node.whole("BOOTSTRAP_SAMPLES", 2000, least=1),
        max_images=node.whole("MAX_IMAGES", 0),
        frozen={key: frozen.text(key) for key in frozen.raw} if frozen else {},
        splits=node.text("SPLITS", ""),
    )


def _run(node: _Node, shared: RunEntry) -> RunEntry:
    """A run's keys, each of which falls back on those that all runs share."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str)

    def is_severity(value: Any) -> bool:
        return _is_whole(value) and 1 <= value <= 5

    def is_seed(value: Any) -> bool:
        return _is_whole(value) and value >= 0

    def is_pairs(value: Any) -> bool:
        return isinstance(value, list) and not len(value) % 2 and all(map(_is_key, value[::2]))

    corruptions = node.list("CORRUPTIONS", "corruptions", is_text, shared.corruptions)
    for name in corruptions:
        node.choice("CORRUPTIONS", name, CORRUPTIONS, "name")
    flat = node.get("OVERRIDES", "a list KEY, VALUE, KEY, VALUE, ...", is_pairs, [])
    return RunEntry(
        name=node.text("NAME", ""),
        methods=node.list("METHODS", "methods", is_text, shared.methods),
        corruptions=corruptions,
        severities=node.list(
            "SEVERITIES", "severities from 1 to 5", is_severity, shared.severities
        ),
        seeds=node.list("SEEDS", "whole numbers from 0 on", is_seed, shared.seeds),
        max_images=node.whole("MAX_IMAGES", 0),
        overrides=(*shared.overrides, *zip(flat[::2], flat[1::2])),
    )


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and value != "SEED"


def _sweep(node: _Node) -> SweepEntry:
    keys = [f.name.upper() for f in dataclasses.fields(SweepEntry)]
    inner = node.node("SWEEP", keys)
    values = inner.list("VALUES", "values", lambda v: v is not None, None)
    if _twice([value_name(value) for value in values]):
        raise inner.error("VALUES", f"holds values that read the same: {list(values)!r}")
    pairs = inner.list(
        "PAPER",
        "[value, score] pairs",
        lambda v: isinstance(v, list) and len(v) == 2 and _is_number(v[1]),
        (),
    )
    label = inner.text("PAPER_LABEL", "")
    if pairs and not label:
        raise inner.error("PAPER", "needs a PAPER_LABEL that says what its scores are")
    for value, _ in pairs:
        if not _is_number(value) and value not in values:
            raise inner.error("PAPER", f"has the value {value!r}, which is not among VALUES")
    key = inner.text("KEY")
    paper = tuple((value, float(score)) for value, score in pairs)
    return SweepEntry(key, values, inner.text("LABEL", key), paper, label)


def value_name(value: Any) -> str:
    """A sweep's value as it is printed; (1, 2, 3, 4) is "1-4"."""
    if not isinstance(value, list | tuple):
        return str(value)
    if len(value) > 2 and all(_is_whole(v) and v == value[0] + k for k, v in enumerate(value)):
        return f"{value[0]}-{value[-1]}"
    return ", ".join(map(str, value))

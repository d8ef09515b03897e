"""A study's YAML file: what it may say, read with one sentence for each mistake. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
import yaml
from msgspec import Meta, Struct, structs

from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.data.file_names import file_names
from lqn_seg.data.shipped import find_config
from lqn_seg.errors import InputError

# Metric -> the evaluator's task, and the one output that it needs.
METRICS = {
    "PQ": ("panoptic_seg", "PANOPTIC_ON"),
    "mIoU": ("sem_seg", "SEMANTIC_ON"),
    "mIoU within 3 px of boundaries": ("trimap", "SEMANTIC_ON"),
    "ECE of the pixels": ("confidence", "SEMANTIC_ON"),
}
LOWER_IS_BETTER = ("ECE of the pixels",)
FOCUS = "lqn"  # the method that is also compared with every other one


def _says(words: str, **bounds: Any) -> Meta:
    """What a value must be, as the sentence about a wrong one has it. Tuples hold nothing twice."""
    return Meta(description=words, **bounds)


_LISTED = "a list of {}, none of them twice"
Text = Annotated[str, _says("text")]
Whole = Annotated[int, _says("a whole number of at least 0", ge=0)]
Positive = Annotated[int, _says("a whole number of at least 1", ge=1)]
Severity = Annotated[int, Meta(ge=1, le=5)]
Score = Annotated[float, Meta(ge=-1e9, le=1e9)]  # finite
Value = bool | int | float | str | list[Any]


class TeacherEntry(Struct, frozen=True, rename=str.upper):
    """Keys under a name in ``TEACHERS``: what those of ``MODEL.LQN.TEACHER`` become."""

    weights: Text
    name: Text = ""  # the configuration's where it is empty


class SweepEntry(Struct, frozen=True, rename=str.upper):
    """Keys under ``SWEEP``: the methods are evaluated once per value of a key of the
    configuration."""

    key: Text
    values: Annotated[tuple[Value, ...], _says(_LISTED.format("values"))]
    label: Text = ""  # of the horizontal axis; the key where it is empty
    # What somebody else published; its label has metric, data set and convention.
    paper: Annotated[
        tuple[tuple[Value, Score], ...], _says(_LISTED.format("[value, score] pairs"))
    ] = ()
    paper_label: Text = ""


class Shared(Struct, frozen=True, rename=str.upper):
    """Keys of an entry of ``RUNS`` that may stand at the top instead, for all runs."""

    methods: Annotated[tuple[str, ...], _says(_LISTED.format("methods"))] = ()
    # Names; none evaluates clean images alone.
    corruptions: Annotated[tuple[str, ...], _says(_LISTED.format("corruptions"))] = ()
    severities: Annotated[tuple[Severity, ...], _says(_LISTED.format("severities from 1 to 5"))] = (
        3,
    )
    # Each is an evaluation of its own, and draws other noise and fog.
    seeds: Annotated[tuple[Whole, ...], _says(_LISTED.format("whole numbers from 0 on"))] = (0,)
    # Of the evaluation's configuration; a run's follow the shared.
    overrides: Annotated[list[Any], _says("a list KEY, VALUE, KEY, VALUE, ...")] = []


class RunEntry(Shared, frozen=True, rename=str.upper):
    """One entry of ``RUNS``: its name in the report, and how many images it takes; 0 is all."""

    name: Text = ""
    max_images: Whole = 0

    @property
    def pairs(self) -> list[tuple[str, Any]]:
        return list(zip(self.overrides[::2], self.overrides[1::2]))


class StudyFile(Shared, frozen=True, rename=str.upper, kw_only=True):
    config: Text  # that every evaluation starts from
    dataset: Text
    output_dir: Text  # of evaluations, ``results.json``, ``table.md`` and ``plot.png``
    teachers: dict[str, TeacherEntry]
    runs: list[RunEntry]
    metric: Text = "PQ"
    # Metrics with columns of their own, of the same predictions.
    also: Annotated[tuple[Text, ...], _says(_LISTED.format("metrics"))] = ()
    classes: Annotated[tuple[Text, ...], _says(_LISTED.format("classes"))] = ()  # empty: all
    # Methods of which a run has several settings, as ``tent`` and ``tent(steps=3)``: they become
    # one row, each condition with the settings that are best on the other corruptions.
    tuned: Annotated[tuple[Text, ...], _says(_LISTED.format("methods"))] = ()
    sweep: SweepEntry | None = None
    baseline: Text = "teacher"  # that differences are taken to
    block: Positive = 1  # neighbouring images that the bootstrap keeps together (video frames)
    bootstrap_samples: Positive = 2000
    max_images: Whole = 0  # no run takes more; 0 is no limit
    # SHA-256 that has to be found, see `study_hashes`.
    frozen: Annotated[dict[str, str], _says("a mapping of names to text")] = {}
    splits: Text = ""  # which split was tuned on and which is reported, for the report


class Study(StudyFile, frozen=True, kw_only=True):
    """A study's file, and its name without the suffix."""

    name: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metric that is compared first."""
        return self.metric, *self.also


def variants(base: str, methods: Sequence[str]) -> list[str]:
    """The methods that are one with several settings: "tent" and "tent(steps=3)" are "tent"."""
    return [method for method in methods if method.partition("(")[0] == base]


_SHARED = tuple(field.encode_name for field in structs.fields(Shared))
_RUN_KEYS = tuple(field.encode_name for field in structs.fields(RunEntry))
_KEYS = tuple(field.encode_name for field in structs.fields(StudyFile))
T = TypeVar("T", bound=Struct)


def load_study(path: str, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study's YAML file.

    Args:
        overrides: ``KEY VALUE`` pairs. A key of the study (``OUTPUT_DIR``,
            ``TEACHERS.small.WEIGHTS``) changes the study, one of a run (``SEEDS``) all its runs;
            any other is a key of the evaluation's configuration and goes into every run.

    Raises:
        InputError: the file is missing or malformed, a key is unknown (the nearest is suggested), a
            value is of the wrong kind, or names do not fit together.
    """
    file = find_config(path, "study")
    if len(overrides) % 2:
        raise InputError(f"overrides come as KEY VALUE pairs; {overrides[-1]!r} has no value")
    try:
        raw = yaml.safe_load(file.read_text())
        values = [yaml.safe_load(text) for text in overrides[1::2]]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"study {path}: {' '.join(str(error).split())}") from error
    further: list[str] = []
    try:
        raw = _keys(raw, ())
        for key, text, value in zip(overrides[::2], overrides[1::2], values):
            if key.split(".")[0] in _KEYS:
                _replace(raw, key, value)
            elif key == "SEED":
                raise InputError("SEED is set by the study; override SEEDS")
            else:
                further += [key, text]
        return _study(_keys(raw, _KEYS), file.stem, further)
    except InputError as error:
        raise InputError(f"study {path}: {error}") from None


def _replace(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of the study, which no run then has another value for."""
    *parents, last = key.split(".")
    runs = raw.get("RUNS")
    for run in runs if key in _SHARED and isinstance(runs, list) else ():
        if isinstance(run, dict):
            run.pop(key, None)
    for part in parents:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise InputError(f"override {key}: {part} has no keys below it")
    raw[last] = value


def _study(raw: dict[str, Any], name: str, further: Sequence[str]) -> Study:
    shared = _read({key: raw[key] for key in _SHARED if key in raw}, Shared)
    entries = raw.get("RUNS", [{}])
    if not isinstance(entries, list) or not entries:
        raise InputError(f"RUNS must be a list of runs, not {entries!r}")
    usual = {key: raw[key] for key in _SHARED if key in raw and key != "OVERRIDES"}
    runs = []
    for k, entry in enumerate(entries):
        run = _read({**usual, **_keys(entry, _RUN_KEYS, f"RUNS[{k}]")}, RunEntry, f"RUNS[{k}]")
        every = [*shared.overrides, *run.overrides, *further]
        runs.append(structs.replace(run, overrides=every))
    teachers = {
        str(key): _read(entry, TeacherEntry, f"TEACHERS.{key}")
        for key, entry in _keys(raw.get("TEACHERS"), (), "TEACHERS").items()
    }
    sweep = _sweep(raw["SWEEP"]) if "SWEEP" in raw else None
    file = _read({**raw, "RUNS": runs, "TEACHERS": teachers, "SWEEP": sweep}, StudyFile)
    study = Study(name=name, **structs.asdict(file))
    _check_names(study)
    return study


def _check_names(study: Study) -> None:
    _check(study.metric, tuple(METRICS), "name", "METRIC ")
    for metric in study.also:
        _check(metric, tuple(METRICS), "name", "ALSO ")
        if metric == study.metric:
            raise InputError(f"ALSO names {metric}, which is the METRIC")
    for metric in study.metrics if study.classes else ():
        if METRICS[metric][0] == "confidence":
            raise InputError(f"METRIC {metric} is of all classes together: leave CLASSES out")
    _check_tuned(study)
    for k, run in enumerate(study.runs):
        if not run.methods:
            raise InputError(f"METHODS is missing at the top and in run {k + 1}")
        if study.baseline not in run.methods:
            raise InputError(f"run {k + 1} lacks the BASELINE {study.baseline} among its METHODS")
        for corruption in run.corruptions:
            _check(corruption, CORRUPTIONS, "name", "CORRUPTIONS ")
    if not study.teachers:
        raise InputError("TEACHERS names no teacher")
    for key, name in file_names(study.teachers).items():
        if name != key:
            raise InputError(f"TEACHERS cannot name a folder after {key!r}")
    of_teachers = [f"{what}/{key}" for what in ("teacher", "calibration") for key in study.teachers]
    for key in study.frozen:
        _check(key, ("dataset", "corruptions", *of_teachers), "key", "FROZEN ")


def _check_tuned(study: Study) -> None:
    listed = {method for run in study.runs for method in run.methods}
    for base in study.tuned:
        _check(base, {method.partition("(")[0] for method in listed}, "method", "TUNED ")
        if study.baseline in variants(base, list(listed)):
            raise InputError(f"TUNED names {base}, which is the BASELINE")
        for k, run in enumerate(study.runs):
            several = len(variants(base, run.methods)) > 1
            if several and len(run.corruptions) < 2:
                raise InputError(
                    f"TUNED {base} is chosen on other corruptions, but run {k + 1} has "
                    f"{len(run.corruptions)}: at least 2 are needed"
                )
        if all(len(variants(base, run.methods)) < 2 for run in study.runs):
            raise InputError(f"TUNED names {base}, of which no run has two settings to choose from")


def _sweep(raw: Any) -> SweepEntry:
    sweep = _read(raw, SweepEntry, "SWEEP")
    names = [value_name(value) for value in sweep.values]
    if len(set(names)) < len(names):
        raise InputError(f"SWEEP.VALUES holds values that read the same: {list(sweep.values)!r}")
    if sweep.paper and not sweep.paper_label:
        raise InputError("SWEEP.PAPER needs a PAPER_LABEL that says what its scores are")
    for value, _ in sweep.paper:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value not in sweep.values and not is_number:
            raise InputError(f"SWEEP.PAPER has the value {value!r}, which is not among VALUES")
    return structs.replace(sweep, label=sweep.label or sweep.key)


def _check(name: Any, choices: Collection[str], what: str, where: str) -> None:
    if name not in choices:
        folded = {choice.lower(): choice for choice in choices}
        near = get_close_matches(str(name).lower(), folded, n=1, cutoff=0)[0]
        raise InputError(f"{where}has no {what} {name!r}: did you mean {folded[near]!r}?")


def _keys(raw: Any, known: Collection[str], where: str = "") -> dict[Any, Any]:
    """A mapping of known keys, of any where none are known; null is a key that is not there."""
    if not isinstance(raw, dict):
        raise InputError(f"{where} must be a mapping of keys, not {raw!r}".lstrip())
    for key in raw if known else ():
        _check(key, known, "key", f"{where} ".lstrip())
    return {key: value for key, value in raw.items() if value is not None}


def _read(raw: Any, kind: type[T], where: str = "") -> T:
    """A mapping as a struct, whose annotations say what is wrong with a value."""
    fields = {field.encode_name: field for field in structs.fields(kind)}
    given = _keys(raw, fields, where)
    prefix = f"{where}." if where else ""
    for key, field in fields.items():
        if field.required and key not in given:
            raise InputError(f"{prefix}{key} is missing")
    wrong = [key for key, value in given.items() if _is_wrong(key, value)]
    try:
        value = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        wrong = re.findall(r"\$\.(\w+)", str(error))
    if not wrong:
        return value
    annotation = get_type_hints(kind, include_extras=True)[fields[wrong[0]].name]
    words = annotation.__metadata__[0].description
    raise InputError(f"{prefix}{wrong[0]} must be {words}, not {given[wrong[0]]!r}")


def _is_wrong(key: str, value: Any) -> bool:
    """Whether a list of overrides has no keys, or another list something twice."""
    if not isinstance(value, list) or key == "RUNS":
        return False
    if key == "OVERRIDES":
        keys = value[::2]
        return len(value) % 2 == 1 or any(not isinstance(k, str) or k == "SEED" for k in keys)
    return any(v in value[:k] for k, v in enumerate(value))


def value_name(value: Any) -> str:
    """A sweep's value as it is printed; (1, 2, 3, 4) is "1-4"."""
    if not isinstance(value, list | tuple):
        return str(value)
    is_run = all(type(v) is int and v == value[0] + k for k, v in enumerate(value))
    if len(value) > 2 and is_run:
        return f"{value[0]}-{value[-1]}"
    return ", ".join(map(str, value))

"""What a study's ``results.json`` holds, field by field; `read_results` refuses anything else.

The version in `SCHEMA` changes whenever a field is renamed, removed or changes its meaning; a new
field that may be absent keeps it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from lqn_seg.errors import InputError

SCHEMA = "lqn-seg-study/1"
Number = float | None  # null: undefined, or not counted
ByName = dict[str, Number]


def _says(words: str) -> Meta:
    return Meta(description=words)


class Interval(Struct, forbid_unknown_fields=True):
    """A difference in points of the metric."""

    difference: Annotated[Number, _says("on all images")]
    low: Annotated[Number, _says("lower end of the 95% interval")]
    high: Annotated[Number, _says("upper end")]


ByGroup = dict[str, Interval]


class RankOf(Struct, forbid_unknown_fields=True):
    """A method's place in its table."""

    rank: Annotated[Number, _says("by the score on all images, from 1; ties share the mean rank")]
    low: Annotated[Number, _says("2.5% quantile over the resamples")]
    high: Annotated[Number, _says("97.5% quantile")]


class Budget(Struct, forbid_unknown_fields=True):
    """A method's cost over that of the table's `budget_unit`."""

    passes: Annotated[Number, _says("multiply-adds; null where they are not counted")]
    time: Annotated[Number, _says("milliseconds, all stages")]


class Tuned(Struct, forbid_unknown_fields=True):
    """A method whose settings were chosen on the other corruptions."""

    variants: Annotated[list[str], _says("the settings to choose from, as methods")]
    chosen: Annotated[dict[str, str], _says("condition to the settings that were taken there")]


class MethodOf(Struct, forbid_unknown_fields=True):
    """A method of a table. A group is a condition such as fog-3, or the mean of corruptions."""

    title: Annotated[str, _says("its name in tables")]
    scores: Annotated[ByName, _says("group to the metric, 0..100, mean over seeds")]
    scores_by_seed: Annotated[dict[str, ByName], _says("seed to the same")]
    rank: Annotated[RankOf, _says("on the group that is compared")]
    milliseconds: Annotated[ByName, _says("stage to mean time of an image, and `total`")]
    gmacs: Annotated[ByName, _says("stage to 1e9 multiply-adds of an image; may be empty")]
    statistics: Annotated[dict[str, ByName], _says("group to means of what the method reports")]
    fallbacks: Annotated[int, _says("fits that failed; the teacher answered")]
    budget: Annotated[Budget, _says("its cost over the teacher's")]
    deviation_over_seeds: Annotated[
        ByName | UnsetType, _says("group to the standard deviation; of several seeds alone")
    ] = UNSET
    minus_baseline: Annotated[
        ByGroup | UnsetType, _says("group to the difference; the baseline has none, nor p")
    ] = UNSET
    p: Annotated[
        Number | UnsetType, _says("two-sided bootstrap p of no difference on `compared`")
    ] = UNSET
    p_holm: Annotated[
        Number | UnsetType, _says("the same after Holm's correction over the table")
    ] = UNSET
    tuned: Annotated[Tuned | UnsetType, _says("of a row that stands for several settings")] = UNSET


class AlsoOf(Struct, forbid_unknown_fields=True):
    """Another metric of the same predictions."""

    scores: Annotated[dict[str, ByName], _says("method to group to score")]
    minus_baseline: Annotated[dict[str, ByGroup], _says("method to group to difference")]


class ClassesOf(Struct, forbid_unknown_fields=True):
    """The metric of each class, on the group that is compared."""

    scores: Annotated[dict[str, ByName], _says("method to class to score")]
    minus_baseline: Annotated[dict[str, ByGroup], _says("method to class to difference")]


class TableOf(Struct, forbid_unknown_fields=True):
    """One teacher, run, severity and value of the sweep."""

    teacher: Annotated[str, _says("its name in the study's file")]
    heading: Annotated[str, _says("what stands above the table")]
    run: Annotated[int, _says("number of the run, from 1")]
    name: Annotated[str, _says("of the run; may be empty")]
    severity: Annotated[int | None, _says("of the corruptions; null without any")]
    value: Annotated[Any, _says("of the sweep's key; null without a sweep")]
    value_name: Annotated[str | None, _says("the same as it is printed")]
    seeds: Annotated[list[int], _says("of the evaluations that are averaged")]
    images: Annotated[int, _says("how many, from the data set's first")]
    has_intervals: Annotated[bool, _says("false: too few images, intervals mean nothing")]
    overrides: Annotated[list[list[Any]], _says("[key, value] pairs of the configuration")]
    compared: Annotated[str, _says("the group of p, rank, front and classes")]
    continual: Annotated[
        list[str],
        _says(
            "methods that go on from image to image, in the data set's order, under each condition"
        ),
    ]
    smallest_p: Annotated[float, _says("the least that p can be, of so many resamples")]
    budget_unit: Annotated[str, _says("the method whose cost is 1")]
    front: Annotated[
        dict[str, list[str]], _says("passes, time: the methods on the Pareto front, cheapest first")
    ]
    methods: Annotated[dict[str, MethodOf], _says("by name, in the order of the file")]
    focus_minus: Annotated[
        dict[str, ByGroup], _says("other method to group to the focus's score minus its own")
    ]
    also: Annotated[dict[str, AlsoOf], _says("by metric, of the study's ALSO")]
    classes: Annotated[ClassesOf, _says("by class; empty where the metric has none")]


class Results(Struct, forbid_unknown_fields=True, rename={"format": "schema"}):
    """The file."""

    format: Annotated[str, _says("name and version of this layout")]
    study: Annotated[str, _says("name of the study's file")]
    environment: Annotated[dict[str, str], _says("versions, commit and machine")]
    config: Annotated[str, _says("the configuration that evaluations start from")]
    dataset: Annotated[str, _says("what was evaluated")]
    metric: Annotated[str, _says("of `scores`")]
    lower_is_better: Annotated[bool, _says("of the metric")]
    baseline: Annotated[str, _says("the method that differences are taken to")]
    splits: Annotated[str, _says("what was tuned on, what is reported")]
    block: Annotated[int, _says("neighbouring images that the bootstrap keeps together")]
    bootstrap_samples: Annotated[int, _says("resamples of the images")]
    focus: Annotated[str, _says("the method that is compared with every other")]
    images_in_dataset: Annotated[int, _says("all, of which a table may have fewer")]
    hashes: Annotated[dict[str, str], _says("SHA-256 of data, weights, calibration, corruptions")]
    frozen: Annotated[list[str], _says("which of these the study's file asked for")]
    sweep: Annotated[dict[str, Any] | None, _says("key, values and label of a sweep")]
    tables: Annotated[list[TableOf], _says("the numbers")]
    report_failures: Annotated[list[str], _says("a sentence for what could not be made")]


def check_results(content: Any, where: str) -> dict[str, Any]:
    """The content of a ``results.json`` as it is; an InputError that names the first mistake."""
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA:
        raise InputError(
            f"{where} has the schema {version!r}, and this version reads {SCHEMA!r}: "
            "run the study again with --resume, which evaluates nothing again"
        )
    try:
        msgspec.convert(content, Results)
    except msgspec.ValidationError as error:
        raise InputError(f"{where} is not of the schema {SCHEMA}: {error}") from None
    return content


def read_results(path: Path) -> dict[str, Any]:
    """`check_results` of a file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return check_results(content, str(path))


def described() -> str:
    """All fields as Markdown, a table per kind of object, the file first."""
    kinds: list[type[Struct]] = [Results, TableOf, MethodOf, Interval, RankOf, Budget, Tuned]
    kinds += [AlsoOf, ClassesOf]
    return "\n\n".join(_described(kind) for kind in kinds)


def _described(kind: type[Struct]) -> str:
    hints = get_type_hints(kind, include_extras=True)
    rows = []
    for field in structs.fields(kind):
        shape, meaning = get_args(hints[field.name])
        rows.append(f"| `{field.encode_name}` | {_shape(shape)} | {meaning.description} |")
    about = " ".join((kind.__doc__ or "").split())
    head = [f"### {kind.__name__}", "", about, "", "| field | type | meaning |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _shape(kind: Any) -> str:
    """A type in words."""
    names = {float: "number", int: "whole number", str: "text", bool: "true or false", Any: "any"}
    names |= {type(None): "null", UnsetType: "absent"}
    if kind in names:
        return names[kind]
    origin, parts = getattr(kind, "__origin__", None), get_args(kind)
    if origin is dict:
        return f"mapping to {_shape(parts[1])}"
    if origin is list:
        return f"list of {_shape(parts[0])}"
    return " or ".join(map(_shape, parts)) if parts else kind.__name__

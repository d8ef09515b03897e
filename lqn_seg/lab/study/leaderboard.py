"""The leaderboard: stored results of studies as one page, a table per teacher and data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lqn_seg.evaluation.bootstrap import PairedDifference
from lqn_seg.lab.report.wording import interval_text, number, rank_text
from lqn_seg.lab.study.schema import read_results
from lqn_seg.lab.study.study_numbers import Numbers
from lqn_seg.lab.study.study_tables import compared_groups, p_of, settings_note, units

OURS, NOTHING = "this project", "nothing"
GRADIENTS, CALIBRATION = "gradients", "calibration (clean pictures)"


class Source(NamedTuple):
    """Where a method is from, and what it needs beside the teacher and the image."""

    paper: str
    needs: str = NOTHING


SOURCES = {
    "teacher": Source("no adaptation"),
    "tent": Source("Wang et al., ICLR 2021", GRADIENTS),
    "memo": Source("Zhang et al., NeurIPS 2022", GRADIENTS),
    "sar": Source("Niu et al., ICLR 2023", GRADIENTS),
    "cotta": Source("after Wang et al., CVPR 2022", GRADIENTS),
    "sitta": Source("Janouskova et al., TMLR 2024", GRADIENTS),
    "mlmp": Source("after Noori et al., NeurIPS 2025", GRADIENTS),
    "neo": Source("after Murphy et al., ICLR 2026", CALIBRATION),
    "adain": Source("after Huang and Belongie, ICCV 2017", CALIBRATION),
    "multiscale": Source("common practice"),
    "larger": Source("common practice"),
    "flip": Source("common practice"),
    "dehaze": Source("He et al., CVPR 2009"),
    "denoise": Source("Buades et al., CVPR 2005", CALIBRATION),
    "clahe": Source("Zuiderveld, 1994"),
    "bilateral": Source("Kopf et al., SIGGRAPH 2007"),
    "blur": Source("common practice", CALIBRATION),
    "standardise": Source("common practice", CALIBRATION),
    "views": Source(OURS),
    "restore": Source(OURS, CALIBRATION),
    "field": Source(OURS, CALIBRATION),
    "kernel": Source(OURS, CALIBRATION),
    "ridge": Source(OURS, CALIBRATION),
    "lqn": Source(OURS, f"{GRADIENTS}, {CALIBRATION}"),
}
_HEAD = """# Leaderboard

Test-time methods on the same teacher, images and corruptions, one image at a time. Made by

    lqn-seg leaderboard docs/results/leaderboard.md docs/results/roof/*.json

from the stored `results.json` of studies ([its fields](../results_file.md)); [a method of your
own](../method.md#in-the-same-table-and-on-the-leaderboard) lands in the same table. *Passes* are
multiply-adds over the teacher's; differences have 95% intervals (paired bootstrap over images);
*p* is two-sided, after Holm's correction over the table; ranks have 95% intervals. The best of a
column is bold. *After* a paper: the method departs from it, as its file in `lqn_seg/adapt/dense`
says.

**Three tables are older**: the EoMT's and those of real shifts. Their MEMO, CoTTA and SITTA were
computed in bfloat16, which rounded most of their small steps away; since then layers whose weights
are learnt compute in float32. Their rows with a calibration have all 384 directions of the tokens,
today's have 160: with all of them the linear head's `restore` had +2.6 [+1.6, +3.0] on corruptions,
AdaIN +2.0 [+1.0, +2.5]. MEMO, CoTTA and SITTA learn at their papers' rates."""
_EMPTY = "No results are stored yet."


def leaderboard(paths: Iterable[Path]) -> str:
    """The page, in Markdown; an InputError where a file is no study's ``results.json``."""
    sections = []
    for path in sorted(paths, key=lambda path: path.name):
        results = read_results(path)
        sections += [_section(results, numbers) for numbers in results["tables"]]
    return "\n\n".join([_HEAD, *(sections or [_EMPTY])]) + "\n"


def source_of(method: str, tuned: bool = False) -> Source:
    """A method's source, whatever its settings; of one that somebody registered nothing is known.

    >>> source_of("tent(steps=3)").paper, source_of("mine").paper
    ('Wang et al., ICLR 2021', '-')
    """
    base = method.partition("(")[0].partition("@")[0].partition(",")[0]
    paper, needs = SOURCES.get(base, Source("-", "-"))
    return Source(paper, f"{needs}, other corruptions" if tuned else needs)


def _section(results: Numbers, numbers: Numbers) -> str:
    groups = compared_groups(numbers)
    heads = ["method", "source", "needs", "passes", *groups, "minus " + results["baseline"]]
    heads += ["p (Holm)", "rank"]
    methods = sorted(numbers["methods"], key=lambda m: _place(numbers["methods"][m]))
    rows = [_row(results, numbers, method) for method in methods]
    severity = f", severity {numbers['severity']}" if numbers["severity"] else ""
    lines = [
        f"## {numbers['teacher']} on {results['dataset']}{severity}",
        "",
        f"{results['metric']} (0-100{', lower is better' * results['lower_is_better']}), "
        f"{numbers['images']} images, {len(_corruptions(numbers))} corruptions, study "
        f"`{results['study']}`, {results['environment'].get('device', 'cpu')}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)),
        *(f"\n{note}" for note in settings_note(numbers)),
    ]
    return "\n".join(lines)


def _place(x: Numbers) -> float:
    rank = x["rank"]["rank"]
    return float("inf") if rank is None else rank


def _corruptions(numbers: Numbers) -> list[str]:
    scores = next(iter(numbers["methods"].values()))["scores"]
    return [group for group in scores if group not in compared_groups(numbers)]


def _row(results: Numbers, numbers: Numbers, method: str) -> list[str]:
    x = numbers["methods"][method]
    source = source_of(method, "tuned" in x)
    cells = [x["title"], source.paper, source.needs, number(x["budget"]["passes"], ".2f")]
    pick = min if results["lower_is_better"] else max
    for group in compared_groups(numbers):
        scores = [y["scores"][group] for y in numbers["methods"].values()]
        best = pick((score for score in scores if score is not None), default=None)
        text = number(x["scores"][group])
        cells.append(f"**{text}**" if text == number(best) else text)
    difference = x.get("minus_baseline", {}).get(numbers["compared"])
    count = units(results, numbers)
    shown = interval_text(PairedDifference(**difference), count) if difference else "-"
    return [*cells, shown, p_of(numbers, x), rank_text(**x["rank"], images=count)]

"""A study's numbers for other programs: CSV and LaTeX, made of what ``results.json`` holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lqn_seg.evaluation.bootstrap import PairedDifference
from lqn_seg.lab.report.report import CORRUPTED
from lqn_seg.lab.report.wording import interval_text, number, rank_text, short_name
from lqn_seg.lab.study.study_numbers import Numbers, short_title
from lqn_seg.lab.study.study_tables import compared_groups, p_of, units

COLUMNS = (
    *("study", "dataset", "metric", "teacher", "run", "severity", "value", "condition"),
    *("method", "images", "score", "difference", "low", "high"),
    *("p", "p_holm", "rank", "rank_low", "rank_high", "passes", "ms"),
)
_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
}


def csv_text(results: Numbers) -> str:
    """A row per teacher, run, severity, value of the sweep, method and condition, `COLUMNS` wide;
    p and rank stand in the rows of the condition that is compared. Undefined is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for numbers in results["tables"]:
        for method in numbers["methods"]:
            for row in _csv_rows(results, numbers, method):
                known = {k: v for k, v in row.items() if v is not None and v == v}
                writer.writerow(known)
    return text.getvalue()


def _csv_rows(results: Numbers, numbers: Numbers, method: str) -> list[Numbers]:
    x, rows = numbers["methods"][method], []
    shared = {key: results[key] for key in ("study", "dataset", "metric")}
    shared |= {key: numbers[key] for key in ("teacher", "run", "severity", "images")}
    shared |= {"value": numbers["value_name"], "method": method}
    shared |= {"passes": x["budget"]["passes"], "ms": x["milliseconds"]["total"]}
    for group, score in x["scores"].items():
        row = {**shared, "condition": group, "score": score}
        row |= x.get("minus_baseline", {}).get(group, {})
        if group == numbers["compared"]:
            rank = x["rank"]
            row |= {"p": x.get("p"), "p_holm": x.get("p_holm"), "rank": rank["rank"]}
            row |= {"rank_low": rank["low"], "rank_high": rank["high"]}
        rows.append(row)
    return rows


def latex_text(results: Numbers) -> str:
    """A `table` of booktabs per table of the study; the best score of a column is bold."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(
        _latex_table(results, numbers) for numbers in results["tables"]
    )


def latex_escaped(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> latex_escaped("tent_2 & 5%")
    'tent\\_2 \\& 5\\%'
    """
    return "".join(_ESCAPES.get(sign, sign) for sign in text)


def _latex_table(results: Numbers, numbers: Numbers) -> str:
    groups, count = compared_groups(numbers), units(results, numbers)
    best = max if not results["lower_is_better"] else min
    scores = {g: [x["scores"][g] for x in numbers["methods"].values()] for g in groups}
    tops = {
        g: best((s for s in v if s is not None and s == s), default=None) for g, v in scores.items()
    }
    rows = []
    for x in numbers["methods"].values():
        cells = [latex_escaped(x["title"])]
        for g in groups:
            text = number(x["scores"][g])
            cells.append(rf"\textbf{{{text}}}" if x["scores"][g] == tops[g] else text)
        difference = x.get("minus_baseline", {}).get(numbers["compared"])
        text = interval_text(PairedDifference(**difference), count) if difference else "-"
        cells += [_signed(text), latex_escaped(p_of(numbers, x))]
        cells += [rank_text(**x["rank"], images=count)]
        cells += [number(x["budget"]["passes"], ".2f"), number(x["milliseconds"]["total"], ".0f")]
        rows.append(cells)
    heads = ["", *(short_name(g).replace(CORRUPTED, "corrupted") for g in groups)]
    heads += [f"minus {short_title(results['baseline'])}", "$p$ (Holm)", "rank", "passes", "ms"]
    escaped = [head if head.startswith("$") else latex_escaped(head) for head in heads]
    caption = f"{results['metric']} on {results['dataset']}: {numbers['heading']}"
    return _booktabs(latex_escaped(caption), escaped, rows)


def _signed(text: str) -> str:
    """A minus sign as long as a plus."""
    return text if text == "-" else text.replace("-", "$-$")


def _booktabs(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(cells) + r" \\" for cells in [heads, *rows]]
    head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    head += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*head, *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

"""Numbers as they are printed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tabulate import tabulate

from lqn_seg.evaluation.bootstrap import FEWEST_IMAGES, PairedDifference
from lqn_seg.lab.report.wording import (
    WIDTH,
    comparison,
    interval_heading,
    interval_text,
    number,
    table,
    verdict_on,
    wrapped,
)

NAN = float("nan")


@given(st.floats(-1e6, 1e6) | st.floats(-0.1, 0.1), st.sampled_from([".0f", ".1f", "+.1f", ".3f"]))
def test_zero_has_no_minus_sign_and_all_else_is_the_number(value, form):
    text = number(value, form)
    assert not re.fullmatch(r"-0(\.0*)?", text)
    assert float(text) == float(format(value, form))
    assert ("+" in text) <= (value >= 0)


def test_a_table_looks_as_one_of_plain_numbers():
    rows = [["one", 1.04, 22.22], ["another", 100.0, -3.0]]
    assert table(rows, ["", "a", "long\nhead"], ".1f") == tabulate(
        rows, ["", "a", "long\nhead"], floatfmt=".1f"
    )
    assert interval_text(PairedDifference(NAN, NAN, NAN), 99) == number(None) == "-"
    assert table([["x", -0.01, NAN]], ["", "a", "b"], ".1f").split()[-3:] == ["x", "0.0", "-"]
    assert "a" in table([], ["", "a"], ".1f")


@pytest.mark.parametrize("images", [1, FEWEST_IMAGES - 1, FEWEST_IMAGES, 5000])
def test_too_few_images_have_no_interval_and_no_verdict(images):
    result = PairedDifference(0.24, 0.2, 0.3)
    enough = images >= FEWEST_IMAGES
    text = comparison(result, images, "its teacher", "here", " PQ")
    if enough:
        assert text == "is better than its teacher here (+0.2 [+0.2, +0.3] PQ)"
    else:
        assert text == "differs from its teacher here by +0.2 PQ"
    assert ("[" in interval_text(result, images)) == enough
    assert ("too few" in interval_heading(images)) != enough


@pytest.mark.parametrize(
    "interval, words",
    [
        ((1, 0.1, 2), "is better than"),
        ((-1, -2, -0.1), "is worse than"),
        ((1, -1, 2), "cannot be told apart from"),
        ((-0.01, -0.02, 0), "cannot be told apart from"),
        ((0.02, 0.01, 0.04), "cannot be told apart from"),  # 0.0 [0.0, 0.0] as it is printed
        ((0.1, 0.06, 0.2), "is better than"),
        ((NAN, NAN, NAN), "cannot be compared with"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(interval, words):
    assert comparison(PairedDifference(*interval), 10, "x", "here").startswith(f"{words} x here (")


@pytest.mark.parametrize("style", ["simple", "pipe"])
def test_a_wide_table_goes_on_below_and_prose_is_wrapped(style):
    heads = ["", *(f"column {k}" for k in range(20))]
    rows = [["one", *range(20)], ["another", *range(20, 40)]]
    blocks = table(rows, heads, ".0f", style=style).split("\n\n")
    assert len(blocks) > 1 and all(len(line) <= WIDTH for b in blocks for line in b.splitlines())
    assert all("another" in block for block in blocks)
    assert [w for b in blocks for w in re.findall(r"column \d+", b.splitlines()[0])] == heads[1:]
    assert max(map(len, wrapped("short " * 99).splitlines())) <= WIDTH
    assert wrapped("a\nb") == "a\nb"


def test_the_lower_error_is_the_better_one():
    for interval, words in (((1, 0.5, 2), "is worse than"), ((-1, -2, -0.5), "is better than")):
        result = PairedDifference(*interval)
        assert words in comparison(result, 99, "it", "here", " ECE", lower_is_better=True)
        given = "LQN", 99, result, (2, result), " ECE", 2.0
        assert verdict_on(*given, lower_is_better=True).count(words) == 2

"""Files named after anything: two texts never share a name, and none leaves its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lqn_seg.data.file_names import file_name, file_names

# Whatever an id or a path may be, and above all what looks alike.
ANY = st.one_of(st.text(), st.text(st.sampled_from("aA/. -_\\\0é"), max_size=12))
AWKWARD = (
    *("a.b.png", "x y.png", "x-y.png", "a/1.jpg", "b/1.jpg", "a-1.jpg", "A/1.jpg", "../a"),
    *("", ".", "..", "/", "a/", "/a", "a//b", "CON", "con.png", "nul", "-rf", "~", "*", "a:b"),
    *("../../a", "a\\b", ".hidden", "end.", "end ", "é"),
    *("e\u0301", "ﬁ", "fi", "\udcff", "x" * 300, "x" * 299 + "y", "long/" * 99, "日本" * 99),
    *("a\n", "a\t", "a", "A", "%2e%2e", "IMG.2024.01", "IMG.2024.02"),
)


@given(st.lists(ANY, unique=True))
@example(list(AWKWARD))
@example(["x y", file_name("x y"), file_name(file_name("x y"))])  # names of names are others
def test_names_are_different_whatever_the_file_system_takes_for_equal(texts):
    result = file_names(texts)
    assert list(result) == texts
    assert len({name.casefold() for name in result.values()}) == len(texts)
    assert len({file_name(text) for text in texts}) == len(texts)


@given(ANY)
@pytest.mark.parametrize("ending", [".png", ""])
def test_a_name_stays_in_its_folder_and_can_be_written(ending, text):
    path = Path("folder") / f"{file_name(text)}{ending}"
    assert path.parent == Path("folder") and path.name not in (".", "..")
    assert os.path.normpath(path) == str(path)
    assert len(os.fsencode(path.name)) <= 124 and "\0" not in path.name
    assert not path.name.startswith((".", "-")) and not path.name.endswith((" ", "."))


def test_awkward_names_can_all_lie_in_one_folder(tmp_path):
    for name in file_names(AWKWARD).values():
        (tmp_path / f"{name}.png").write_text(name)
    assert len(list(tmp_path.rglob("*.png"))) == len(AWKWARD) == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize("text", ["000001", "IMG.2024.01", "x-y", "lqn@distill", "a_b+c=d", "1, 2"])
def test_a_plain_name_is_kept(text):
    assert (file_name(text) == text) == ("," not in text)
    assert file_name(7) == "7"


def test_one_text_that_stands_for_two_things_has_two_names():
    names = {file_name("x", whole) for whole in ("", "a/x.png", "b/x.png")}
    assert len(names) == 3 and all(name.startswith("x") for name in names)

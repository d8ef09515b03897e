"""Costs beside the teacher's, the Pareto front by brute force, and the plot."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations

import matplotlib.figure
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lqn_seg.lab.report.budget import budgets, fronts, pareto_front
from lqn_seg.visualization import pareto

POINTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    costs = {str(k): x for k, (x, _) in enumerate(points)}
    gains = {str(k): y for k, (_, y) in enumerate(points)}
    front = pareto_front(costs, gains)
    for k, (x, y) in enumerate(points):
        better = any(b > y and a <= x for a, b in points)
        cheaper = any(a < x and b >= y for a, b in points)
        assert (str(k) in front) == (not better and not cheaper)
    assert [costs[m] for m in front] == sorted(costs[m] for m in front)
    assert [gains[m] for m in front] == sorted(gains[m] for m in front)


def test_a_method_that_is_not_counted_has_its_time_alone():
    nan = float("nan")
    gmacs, ms = {"teacher": 4.0, "a": 10.0, "b": nan}, {"teacher": 10.0, "a": 50.0, "b": 20.0}
    costs = budgets(gmacs, ms, "teacher")
    assert costs["a"] == {"passes": 2.5, "time": 5.0} and costs["b"]["time"] == 2
    assert np.isnan(costs["b"]["passes"])
    found = fronts(costs, {"teacher": 0.0, "a": 1.0, "b": 2.0})
    assert found == {"passes": ["teacher", "a"], "time": ["teacher", "b"]}


def crowd(count: int) -> dict:
    """A table of methods that lie close together."""
    random = np.random.default_rng(0)
    methods = {"teacher": {"title": "teacher", "budget": {"passes": 1.0, "time": 1.0}}}
    for k in range(count):
        cost, gain = float(2 ** random.uniform(0, 2)), float(random.normal())
        methods[f"m{k}"] = {
            "title": f"method number {k}",
            "budget": {"passes": cost if k else None, "time": cost},
            "minus_baseline": {"clean": {"difference": gain, "low": gain - 0.3, "high": gain + 1}},
        }
    costs = {m: x["budget"] for m, x in methods.items()}
    numbers = {m: {a: v or float("nan") for a, v in x.items()} for m, x in costs.items()}
    gains = {
        m: x.get("minus_baseline", {}).get("clean", {}).get("difference", 0.0)
        for m, x in methods.items()
    }
    table = {"heading": "of nothing", "compared": "clean", "has_intervals": True}
    table |= {"budget_unit": "teacher", "front": fronts(numbers, gains), "methods": methods}
    return {"metric": "mIoU", "baseline": "teacher", "tables": [table]}


def test_names_in_the_plot_cover_no_other_and_no_point(tmp_path, monkeypatch):
    kept: list[matplotlib.figure.Figure] = []
    save = pareto.save_figure
    monkeypatch.setattr(
        pareto, "save_figure", lambda figure, stem: kept.append(figure) or save(figure, stem)
    )
    png, svg = pareto.draw_pareto(crowd(20), tmp_path / "pareto")
    with Image.open(png) as image:
        assert 780 <= image.width <= 900
    assert ET.parse(svg) is not None
    passes, time = kept[0].axes
    names = [[t for t in axes.texts if t.get_text()] for axes in (passes, time)]
    assert [len(texts) for texts in names] == [20, 21]  # one has no passes
    for axes, texts in zip((passes, time), names):
        boxes = [text.get_window_extent() for text in texts]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        points = axes.transData.transform([text.xy for text in texts])
        assert not any(box.contains(*point) for box in boxes for point in points)
        assert {t.get_text() for t in texts if t.get_fontweight() == "bold"} == {
            crowd(20)["tables"][0]["methods"][m]["title"]
            for m in crowd(20)["tables"][0]["front"]["passes" if axes is passes else "time"]
        }


def test_nothing_is_drawn_of_one_method(tmp_path):
    assert pareto.draw_pareto(crowd(0), tmp_path / "pareto") == []

"""The page without a browser: its parts fit together, and its colours can be read."""

from __future__ import annotations

import re

import pytest

from lqn_seg.lab.explorer import server

FOLDER = server.Path(server.__file__).parent
SOURCES = {name: (FOLDER / name).read_text() for name in server.FILES}


def test_scripts_and_style_name_what_the_page_has():
    ids = re.findall(r'\bid="([\w-]+)"', SOURCES["page.html"])
    assert len(ids) == len(set(ids)) > 30
    asked = {i for s in SOURCES.values() for i in re.findall(r'\$\("([\w-]+)"\)', s)}
    styled = set(re.findall(r"#([a-z][\w-]*)(?=[^;{]*\{)", SOURCES["page.css"]))
    assert asked and asked <= set(ids) and styled <= set(ids)
    loaded = re.findall(r'(?:src|href)="([\w.]+)"', SOURCES["page.html"])
    assert set(loaded) == set(server.FILES) - {server.PAGE}
    controls = re.findall(r"<(?:select|input|progress)[^>]*>", SOURCES["page.html"])
    for control in controls:
        name = re.search(r'id="([\w-]+)"', control)[1]
        labelled = f'for="{name}"' in SOURCES["page.html"] or "aria-label" in control
        assert labelled or "hidden" in control, name


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(mode):
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", SOURCES["page.css"])
    colors = {name: both[mode] for name, *both in pairs}
    texts = [("ink", "paper"), ("ink", "soft"), ("ink", "raised"), ("muted", "paper")]
    texts += [("accent", "paper"), ("on-accent", "accent"), ("bad", "paper"), ("muted", "soft")]
    for text, ground in texts:
        assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for edge, ground in (("edge", "paper"), ("edge", "raised"), ("accent", "line")):
        assert contrast(colors[edge], colors[ground]) >= 3, (edge, ground)
    assert contrast("#000", "#fff") == pytest.approx(21)

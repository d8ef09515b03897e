"""The page in a real headless browser: load, pick, run, slide, hover, zoom, save."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager

import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def page(visitor):
    """The explorer's page; what it asked for and what went wrong in it are collected."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.requested, page.wrong = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda message: page.wrong.append(message.text))
        page.goto(f"http://127.0.0.1:{visitor.port}/")
        wait(page, "typeof status === 'object' && status.done")
        yield page
        browser.close()


def wait(page, script: str) -> None:
    """Until a script is true. The page's policy forbids playwright's own `wait_for_function`."""
    end = time.monotonic() + 60
    while not page.evaluate(script):
        assert time.monotonic() < end, (script, page.text_content("body"))
        page.wait_for_timeout(50)


@contextmanager
def slow_replies(page):
    late = "new Promise(next => setTimeout(next, 100))"
    slow = f"async (...a) => {{ const f = await fast(...a); await {late}; return f }}"
    page.evaluate(f"window.fast = ask; ask = {slow}; 0")
    yield
    page.evaluate("ask = fast; 0")  # the value of a script, if a function, is called


def test_load_pick_run_slide_hover_zoom_save(page, visitor, tmp_path):
    # Each run cuts the one before short, while replies to that one are still on their way.
    with slow_replies(page):
        for name in ("fog", "pixelate"):
            page.select_option("#corruption", name)
            page.click("#run")
            wait(page, f"(status.image || '').includes('{name}') && status.done")
    page.locator("#scenes label").nth(3).click()
    page.select_option("#corruption", "contrast")
    wait(page, "status.done && status.image === 'scene 3, contrast-3' && !$('step').disabled")
    shown = page.locator("#masks figure").evaluate_all("all => all.map(f => f.dataset.map)")
    assert shown == ["image", "truth", "teacher", "restore", "apm", "lqn"]
    page.click("summary")
    page.check("#more [value=ridge]")
    wait(page, "status.done && status.maps.ridge && views.get('ridge').ids")

    assert page.locator("#step-row canvas").count() == 1
    wait(page, "$('layer-is').dataset.layer === '4'")
    before = page.get_attribute("#map-student", "src")
    page.locator("#layer").fill("2.5")
    wait(page, "$('layer-is').dataset.layer === '2.5'")
    assert page.get_attribute("#map-student", "src") != before
    assert "Layer 2.50" in page.text_content("#layer-is")

    page.locator("#step").fill("1")
    wait(page, "$('step-is').dataset.step === '1'")
    page.click("#step-play")  # to the last step
    wait(page, "$('step-is').dataset.step === '5' && $('step-play').textContent === 'Play'")

    canvas, other = (page.locator(f"[data-map={name}] canvas") for name in ("teacher", "lqn"))
    canvas.hover(position={"x": 40, "y": 40})
    words = page.locator("#masks .foot span").all_text_contents()
    assert words[0] == "" and all(words[1:])  # the class below each picture but the image
    legend = page.locator("#legend li").all_text_contents()
    assert set(words[1:]) <= set(legend)
    unzoomed = other.evaluate("c => c.toDataURL()")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    wait(page, "seen.zoom > 2")
    assert other.evaluate("c => c.toDataURL()") != unzoomed

    for width, height in ((1280, 800), (1920, 1080), (420, 800)):
        page.set_viewport_size({"width": width, "height": height})
        assert not page.evaluate(OUTSIDE), width

    for kind, name in (("panel", "panel_{}.png"), ("json", "result_{}.json")):
        with page.expect_download() as download:
            page.click(f"#save-{kind}")
        assert download.value.suggested_filename == name.format("scene-3_contrast-3_distill")
        download.value.save_as(tmp_path / kind)
    assert Image.open(tmp_path / "panel").size[0] > 1000
    assert json.loads((tmp_path / "json").read_text())["preset"] == "distill"

    with page.expect_download() as download:
        page.click("[data-map=lqn] a")
    assert download.value.suggested_filename == "labels_scene-3_contrast-3_distill_lqn.png"

    page.locator("#opacity").fill("0")  # then every picture is the image
    alike = "[...views.values()].map(v => v.canvas.toDataURL()).slice(0, 2)"
    page.evaluate("point(null)")
    assert len(set(page.evaluate(alike))) == 1
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before

    assert not page.wrong and len(page.requested) > 20
    own = (f"http://127.0.0.1:{visitor.port}/", "data:", "blob:")
    assert all(url.startswith(own) for url in page.requested)


# Words that are cut, and what sticks out of the window or over its neighbour.
OUTSIDE = """(() => {
  const wrong = [...document.querySelectorAll('figcaption span, label, h2, button')]
    .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent);
  if (document.documentElement.scrollWidth > innerWidth) wrong.push('sideways scrolling');
  const parts = [...document.querySelectorAll('section, aside')];
  const boxes = parts.map(e => e.getBoundingClientRect());
  boxes.forEach((a, k) => boxes.slice(k + 1).forEach(b => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
      wrong.push('two boxes overlap');
  }));
  return wrong.join('; ');
})()"""

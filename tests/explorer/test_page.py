"""The page in a real headless browser: load, pick, run, slide, hover, zoom, save."""

from __future__ import annotations

import json

from PIL import Image


def test_load_pick_run_slide_hover_zoom_save(browser, served, tmp_path):
    browser.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved")
    )
    browser.call("Page.navigate", url=f"http://127.0.0.1:{served}/")
    browser.wait("typeof status === 'object' && status.done")
    browser.run(
        "window.late = () => new Promise(next => setTimeout(next, 100)); window.fast = null"
    )

    # Each run cuts the one before short, while answers to that one are still on their way.
    browser.run(
        "fast = ask; ask = async (...a) => { const f = await fast(...a); await late(); return f }"
    )
    for name in ("fog", "pixelate"):
        browser.run(f"$('corruption').value = '{name}'; $('run').click()")
        browser.wait(f"(status.image || '').includes('{name}') && status.done")
    browser.run("ask = fast")
    browser.run("document.querySelectorAll('#scenes img')[3].click()")
    browser.run("$('corruption').value = 'contrast'; $('run').click()")
    browser.wait("status.done && status.image === 'scene 3, contrast-3' && !$('step').disabled")
    shown = "[...document.querySelectorAll('#masks figure')].map(f => f.dataset.map)"
    assert browser.run(shown) == ["image", "truth", "teacher", "apm", "lqn"]

    browser.wait("document.querySelectorAll('#step-row canvas').length === 1")
    browser.wait("$('layer-is').dataset.layer === '4'")
    before = browser.run("$('map-student').src")
    browser.run("$('layer').value = 2.5; $('layer').dispatchEvent(new Event('input'))")
    browser.wait("$('layer-is').dataset.layer === '2.5'")
    assert browser.run("$('map-student').src") != before
    assert "layer 2.50" in browser.run("$('layer-is').textContent")

    browser.run("$('step').value = 1; $('step').dispatchEvent(new Event('input'))")
    browser.wait("$('step-is').dataset.step === '1'")
    browser.run("$('step-play').click()")  # to the last step
    browser.wait("$('step-is').dataset.step === '5' && $('step-play').textContent === 'Play'")

    for width, height in ((1280, 800), (1920, 1080), (420, 800)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        assert browser.wait(f"innerWidth === {width}") and not browser.run(OUTSIDE), width
    browser.call("Emulation.clearDeviceMetricsOverride")

    middle = "views.get('teacher').canvas.getBoundingClientRect()"
    at = f"{{bubbles: true, clientX: {middle}.x + 40, clientY: {middle}.y + 40, deltaY: -400}}"
    browser.run(f"views.get('teacher').canvas.dispatchEvent(new PointerEvent('pointermove', {at}))")
    words = browser.run("$('under').textContent")
    assert "ground truth: " in words and "LQN: " in words
    pixels = "views.get('lqn').canvas.toDataURL()"
    unzoomed = browser.run(pixels)
    browser.run(f"views.get('teacher').canvas.dispatchEvent(new WheelEvent('wheel', {at}))")
    assert browser.run("seen.zoom") > 2 and browser.run(pixels) != unzoomed  # the other one too

    browser.run("$('save-panel').click(); $('save-json').click()")
    name = browser.run("ask(`api/job/${job}`).then(answer => answer.json()).then(now => now.file)")
    assert name.endswith("_distill")
    saved = [tmp_path / "saved" / f for f in (f"panel_{name}.png", f"result_{name}.json")]
    assert all(_appears(path, browser) for path in saved)
    with Image.open(saved[0]) as panel:
        assert panel.size[0] > 1000
    assert json.loads(saved[1].read_text())["preset"] == "distill"

    wrong = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", _LOG)]
    assert not wrong
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == _SENT]
    assert len(asked) > 20
    assert all(u.startswith((f"http://127.0.0.1:{served}/", "data:", "blob:")) for u in asked)


# Words that are cut, and what sticks out of the window or over its neighbour.
OUTSIDE = """(() => {
  const wrong = [...document.querySelectorAll('figcaption, label, h2, button, .slide p')]
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
_LOG, _SENT = "Log.entryAdded", "Network.requestWillBeSent"


def _appears(path, browser) -> bool:
    for _ in range(100):
        if path.is_file() and path.stat().st_size:
            return True
        browser.run("new Promise(next => setTimeout(next, 50))")
    return False

"""The explorer through HTTP, as its page uses it."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from lqn_seg.config.nodes import method_config
from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.engine.studio import Studio, stops
from lqn_seg.errors import InputError
from lqn_seg.lab.explorer import server as module
from lqn_seg.lab.explorer.job import NO_LABEL
from lqn_seg.lab.explorer.server import FILES, Start, make_server, open_explorer, read_upload
from lqn_seg.lab.report.pictures import segmentation
from lqn_seg.visualization.files import png_bytes
from lqn_seg.visualization.palette import VOID_COLOR, category_color
from lqn_seg.visualization.panels import Segmentation, overlay


def png(height=40, width=60) -> bytes:
    return png_bytes(np.full((height, width, 3), (90, 160, 30), np.uint8))


def test_a_job_answers_everything_the_page_shows(visitor, small_config):
    options = visitor.json("/api/options")
    assert list(options["scenes"]) == ["0", "1", "2", "3", "4"] and options["preset"] == "distill"
    job = visitor.run(scene="2", corruption="contrast", severity=2)
    status = visitor.done(job)
    assert not status["error"] and status["progress"] == 1 and status["size"] == [96, 96]
    assert set(status["maps"]) == {"truth", *options["start"]["methods"]}
    assert status["steps"]["made"] == stops(5) and status["depth"]["layers"] == 4
    lqn = status["maps"]["lqn"]
    assert lqn["gmacs"]["gmacs_total"] > status["maps"]["teacher"]["gmacs"]["gmacs_total"] > 0
    assert lqn["milliseconds"]["fit_ms"] > 0 and 0 <= lqn["score"] <= 100

    # The masks are those that the segmenter gives for this image.
    overrides = ("MODEL.LQN.PRESET", "distill", "MODEL.LQN.ADAPT.MIX_BY_NOISE", "False")
    request = {"corruptions": ["contrast"], "severity": 2, "count": 3, "overrides": overrides}
    studio = Studio(str(small_config), **request)
    source = list(studio.sources())[2]
    for name in ("teacher", "lqn"):
        segmenter = studio.segmenter_of({name: method_config(studio.cfg, name)})
        expected = segmentation(segmenter([source.tensor])[0][name].output)
        kind, raw = visitor.ask(f"/api/job/{job}/map/{name}.ids")[1:]
        ids = np.frombuffer(raw, "<i4").reshape(96, 96)
        assert kind == "application/octet-stream" and (ids == expected.ids).all()
        listed = {segment["id"] for segment in status["maps"][name]["segments"]}
        assert set(np.unique(ids)) - {0} == listed
    last = visitor.ask(f"/api/job/{job}/map/step-5.ids")[2]
    assert last == visitor.ask(f"/api/job/{job}/map/lqn.ids")[2]  # all steps made
    shown = np.asarray(Image.open(io.BytesIO(visitor.ask(f"/api/job/{job}/image.png")[2])))
    assert (shown == source.pixels).all()
    panel = Image.open(io.BytesIO(visitor.ask(f"/api/job/{job}/panel.png")[2]))
    assert panel.size[0] > 5 * 250


def ids_of(visitor, job: str, name: str) -> np.ndarray:
    return np.frombuffer(visitor.ask(f"/api/job/{job}/map/{name}.ids")[2], "<i4").reshape(96, 96)


def picture(visitor, path: str) -> Image.Image:
    kind, content = visitor.ask(path)[1:]
    assert kind == "image/png"
    return Image.open(io.BytesIO(content))


def test_labels_and_legend_are_the_classes_of_the_masks(visitor, small_config):
    job = visitor.run(scene="1", corruption="contrast")
    status = visitor.done(job)
    categories = Studio(str(small_config)).categories
    shown = set()
    for name in ("truth", "lqn", "step-5"):
        found = status["maps"].get(name) or {"segments": status["steps"]["segments"][-1]}
        names = {0: "no segment"} | {s["id"]: s["name"] for s in found["segments"]}
        file = picture(visitor, f"/api/job/{job}/labels/{name}.png")
        labels, ids = np.asarray(file), ids_of(visitor, job, name)
        palette = np.reshape(file.getpalette(), (-1, 3))
        for i in np.unique(ids):
            (label,) = np.unique(labels[ids == i])
            assert label == NO_LABEL if i == 0 else categories[label].name == names[i]
            color = VOID_COLOR if i == 0 else category_color(categories[label], label)
            assert tuple(palette[label]) == color
        shown |= {names[i] for i in np.unique(ids)}
    legend = {entry["name"]: entry for entry in status["legend"]}
    assert shown <= set(legend) and len(legend) == len(status["legend"])
    for name, entry in legend.items():
        if name != "no segment":
            assert categories[entry["label"]].name == name
            assert entry["color"] == list(
                category_color(categories[entry["label"]], entry["label"])
            )
    assert visitor.ask(f"/api/job/{job}/labels/blur.png")[0] == 400  # not asked for


def test_a_map_over_the_image_is_the_overlay_at_any_opacity(visitor, small_config):
    job = visitor.run(scene="1", methods=["teacher"])
    status = visitor.done(job)
    studio = Studio(str(small_config), count=2)
    source, ids = list(studio.images())[1], ids_of(visitor, job, "teacher")
    number = {category.name: k for k, category in enumerate(studio.categories)}
    listed = status["maps"]["teacher"]["segments"]
    segments = [{"id": s["id"], "category_id": number[s["name"]]} for s in listed]
    assert (ids == 0).any() and (ids > 0).any()
    painted = np.asarray(picture(visitor, f"/api/job/{job}/map/teacher.png")).astype(float)
    size = painted.shape[:2]
    grown = np.asarray(Image.fromarray(source.pixels).resize(size[::-1], Image.Resampling.NEAREST))
    alpha = painted[..., 3:] / 255
    laid = (1 - alpha) * grown + alpha * painted[..., :3]
    whole = overlay(source.pixels, Segmentation(ids, segments), studio.categories, size, 1.0)
    assert size[0] > 96 and np.abs(laid - whole).max() <= 1.5


def test_methods_are_chosen_and_added(visitor):
    known = [m["name"] for m in visitor.json("/api/options")["methods"]]
    assert {"teacher", "lqn", "kernel", "blur"} <= set(known) and "two-word" not in known
    job = visitor.run(scene="0", methods=["blur"])
    status = visitor.done(job)
    assert set(status["maps"]) == {"truth", "teacher", "blur"}  # the teacher is always there
    request = {"job": job, "method": "ridge"}
    for _ in range(2):  # the second time there is nothing to do
        visitor.json("/api/add", request)
        after = visitor.done(job)
    assert set(after["maps"]) == {"truth", "teacher", "blur", "ridge"} and after["progress"] == 1
    assert after["maps"]["blur"] == status["maps"]["blur"]
    # Another preset is for those that have a recipe.
    other = visitor.done(visitor.run(scene="0", methods=["blur", "lqn"], preset="paper"))
    assert not other["error"] and set(other["maps"]) == {"truth", "teacher", "blur", "lqn"}


def test_the_explorer_opens_on_a_damaged_image(visitor):
    start = visitor.json("/api/options")["start"]
    assert start["corruption"] in CORRUPTIONS and 1 <= start["severity"] <= 5


def test_a_photograph_may_be_the_first_image(small_config, tmp_path, monkeypatch):
    (tmp_path / "harbour.png").write_bytes(png())
    name = "old harbour, 5%"  # as in an address of the page
    (tmp_path / "harbour.png").rename(tmp_path / f"{name}.png")
    start = Start(photograph=str(tmp_path / f"{name}.png"), methods=("teacher",))
    monkeypatch.setattr(module, "START", start)
    explorer = open_explorer(str(small_config), {}, "", [])
    assert list(explorer.options()["scenes"].values())[:2] == [name, "scene 0"]
    assert explorer.get(f"/api/scene/{quote(name)}.png", {})[0] == "image/png"
    job = explorer.jobs[explorer.run({"scene": name, "corruption": "fog"})]
    job.work.thread.join()
    assert job.status()["image"] == f"{name}, fog-3" and "truth" not in job.status()["maps"]


def test_depth_slides_between_layers(visitor):
    job = visitor.run(scene="0")
    errors = visitor.done(job)["depth"]["error_over_variance"]
    for layer in (1, 2.5, 4):
        depth = visitor.json(f"/api/job/{job}/depth?layer={layer}")
        assert depth["between"] == (layer == 2.5)
        assert all(depth[k].startswith("data:image/png") for k in ("teacher", "student", "error"))
        if not depth["between"]:
            assert depth["error_over_variance"] == pytest.approx(errors[layer - 1])
    for layer, word in (("9", r"1\.\.4"), ("nan", r"1\.\.4"), ("x", "number"), ("", "number")):
        status, _, body = visitor.ask(f"/api/job/{job}/depth?layer={layer}")
        assert status == 400 and re.search(word, json.loads(body)["error"])


def test_two_visitors_at_once_do_not_mix(visitor):
    def explored(scene: str) -> list:
        job = visitor.run(scene=scene)
        visitor.done(job)
        maps = [visitor.ask(f"/api/job/{job}/map/{m}.ids")[2] for m in ("lqn", "step-1")]
        return [*maps, visitor.json(f"/api/job/{job}/depth?layer=2.5")["student"]]

    alone = [explored("0"), explored("3")]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as visitors:
        assert list(visitors.map(explored, ("0", "3"))) == alone


def test_a_dropped_image_is_explored_and_has_no_score(visitor):
    status, _, body = visitor.ask("/api/upload", png(), **{"X-Name": "my%20photo.png"})
    assert status == 200
    seen = visitor.done(visitor.run(**json.loads(body), corruption="fog"))
    assert seen["image"] == "my photo, fog-3" and seen["size"] == [40, 60]
    assert "truth" not in seen["maps"] and seen["maps"]["lqn"]["score"] is None


def test_bad_and_huge_uploads_get_a_sentence(visitor, monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 10_000)
    cases = (
        (b"", "is empty"),
        (b"hello", "a.png is not an image"),
        (png()[:60], "a.png is (damaged|not an image)"),
        (png(100, 200), "a.png is too large"),
    )
    for content, words in cases:
        status, _, body = visitor.ask("/api/upload", content, **{"X-Name": "a.png"})
        assert status == 400 and re.search(words, json.loads(body)["error"]), body
        assert "/tmp" not in json.loads(body)["error"]
    # A file that is too long is refused before it is sent.
    connection = HTTPConnection("127.0.0.1", visitor.port, timeout=20)
    connection.putrequest("POST", "/api/upload")
    connection.putheader("Content-Length", str(10**10))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 400 and "more than 20 MB" in json.loads(answer.read())["error"]
    assert visitor.json("/api/options")["scenes"]


def test_large_images_are_shrunk_and_names_are_harmless():
    source = read_upload(png(1500, 3000), "../../etc/<b>.png")
    assert source.pixels.shape == (512, 1024, 3) and "<" not in source.name
    with pytest.raises(InputError, match="is not an image"):
        read_upload(b"\x89PNG\r\n", "x.png")


def test_wrong_requests_are_one_sentence(visitor):
    for wanted, words in (
        ({"scene": "77"}, "no scene '77'"),
        ({"scene": "0", "corruption": "fogg"}, "did you mean 'fog'"),
        ({"scene": "0", "corruption": "fog", "severity": 9}, "severity must be"),
        ({"scene": "0", "preset": "papper"}, "did you mean 'paper'"),
        ({"scene": "0", "teacher": "other"}, "unknown teacher"),
        ({"scene": "0", "methods": ["lqm"]}, "did you mean 'lqn'"),
        ({"upload": "nobody"}, "start again"),
        ({"scene": "0", "corruption": "fog", "severity": "much"}, "severity must be"),
        ({"scene": "77", "instead": []}, "no scene '77'"),
        ([], "no JSON object"),
    ):
        assert words in visitor.json("/api/run", wanted)["error"]
    for wanted, words in (
        ({"job": "nobody", "method": "lqn"}, "start again"),
        ({"job": visitor.run(scene="0"), "method": "lqm"}, "did you mean 'lqn'"),
    ):
        assert words in visitor.json("/api/add", wanted)["error"]
    for path in (
        "/api/job/nobody",
        "/etc/passwd",
        "/api/scene/77.png",
        "/api/scene/../0.png",
        "/server.py",
    ):
        assert visitor.ask(path)[0] == 404


def test_the_page_asks_nobody_else_and_other_hosts_are_refused(visitor):
    for name, kind in zip(FILES, ("html", "css", "javascript", "javascript", "javascript")):
        source = (Path(module.__file__).parent / name).read_text()
        assert not re.search(r"(src|href|url\(|import|fetch\()\s*=?[\"'(]?\s*(https?:)?//", source)
        status, served, content = visitor.ask(f"/{name}")
        assert (status, content.decode()) == (200, source) and served.startswith(f"text/{kind}")
        assert len(source.splitlines()) < 500
    assert visitor.ask("/")[2] == visitor.ask("/page.html")[2]
    status, _, body = visitor.ask("/", Host="evil.example")
    assert status == 400 and "127.0.0.1 only" in json.loads(body)["error"]


def test_an_address_that_is_taken_is_one_sentence(visitor):
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{visitor.port}"):
        make_server(None, port=visitor.port)


def test_what_is_not_foreseen_gets_a_sentence_too(visitor, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("out of paper")

    monkeypatch.setattr(module.Explorer, "options", broken)
    status, _, body = visitor.ask("/api/options")
    assert (status, json.loads(body)["error"]) == (500, "RuntimeError: out of paper")
    assert "Traceback" in capsys.readouterr().err

"""The explorer through HTTP, as its page uses it."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

from lqn_seg.config.nodes import method_config
from lqn_seg.engine.studio import Studio, stops
from lqn_seg.errors import InputError
from lqn_seg.lab.explorer import server as module
from lqn_seg.lab.explorer.server import PAGE, make_server, read_upload
from lqn_seg.lab.report.pictures import segmentation
from lqn_seg.visualization.files import png_bytes


def png(height=40, width=60) -> bytes:
    return png_bytes(np.full((height, width, 3), (90, 160, 30), np.uint8))


def test_a_job_answers_everything_the_page_shows(visitor, small_config):
    options = visitor.json("/api/options")
    assert options["scenes"] == ["0", "1", "2", "3", "4"] and options["preset"] == "distill"
    job = visitor.run(scene="2", corruption="contrast", severity=2)
    status = visitor.done(job)
    assert not status["error"] and status["progress"] == 1 and status["size"] == [96, 96]
    assert set(status["maps"]) == {"truth", "teacher", "apm", "lqn"}
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
        ({"upload": "nobody"}, "start again"),
        ([], "no JSON object"),
    ):
        assert words in visitor.json("/api/run", wanted)["error"]
    for path in ("/api/job/nobody", "/etc/passwd", "/api/scene/77.png", "/api/scene/../0.png"):
        assert visitor.ask(path)[0] == 404


def test_the_page_asks_nobody_else_and_other_hosts_are_refused(visitor):
    page = PAGE.read_text()
    assert not re.search(r"(src|href|url\(|import|fetch\()\s*=?[\"'(]?\s*(https?:)?//", page)
    assert visitor.ask("/")[2] == page.encode()
    status, _, body = visitor.ask("/", Host="evil.example")
    assert status == 400 and "127.0.0.1 only" in json.loads(body)["error"]


def test_an_address_that_is_taken_is_one_sentence(visitor):
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{visitor.port}"):
        make_server(None, port=visitor.port)

"""A served explorer of the tiny teacher, and how a visitor talks to it."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from lqn_seg.lab.explorer.server import make_server, open_explorer


class Visitor:
    """Requests to a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.headers["Content-Type"], answer.read()
        connection.close()
        return found

    def json(self, path: str, wanted: Any = None) -> dict[str, Any]:
        body = None if wanted is None else json.dumps(wanted).encode()
        return json.loads(self.ask(path, body)[2])

    def run(self, **wanted: Any) -> str:
        return self.json("/api/run", wanted)["job"]

    def done(self, job: str, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (status := self.json(f"/api/job/{job}"))["done"]:
                return status
            time.sleep(0.02)
        raise AssertionError(status)


@pytest.fixture
def served(small_config):
    """The port of an explorer whose default preset is fitted to every image."""
    overrides = ["MODEL.LQN.PRESET", "distill", "MODEL.LQN.ADAPT.GAUGED", "False"]
    server = make_server(open_explorer(str(small_config), {}, "", overrides), port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def visitor(served) -> Visitor:
    return Visitor(served)


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium; the test is skipped where there is none."""
    specification = importlib.util.spec_from_file_location(
        "chromium", Path(__file__).with_name("chromium.py")
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if module.find_chromium() is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    chromium = module.Chromium(tmp_path / "profile")
    yield chromium
    chromium.close()

"""A served explorer of the tiny teacher, and how a visitor talks to it."""

from __future__ import annotations

import json
import threading
import time
from http.client import HTTPConnection
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
        reply = connection.getresponse()
        parts = reply.status, reply.headers["Content-Type"], reply.read()
        connection.close()
        return parts

    def json(self, path: str, request: Any = None) -> dict[str, Any]:
        body = None if request is None else json.dumps(request).encode()
        return json.loads(self.ask(path, body)[2])

    def run(self, **request: Any) -> str:
        return self.json("/api/run", request)["job"]

    def done(self, job: str, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while not (status := self.json(f"/api/job/{job}"))["done"]:
            assert time.monotonic() < end, status
            time.sleep(0.02)
        return status


@pytest.fixture
def visitor(small_config):
    """Of an explorer whose default preset is fitted to every image."""
    overrides = ["MODEL.LQN.PRESET", "distill", "MODEL.LQN.ADAPT.MIX_BY_NOISE", "False"]
    server = make_server(open_explorer(str(small_config), {}, "", overrides), port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Visitor(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()

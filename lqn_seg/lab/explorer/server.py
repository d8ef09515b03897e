"""HTTP around jobs: routes, limits, and one sentence for whatever is wrong.

Python's own HTTP server, and a page without a framework: no content delivery network, no telemetry,
nothing of a visitor stays on disk.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from PIL import Image

from lqn_seg.core.config import PRESETS
from lqn_seg.data.corruptions import ALL_CORRUPTIONS
from lqn_seg.data.file_names import file_name
from lqn_seg.data.images import read_image, upright_size
from lqn_seg.data.shipped import find_local
from lqn_seg.engine.evaluate import CLEAN, Condition
from lqn_seg.engine.studio import Source, Studio, readers
from lqn_seg.errors import InputError, nearest
from lqn_seg.lab.explorer.job import SHOWN_FIRST, Job, offered
from lqn_seg.lab.report.wording import title
from lqn_seg.visualization.files import png_bytes


@dataclass(frozen=True)
class Start:
    """What a visitor sees first.

    Attributes:
        photograph: a file, as it is or shipped, offered before the scenes; empty: the first scene.
        methods: side by side.
    """

    photograph: str = ""
    corruption: str = "contrast"
    severity: int = 3
    methods: tuple[str, ...] = SHOWN_FIRST


START = Start()
PAGE = "page.html"
FILES = (PAGE, "page.css", "page.js", "pictures.js", "curves.js")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
MOST_BYTES = 20 * 2**20  # of an upload
MOST_PIXELS = 40_000_000  # of an upload
SHOWN = 1024  # pixels on the longer side of an upload; larger ones are shrunk
KEPT = 16  # jobs, and uploads, before the oldest is forgotten
SCENES = 12  # of the data set that are offered
# The page may talk to this server and to nobody else, whatever it contains.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_LOCAL = ("127.0.0.1", "localhost")
T = TypeVar("T")
Reply = tuple[str, bytes]  # content type and content


class NotHere(InputError):
    """What was asked for does not exist, or was forgotten."""


class Explorer:
    """Teachers, images and jobs behind the page; the first teacher is the default."""

    def __init__(self, studios: Mapping[str, Studio]) -> None:
        self.studios = dict(studios)
        self.jobs: dict[str, Job] = {}
        self.uploads: dict[str, Source] = {}
        self.turn = threading.Lock()
        self.scenes: dict[str, Source] = {}
        for studio in self.studios.values():
            _ = studio.segmenter, studio.categories  # load now, so that the first visitor is served
        self.first = next(iter(self.studios.values()))
        try:
            sources = [read() for read in readers(self.first.cfg, (), SCENES)]
        except InputError as error:  # no failure: images can be dropped
            print(f"no scenes to offer: {error}", file=sys.stderr)
            sources = []
        if START.photograph:
            photographs = [find_local(START.photograph)]
            sources = [read() for read in readers(self.first.cfg, photographs)] + sources
        for source in sources:
            self.scenes[str(source.record["image_id"]) if source.record else source.name] = source
        if sources:  # the first pass is slow
            self.first.segmenter_of({"teacher": None})([sources[0].tensor])

    def run(self, request: Mapping[str, Any]) -> str:
        """Start a job, with another ``instead`` of which nobody waits any more; returns its id."""
        if replaced := self.jobs.get(str(request.get("instead"))):
            replaced.work.cancelled = True

        def choice(key: str, choices: Sequence[str], default: str) -> str:
            return nearest(str(request.get(key, default)), choices, key)

        teachers = list(self.studios)
        studio = self.studios[choice("teacher", teachers, teachers[0])]
        preset = choice("preset", [*PRESETS], studio.cfg.MODEL.LQN.PRESET)
        name = choice("corruption", [CLEAN, *ALL_CORRUPTIONS], CLEAN)
        condition = Condition(name, request.get("severity", 3)) if name != CLEAN else Condition()
        if "upload" in request:
            source = _recall(self.uploads, str(request["upload"]), "upload")
        elif str(request.get("scene")) in self.scenes:
            source = self.scenes[str(request["scene"])]
        else:
            raise InputError(f"there is no scene {request.get('scene')!r}")
        asked = request.get("methods", START.methods)
        methods = [self._method(name) for name in asked] if isinstance(asked, list | tuple) else []
        damaged = source.under(condition, studio.config.seed)
        job = Job(studio, damaged, preset, self.turn, methods)
        job.work.thread.start()
        return _remember(self.jobs, job)

    def _method(self, name: Any) -> str:
        return nearest(str(name), offered(self.first.cfg), "method")

    def get(self, path: str, query: Mapping[str, str]) -> Reply:
        """What is at a path; an `InputError` where nothing is, or not yet."""
        match path.removeprefix("/").split("/"):
            case [name] if (name or PAGE) in FILES:
                file = Path(__file__).with_name(name or PAGE)
                return f"{_KINDS[file.suffix]}; charset=utf-8", file.read_bytes()
            case ["api", "options"]:
                return _json(self.options())
            case ["api", "scene", file] if scene := self.scenes.get(_scene_name(file)):
                return "image/png", png_bytes(scene.pixels)
            case ["api", "job", number, *part]:
                return _of_job(_recall(self.jobs, number, "job"), part, query)
        raise NotHere(f"there is nothing at {path}")

    def options(self) -> dict[str, Any]:
        """What there is to choose from, and what to begin with."""
        methods = [{"name": n, "title": title(n)} for n in offered(self.first.cfg)]
        return {
            "corruptions": [CLEAN, *ALL_CORRUPTIONS],
            "presets": list(PRESETS),
            "preset": self.first.cfg.MODEL.LQN.PRESET,
            "scenes": {key: source.name for key, source in self.scenes.items()},
            "teachers": list(self.studios),
            "methods": methods,
            "start": asdict(START),
        }

    def post(self, path: str, content: bytes, name: str) -> Reply:
        """Take in an image file of a name, the request for a job, which reply with an id, or that
        for one more method in a job."""
        if path == "/api/upload":
            return _json({"upload": _remember(self.uploads, read_upload(content, name))})
        if path not in ("/api/run", "/api/add"):
            raise NotHere(f"there is nothing at {path}")
        try:
            request = json.loads(content)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            raise InputError("the request is no JSON object")
        if path == "/api/run":
            return _json({"job": self.run(request)})
        job = _recall(self.jobs, str(request.get("job")), "job")
        job.add(self._method(request.get("method")))
        return _json(job.status())


def _scene_name(file: str) -> str:
    return unquote(file).removesuffix(".png")


def _of_job(job: Job, part: Sequence[str], query: Mapping[str, str]) -> Reply:
    match part:
        case []:
            return _json(job.status())
        case ["depth"]:
            return _json(job.layer(query.get("layer", "")))
        case ["image.png"]:
            return "image/png", png_bytes(job.source.pixels)
        case ["panel.png"]:
            return "image/png", job.panel_png()
        case ["map", file] if file.endswith(".png"):
            return "image/png", job.map_png(file.removesuffix(".png"))
        case ["map", file] if file.endswith(".ids"):
            return "application/octet-stream", job.map_ids(file.removesuffix(".ids"))
        case ["labels", file] if file.endswith(".png"):
            return "image/png", job.labels_png(file.removesuffix(".png"))
    raise NotHere(f"a job has nothing at {'/'.join(part)!r}")


def read_upload(content: bytes, name: str) -> Source:
    """An uploaded file as an image of at most `SHOWN` pixels on its longer side; an InputError if
    it is too large, damaged or no image."""
    name = re.sub(r"[^\w. -]+", "_", name)[:80] or "image"
    with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        file.write(content)
        file.flush()
        try:
            if math.prod(upright_size(file.name)) > MOST_PIXELS:
                most = MOST_PIXELS // 10**6
                raise InputError(f"{name} is too large: more than {most} million pixels")
            image = Image.fromarray(read_image(file.name))
        except InputError as error:
            raise InputError(str(error).replace(file.name, name)) from None
    image.thumbnail((SHOWN, SHOWN))
    return Source(Path(name).stem, np.array(image), file_name(name))


def _remember(kept: dict[str, T], value: T) -> str:
    """Keep a value under an id that nobody guesses; those before the last `KEPT` go."""
    number = secrets.token_urlsafe(16)
    kept[number] = value
    for oldest in list(kept)[:-KEPT]:
        if isinstance(forgotten := kept.pop(oldest, None), Job):
            forgotten.work.cancelled = True
    return number


def _recall(kept: Mapping[str, T], number: str, kind: str) -> T:
    if (value := kept.get(number)) is None:
        raise NotHere(f"this {kind} is unknown or was forgotten: start again")
    return value


def _json(value: Any) -> Reply:
    return "application/json", json.dumps(value).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    site: Explorer
    hosts: tuple[str, ...] = ()  # by which the page may be asked for; none: by any

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self._reply(partial(self.site.get, parts.path, dict(parse_qsl(parts.query))))

    def do_POST(self) -> None:
        self._reply(self._posted)

    def _posted(self) -> Reply:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True  # what is still coming is not read
            most = f"more than {MOST_BYTES // 2**20} MB"
            raise InputError(f"the file is too large: {most}, or does not say how long it is")
        name = unquote(self.headers.get("X-Name", ""))
        return self.site.post(self.path, self.rfile.read(int(length)), name)

    def _reply(self, work: Callable[[], Reply]) -> None:
        status = 200
        try:
            if self.hosts and self.headers.get("Host", "").split(":")[0] not in self.hosts:
                self.close_connection = True
                raise InputError("this page is served to 127.0.0.1 only")
            kind, content = work()
        except InputError as error:
            status = 404 if isinstance(error, NotHere) else 400
            kind, content = _json({"error": str(error)})
        except Exception as error:  # not foreseen
            traceback.print_exc()
            status = 500
            kind, content = _json({"error": f"{type(error).__name__}: {error}"})
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}
        try:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the visitor has left

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: visitors are not logged."""


def make_server(
    explorer: Explorer, host: str = "127.0.0.1", port: int = 7860
) -> ThreadingHTTPServer:
    """A server that listens; an InputError if the address cannot be listened on."""
    # A page elsewhere that has its name resolved to this machine must not read from it.
    hosts = _LOCAL if host in _LOCAL else ()
    handler = type("Handler", (_Handler,), {"site": explorer, "hosts": hosts})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        address = f"{host}:{port} ({error.strerror})"
        raise InputError(f"--host, --port: cannot listen on {address}") from error


def open_explorer(
    config_file: str, teachers: Mapping[str, str], device: str, overrides: list[str]
) -> Explorer:
    """An explorer of a configuration's teacher, or of others by name and weights."""
    build = partial(Studio, config_file, device=device)
    if not teachers:
        only = build(overrides=overrides)
        return Explorer({only.cfg.MODEL.LQN.TEACHER.WEIGHTS or "random weights": only})
    base = [*overrides, "MODEL.LQN.TEACHER.WEIGHTS"]
    return Explorer({name: build(overrides=[*base, w]) for name, w in teachers.items()})

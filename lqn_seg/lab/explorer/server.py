"""HTTP around jobs: routes, limits, and one sentence for whatever is wrong."""

from __future__ import annotations

import io
import json
import re
import secrets
import sys
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from lqn_seg.core.config import PRESETS
from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.data.file_names import file_name
from lqn_seg.data.images import read_image
from lqn_seg.data.metadata import Record
from lqn_seg.engine.evaluate import CLEAN, Condition
from lqn_seg.engine.probe import Source, readers, scene
from lqn_seg.errors import InputError, nearest
from lqn_seg.lab.explorer.job import Job
from lqn_seg.lab.inspect.visualize import Request, Studio

PAGE = Path(__file__).with_name("page.html")
MOST_BYTES = 20 * 2**20  # of an upload
MOST_PIXELS = 40_000_000  # of an upload
SHOWN = 1024  # pixels on the longer side of an upload; larger ones are shrunk
KEPT = 16  # jobs, and uploads, before the oldest is forgotten
SCENES = 24  # of the data set that are offered

# The page may talk to this server and to nobody else, whatever it contains.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
T = TypeVar("T")
Answer = tuple[str, bytes]  # content type and content


class NotHere(InputError):
    """What was asked for does not exist, or was forgotten."""


class Explorer:
    """Teachers, images and jobs behind the page.

    Args:
        studios: by the name under which a teacher is offered; the first is the default.

    Raises:
        InputError: a teacher cannot be loaded.
    """

    def __init__(self, studios: Mapping[str, Studio]) -> None:
        self.studios = dict(studios)
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.uploads: OrderedDict[str, Source] = OrderedDict()
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self.records: dict[str, Record] = {}
        for studio in self.studios.values():
            _ = studio.segmenter, studio.categories  # load now, so that the first visitor is served
        self._warm_up()

    def _warm_up(self) -> None:
        """Scenes of the first teacher's data set; none is no failure, images can be dropped."""
        studio = next(iter(self.studios.values()))
        try:
            found = [read() for read in readers(studio.cfg, (), SCENES)]
        except InputError as error:
            print(f"no scenes to offer: {error}", file=sys.stderr)
            return
        self.records = {str(s.record["image_id"]): s.record for s in found if s.record}
        studio.segmenter_of({"teacher": None})([found[0].tensor])  # the first pass is the slowest

    def options(self) -> dict[str, Any]:
        """What can be chosen."""
        first = next(iter(self.studios.values()))
        return {
            "scenes": list(self.records),
            "corruptions": [CLEAN, *CORRUPTIONS],
            "teachers": list(self.studios),
            "presets": list(PRESETS),
            "preset": first.cfg.MODEL.LQN.PRESET,
        }

    def upload(self, content: bytes, name: str) -> str:
        """Take in an image file; returns its id.

        Raises:
            InputError: it is too large, damaged or no image.
        """
        return _remember(self.uploads, read_upload(content, name), self._lock)

    def run(self, wanted: Mapping[str, Any]) -> str:
        """Start a job; returns its id.

        Args:
            wanted: ``scene`` or ``upload``, ``corruption``, ``severity``, ``teacher``, ``preset``,
                and ``instead``, the id of a job whose visitor no longer waits for it.

        Raises:
            InputError: a value is unknown.
        """
        if wanted.get("instead") in self.jobs:
            self.jobs[wanted["instead"]].cancelled = True
        teacher = nearest(
            str(wanted.get("teacher", next(iter(self.studios)))), [*self.studios], "teacher"
        )
        studio = self.studios[teacher]
        preset = wanted.get("preset", studio.cfg.MODEL.LQN.PRESET)
        preset = nearest(str(preset), tuple(PRESETS), "preset")
        name = nearest(str(wanted.get("corruption", CLEAN)), (CLEAN, *CORRUPTIONS), "corruption")
        severity = wanted.get("severity", 3)
        condition = Condition() if name == CLEAN else Condition(name, severity)
        damaged = self._source(wanted).under(condition, studio.config.seed)
        job = Job(studio, damaged, preset, self._turn)
        number = _remember(self.jobs, job, self._lock)
        job.start()
        return number

    def _source(self, wanted: Mapping[str, Any]) -> Source:
        if "upload" in wanted:
            return _recall(self.uploads, str(wanted["upload"]), "upload", self._lock)
        if str(wanted.get("scene")) not in self.records:
            raise InputError(f"there is no scene {wanted.get('scene')!r}")
        return scene(self.records[str(wanted["scene"])])

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """What is at a path.

        Raises:
            NotHere: nothing is.
            InputError: it is not ready yet, or a number is wrong.
        """
        if path == "/":
            return "text/html; charset=utf-8", PAGE.read_bytes()
        if path == "/api/options":
            return _json(self.options())
        if match := re.fullmatch(r"/api/scene/([^/]+)\.png", path):
            if match[1] not in self.records:
                raise NotHere(f"there is no scene {match[1]!r}")
            return "image/png", Path(self.records[match[1]]["file_name"]).read_bytes()
        if match := re.fullmatch(r"/api/job/([^/]+)(?:/(.+))?", path):
            job = _recall(self.jobs, match[1], "job", self._lock)
            return _of_job(job, match[2] or "", query)
        raise NotHere(f"there is nothing at {path}")


def _of_job(job: Job, what: str, query: Mapping[str, str]) -> Answer:
    if what == "":
        return _json(job.status())
    if what == "image.png":
        return "image/png", job.image_png()
    if what == "panel.png":
        return "image/png", job.panel_png()
    if what == "depth":
        try:
            layer = float(query.get("layer", ""))
        except ValueError:
            raise InputError("the layer must be a number") from None
        return _json(job.layer(layer))
    if match := re.fullmatch(r"map/([\w-]+)\.(png|ids)", what):
        if match[2] == "png":
            return "image/png", job.map_png(match[1])
        return "application/octet-stream", job.map_ids(match[1])
    raise NotHere(f"a job has nothing at {what!r}")


def read_upload(content: bytes, name: str) -> Source:
    """An uploaded file as an image of at most `SHOWN` pixels on its longer side.

    Raises:
        InputError: it is too large, damaged or no image; the name it came under is in the sentence.
    """
    figure = file_name(name or "image")
    name = re.sub(r"[^\w. -]+", "_", name)[:80] or "image"
    if not content:
        raise InputError(f"{name} is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            width, height = Image.open(io.BytesIO(content)).size
        except Image.DecompressionBombError:
            width = height = MOST_PIXELS
        except Exception:
            raise InputError(f"{name} is not an image that can be read") from None
        if width * height > MOST_PIXELS:
            most = MOST_PIXELS // 10**6
            raise InputError(f"{name} is too large: more than {most} million pixels")
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
            file.write(content)
            file.flush()
            try:
                pixels = read_image(file.name)
            except InputError as error:
                raise InputError(str(error).replace(file.name, name)) from None
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN, SHOWN))
    return Source(Path(name).stem, np.array(image), file_name=figure)


def _remember(kept: OrderedDict[str, T], value: T, lock: threading.Lock) -> str:
    """Keep a value under an id that nobody guesses; the oldest beyond `KEPT` goes."""
    number = secrets.token_urlsafe(16)
    with lock:
        kept[number] = value
        while len(kept) > KEPT:
            _, oldest = kept.popitem(last=False)
            if isinstance(oldest, Job):
                oldest.cancelled = True
    return number


def _recall(kept: OrderedDict[str, T], number: str, what: str, lock: threading.Lock) -> T:
    with lock:
        if number not in kept:
            raise NotHere(f"this {what} is unknown or was forgotten: start again")
        kept.move_to_end(number)
        return kept[number]


def _json(value: Any) -> Answer:
    return "application/json", json.dumps(value).encode()


def make_server(
    explorer: Explorer, host: str = "127.0.0.1", port: int = 7860
) -> ThreadingHTTPServer:
    """A server that listens; `serve_forever` serves.

    Raises:
        InputError: the address cannot be listened on.
    """

    class Handler(_Handler):
        site = explorer
        # A page elsewhere that has its name resolved to this machine must not read from it.
        hosts = None if host not in ("127.0.0.1", "localhost") else ("127.0.0.1", "localhost")

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise InputError(
            f"--host, --port: cannot listen on {host}:{port} ({error.strerror})"
        ) from error


class _Handler(BaseHTTPRequestHandler):
    site: Explorer
    hosts: tuple[str, ...] | None = None
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Whatever `Explorer.get` has."""
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self._answer(lambda: self.site.get(parts.path, query))

    def do_POST(self) -> None:
        """An upload, or a job."""
        self._answer(self._posted)

    def _posted(self) -> Answer:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self.close_connection = True
            raise InputError("the request has no length")
        if int(length) > MOST_BYTES:
            self.close_connection = True  # what is still coming is not read
            raise InputError(f"the file is too large: more than {MOST_BYTES // 2**20} MB")
        content = self.rfile.read(int(length))
        if self.path == "/api/upload":
            return _json(
                {"upload": self.site.upload(content, unquote(self.headers.get("X-Name", "")))}
            )
        if self.path != "/api/run":
            raise NotHere(f"there is nothing at {self.path}")
        try:
            wanted = json.loads(content)
        except ValueError:
            wanted = None
        if not isinstance(wanted, dict):
            raise InputError("the request is no JSON object")
        return _json({"job": self.site.run(wanted)})

    def _answer(self, work: Any) -> None:
        status = 200
        try:
            if self.hosts and self.headers.get("Host", "").split(":")[0] not in self.hosts:
                self.close_connection = True
                raise InputError("this page is served to 127.0.0.1 only")
            kind, content = work()
        except NotHere as error:
            status, (kind, content) = 404, _json({"error": str(error)})
        except InputError as error:
            status, (kind, content) = 400, _json({"error": str(error)})
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the visitor has left

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: visitors are not logged."""


def open_explorer(
    config_file: str, teachers: Mapping[str, str], device: str, overrides: list[str]
) -> Explorer:
    """An explorer of a configuration's teacher, and of others by name and weights."""

    def studio(*further: str) -> Studio:
        chosen = [*overrides, *further]
        return Studio(Request(Path(), config_file, overrides=chosen, device=device))

    if teachers:
        return Explorer(
            {name: studio("MODEL.LQN.TEACHER.WEIGHTS", place) for name, place in teachers.items()}
        )
    only = studio()
    return Explorer({only.cfg.MODEL.LQN.TEACHER.WEIGHTS or "random weights": only})

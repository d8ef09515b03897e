"""Files in, a folder of results out: images, folders of them, globs, videos."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from lqn_seg.api.archive import Archive, describe
from lqn_seg.api.model import Model
from lqn_seg.api.pixels import Picture, Pixels
from lqn_seg.api.result import SegmentationResult
from lqn_seg.data.file_names import file_name
from lqn_seg.data.images import decode, read_bytes
from lqn_seg.data.inputs import File, find_files
from lqn_seg.engine.store import make_writable, say, write_atomically
from lqn_seg.errors import InputError

_PAUSE = 20.0  # seconds between two writings of the JSON files


@dataclass
class Summary:
    """What became of the files.

    Attributes:
        done, skipped, failed: how many; those skipped were there already, those failed were named.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0


def predict_files(
    model: Model,
    inputs: Sequence[str],
    folder: Path,
    resume: bool = False,
    strict: bool = False,
    every: int = 1,
) -> Summary:
    """Predict every image and video and write what `Result.save` writes, a video as an overlay
    video and JSON.

    Args:
        resume: leave out what the folder has already; an image whose content has changed is done
            again.
        strict: stop at the first file that cannot be read, which is otherwise named and left out.
        every: of a video, predict each so-many-th frame.

    Raises:
        InputError: nothing is named, the folder cannot be written to, with `resume` holds another
            model's results, or no file could be read.
    """
    if every < 1:
        raise InputError(f"--every must be at least 1, not {every}")
    files = find_files(inputs)
    make_writable(folder)
    summary, images = Summary(), _Images(model, folder, resume)
    try:
        for file in tqdm(files, unit="file", disable=len(files) < 2):
            try:
                if file.is_video:
                    predict_video(model, file, folder, resume, every, summary)
                else:
                    images.predict(file, summary)
            except InputError as error:
                if strict:
                    raise
                summary.failed += 1
                say(f"left out: {error}")
    finally:
        images.write()
    if summary.failed == len(files):
        raise InputError("no file could be predicted")
    return summary


class _Images:
    """The images of a run, and their archive, which is written now and then."""

    def __init__(self, model: Model, folder: Path, resume: bool) -> None:
        self.model, self.resume = model, resume
        self.archive = Archive(folder, model.about, resume)
        self._is_written, self._time = True, time.monotonic()

    def predict(self, file: File, summary: Summary) -> None:
        data = read_bytes(file.path)
        stamp = f"{zlib.crc32(data):08x}"
        if self.resume and self.archive.has(file.name, stamp):
            summary.skipped += 1
            return
        picture = Picture(decode(data, file.path), file.name)
        (result,) = self.model.results([picture])
        self.archive.add(result, stamp)
        summary.done += 1
        self._is_written = False
        if time.monotonic() - self._time > _PAUSE:
            self.write()

    def write(self) -> None:
        if not self._is_written:
            self.archive.write()
        self._is_written, self._time = True, time.monotonic()


def predict_video(
    model: Model, file: File, folder: Path, resume: bool, every: int, summary: Summary
) -> None:
    """Predict a video frame by frame: ``NAME_overlay.mp4`` of a segmentation, and ``NAME.json``
    with each frame's number, time in seconds and answer. The JSON is written last: it says that all
    is there."""
    name = file_name(file.path.stem if "/" not in file.name else file.name)
    listing = folder / f"{name}.json"
    about = {"video": file.name, "model": model.about.model, "method": model.method, "every": every}
    about["bytes"] = file.path.stat().st_size
    if resume and _holds(listing, about):
        summary.skipped += 1
        return
    reader = cv2.VideoCapture(str(file.path))
    writer, frames = None, []
    fps = reader.get(cv2.CAP_PROP_FPS) or 25.0
    total = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    try:
        for number, pixels in tqdm(_frames(reader), file.name, total, unit="frame", leave=False):
            if number % every:
                continue
            (result,) = model.results([Picture(pixels, f"{file.name}-{number}")])
            if isinstance(result, SegmentationResult):
                drawn = result.overlay
                writer = writer or _writer(folder / f"{name}_overlay.mp4", fps / every, drawn)
                writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            frames.append({"frame": number, "seconds": round(number / fps, 3), **describe(result)})
    finally:
        reader.release()
        if writer is not None:
            writer.release()
    if not frames:
        raise InputError(f"video {file.path} has no frame that can be read")
    about |= {"fps": fps, "classes": list(model.classes)}
    write_atomically(listing, json.dumps({**about, "frames": frames}) + "\n")
    summary.done += 1


def _frames(reader: Any) -> Iterator[tuple[int, Pixels]]:
    """Number and (H, W, 3) uint8 RGB of each frame."""
    number = 0
    while True:
        is_there, frame = reader.read()
        if not is_there:
            return
        yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        number += 1


def _writer(path: Path, fps: float, frame: Pixels) -> Any:
    height, width = frame.shape[:2]
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), code, fps, (width, height))
    if not writer.isOpened():
        raise InputError(f"cannot write the video {path}")
    return writer


def _holds(listing: Path, about: dict[str, Any]) -> bool:
    """Whether a video's JSON is there, of the same video, model and method."""
    try:
        stored = json.loads(listing.read_text()) if listing.is_file() else {}
    except ValueError:
        return False
    return bool(stored) and all(stored.get(key) == value for key, value in about.items())

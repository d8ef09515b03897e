"""Reading of stored results: only where each lies is in memory, not what it says."""

import json
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lqn_seg.errors import InputError

Key = int | str
Result = dict[str, Any]
STAMP = "input_hash"
_LINE = re.compile(r'\{"crc32": (\d+), "images": (\[.*\])\}')
_SHARD = re.compile(r"\d+of(\d+)\.jsonl")


class Place(NamedTuple):
    """Where an entry lies: the line at an offset of a file, or the line itself while there is no
    room for it on the disk; and the entry's number in the line."""

    source: Path | str
    offset: int
    number: int

    def read(self) -> Result:
        if isinstance(self.source, str):
            return parse_line(self.source)[self.number]
        about = self.source.stat()
        entries = _line_at(self.source, self.offset, (about.st_mtime_ns, about.st_size))
        if self.number < len(entries):
            return entries[self.number]
        raise InputError(f"{self.source} has changed since it was read: another run writes there")


@lru_cache(maxsize=1)  # a line has a batch of images, which are asked for one after the other
def _line_at(path: Path, offset: int, stamp: tuple[int, int]) -> list[Result]:
    """The entries of the line at an offset of a file, which has changed where the stamp has."""
    with path.open("rb") as file:
        file.seek(offset)
        return parse_line(_decode(file.readline()))


class Results(Mapping[Key, Result]):
    """Results by image id, each read when it is asked for."""

    def __init__(self, places: Mapping[Key, Place]) -> None:
        self._places = places

    def __getitem__(self, key: Key) -> Result:
        return self._places[key].read()

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Index:
    """What lies in a folder: for each group and image the last result that counts, whichever
    process or run wrote it, and a failure only where there is no result.

    Args:
        unwritten: (group, line) of what is in no file yet.
        stale: (image id, stamp) of results that do not count.

    Attributes:
        failures: why not, by group and image id.
        stamps: all that an image's results have, counting or not.
        shards: into how many the runs were split that wrote here.
    """

    def __init__(
        self,
        folder: Path,
        groups: Sequence[str],
        unwritten: Iterable[tuple[str, str]] = (),
        stale: Container[tuple[Key, str]] = (),
    ) -> None:
        self._places: dict[str, dict[Key, Place]] = {group: {} for group in groups}
        self.failures: dict[str, dict[Key, str]] = {group: {} for group in groups}
        self.stamps: dict[Key, set[str]] = {}
        self.shards: set[int] = set()
        for group in groups:
            for path in sorted(folder.glob(f"{group}.*.jsonl")):
                if match := _SHARD.fullmatch(path.name.removeprefix(f"{group}.")):
                    self.shards.add(int(match[1]))
                for offset, text in _lines(path):
                    self._add(group, path, offset, text, stale)
        for group, text in unwritten:
            self._add(group, text, 0, text, stale)

    def _add(
        self,
        group: str,
        source: Path | str,
        offset: int,
        text: str,
        stale: Container[tuple[Key, str]],
    ) -> None:
        places, failures = self._places[group], self.failures[group]
        for number, (key, stamp, failed) in enumerate(_heads(text)):
            if failed is None:
                self.stamps.setdefault(key, set()).add(stamp)
            if (key, stamp) in stale or (failed is not None and key in places):
                continue
            if failed is None:
                places[key] = Place(source, offset, number)
                failures.pop(key, None)
            else:
                failures[key] = failed

    def results(self, group: str) -> Results:
        return Results(self._places[group])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file, and where each begins."""
    with path.open("rb") as file:
        offset = 0
        for line in file:
            yield offset, _decode(line)
            offset += len(line)


def _decode(line: bytes) -> str:
    return line.decode(errors="replace")


def format_line(entries: Sequence[Mapping[str, Any]]) -> str:
    """A batch as a line of JSON that carries its own checksum."""
    body = json.dumps(entries)
    return f'{{"crc32": {zlib.crc32(body.encode())}, "images": {body}}}\n'


def parse_line(text: str) -> list[Result]:
    """The batch of a line; nothing from one that is torn or damaged."""
    body = _body(text)
    return json.loads(body) if body else []


def _body(text: str) -> str:
    """The JSON of a line; empty where it is torn or damaged."""
    match = _LINE.fullmatch(text.rstrip("\n"))
    if match is None or zlib.crc32(match[2].encode()) != int(match[1]):
        return ""
    return match[2]


class _Head(msgspec.Struct):
    image_id: Key
    input_hash: str = ""
    failed: str | None = None


_HEADS = msgspec.json.Decoder(list[_Head])


def _heads(text: str) -> list[tuple[Key, str, str | None]]:
    """Image id, stamp and failure of a line's entries: reads ten times as fast as all of them."""
    body = _body(text)
    if not body:
        return []
    try:
        return [(head.image_id, head.input_hash, head.failed) for head in _HEADS.decode(body)]
    except msgspec.MsgspecError:  # it knows no NaN
        entries = json.loads(body)
    return [(e["image_id"], e.get(STAMP, ""), e.get("failed")) for e in entries]

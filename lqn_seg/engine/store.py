"""Work over many images that any number of processes share and that survives being killed.

Nothing here knows what a result is: it is a JSON-able dict per image. Images are worked off in
chunks; a finished chunk becomes one line with its checksum in its process's own file, so a kill can
at worst tear the line that was being written, which is then not believed. All numbers are made
from those lines, whoever wrote them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lqn_seg.engine import launch
from lqn_seg.errors import InputError

Key = int | str
Record = dict[str, Any]
Result = dict[str, Any]
Work = Callable[[str, Sequence[Record]], Iterable[Result]]
STAMP = "input_hash"
_LINE = re.compile(r'\{"crc32": (\d+), "images": (\[.*\])\}')
_NAMED = 5  # images that are named where some have changed
_QUIET = 30.0  # seconds between two lines of progress in a file


@dataclass
class Kept:
    """What is known of a group's images.

    Attributes:
        results: by image id.
        failures: why an image has none, by image id.
    """

    results: dict[Key, Result] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take in a chunk; what comes later counts, so a failure can be made good."""
        for entry in entries:
            key = entry["image_id"]
            self.results.pop(key, None)
            self.failures.pop(key, None)
            if "failed" in entry:
                self.failures[key] = entry["failed"]
            else:
                self.results[key] = dict(entry)


class ShardedRun:
    """A folder of results, and the way to fill it.

    Args:
        folder: receives ``run.json`` and ``<group>.<process>.jsonl``. Processes on several machines
            must see the same folder.
        fingerprint: what has to be equal for results to belong together.
        groups: names of what is done with every image (conditions).
        resume: go on from the results in the folder; otherwise they are removed.
        strict: stop at the first image that fails, or when the disk is full.
        stamp: what a record's results are of; kept with them. See `forget_changed`.
        may_change: keys of the fingerprint that all processes must have in common, but not a run
            and the one that it goes on from.

    Raises:
        InputError: the folder cannot be used, or holds a run of another fingerprint and ``resume``
            was asked for.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        groups: Sequence[str],
        resume: bool = False,
        strict: bool = False,
        stamp: Callable[[Record], str] | None = None,
        may_change: Sequence[str] = (),
    ) -> None:
        self.folder, self.groups, self.strict = folder, list(groups), strict
        self.stamp, self.may_change = stamp, set(may_change)
        self._stale: set[tuple[Key, str]] = set()  # (image id, stamp) of results that do not count
        self.unwritten: list[tuple[str, str]] = []  # (group, line) that found no room on the disk
        self.complaint = ""  # why not
        self._kept: dict[str, Kept] | None = None
        with launch.together():
            if launch.is_main():
                self._open(json.loads(json.dumps(fingerprint)), resume)
        with launch.together():
            if not launch.is_main():
                self._check_same(json.loads(json.dumps(fingerprint)))

    # ---- the folder ------------------------------------------------------------------------------

    def _open(self, fingerprint: dict[str, Any], resume: bool) -> None:
        """Refuse to go on from another run's results; start afresh by removing them all."""
        path = self.folder / "run.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stored = json.loads(path.read_text()) if path.is_file() else None
        except OSError as error:
            raise InputError(f"OUTPUT_DIR: cannot use {self.folder} ({error.strerror})") from error
        except ValueError:
            stored = {}
        stored = stored if isinstance(stored, dict | None) else {}
        keys = sorted({*fingerprint, *(stored or ())} - self.may_change)
        others = [key for key in keys if fingerprint.get(key) != (stored or {}).get(key)]
        if resume and stored is not None and others:
            raise InputError(
                f"{self.folder} holds results of another configuration, teacher, data set or "
                f"machine (it differs in: {', '.join(others)}): choose another OUTPUT_DIR, or "
                "leave --resume out to start again"
            )
        if not resume or stored is None:
            for old in self.folder.glob("*.jsonl"):
                old.unlink()
        write_atomically(path, json.dumps(fingerprint, indent=2) + "\n")

    def _check_same(self, fingerprint: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError):
            stored = None
        if stored != fingerprint:
            raise InputError(
                f"OUTPUT_DIR: process {launch.rank()} does not find its own run in {path}: all "
                "processes need the same files and a folder that they all see"
            )

    def _read(self, group: str) -> Kept:
        """All that any process, of this run or one before it, has kept of a group and that counts.

        What comes later counts, and files come by their names: whether a result is of an image as
        it is now, only its stamp can say.
        """
        kept = Kept()
        for entries in self._stored(group):
            kept.add(e for e in entries if (e["image_id"], e.get(STAMP, "")) not in self._stale)
        return kept

    def _stored(self, group: str) -> Iterator[list[Result]]:
        for path in sorted(self.folder.glob(f"{group}.*.jsonl")):
            with path.open(errors="replace") as file:
                yield from map(parse_line, file)

    def forget_changed(self, records: Sequence[Record]) -> list[Key]:
        """Let no result count that is of other content than its record has now.

        Every process has to call it; each looks at its share of the records.

        Returns:
            Ids of the images that have to be done again, which is said.
        """
        stamps: dict[Key, set[str]] = {}
        for group in self.groups:
            for entry in itertools.chain.from_iterable(self._stored(group)):
                if "failed" not in entry:
                    stamps.setdefault(entry["image_id"], set()).add(entry.get(STAMP, ""))
        known = [record for record in records if record["image_id"] in stamps]
        mine = [
            (record["image_id"], self._stamped(record).get(STAMP, ""))
            for record in known[launch.rank() :: launch.size()]
        ]
        now = dict(itertools.chain.from_iterable(launch.gather(mine)))
        before = [set(self._read(group).results) for group in self.groups]
        self._stale = {(key, stamp) for key in now for stamp in stamps[key] - {now[key]}}
        after = [set(self._read(group).results) for group in self.groups]
        lost = set().union(*(b - a for b, a in zip(before, after)))
        changed = [record["image_id"] for record in known if record["image_id"] in lost]
        if changed and launch.is_main():
            more = ", ..." if len(changed) > _NAMED else ""
            say(
                f"changed since they were evaluated (image, label or annotation), so evaluated "
                f"again: {len(changed)} of {len(records)} images "
                f"({', '.join(map(str, changed[:_NAMED]))}{more})"
            )
        return changed

    @property
    def kept(self) -> dict[str, Kept]:
        """By group, all that is there now; read again after every `execute`."""
        if self._kept is None:
            self._kept = {group: self._read(group) for group in self.groups}
            for group, text in self.unwritten:
                self._kept[group].add(parse_line(text))
        return self._kept

    def _keep(self, group: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append a chunk, with all that could not be written before it."""
        self.unwritten.append((group, format_line(entries)))
        try:
            while self.unwritten:
                self._append(*self.unwritten[0])
                self.unwritten.pop(0)
        except OSError as error:
            reason = f"{self.folder}: cannot write results ({error.strerror})"
            if self.strict:
                raise InputError(reason) from error
            if not self.complaint:
                say(f"{reason}; they are held in memory, and every further chunk tries again")
            self.complaint = reason

    def _append(self, group: str, line: str) -> None:
        with (self.folder / f"{group}.{launch.rank()}.jsonl").open("a+b") as file:
            data = line.encode()
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                # A torn line stays torn, alone.
                data = data if file.read(1) == b"\n" else b"\n" + data
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    # ---- the work --------------------------------------------------------------------------------

    def left(self, records: Sequence[Record], batch: int) -> list[tuple[str, list[Record]]]:
        """Chunks that are not finished, the same in every process.

        Where a chunk begins depends on the image's place among the records alone, so images keep
        their company whatever was finished before and whoever works. Failures are tried again.
        """
        chunks = []
        for group in self.groups:
            done = self._read(group).results
            for start in range(0, len(records), batch):
                chunk = [r for r in records[start : start + batch] if r["image_id"] not in done]
                chunks += [(group, chunk)] if chunk else []
        return chunks

    def execute(
        self,
        records: Sequence[Record],
        batch: int,
        work: Work,
        progress: bool = True,
        announce: Callable[[str, Sequence[Record]], None] | None = None,
    ) -> None:
        """Do what is not finished, each process its share, and wait for one another.

        Args:
            records: have an ``image_id`` each.
            batch: images that ``work`` is given at a time.
            work: a group's results for some records, in their order; each depends on its own record
                alone.
            announce: is told the chunk that comes next before each is worked on.

        Raises:
            InputError: from ``work``, where the run is strict.
        """
        todo = self.left(records, batch)
        launch.gather(None)  # nobody writes before all have seen what is left
        self._kept = None
        mine = todo[launch.rank() :: launch.size()]
        with _bar(sum(len(chunk) for _, chunk in mine), progress) as bar:
            for (group, chunk), following in itertools.zip_longest(mine, mine[1:]):
                bar.set_description(f"{group:<20}", refresh=False)
                if announce is not None and following is not None:
                    announce(*following)
                self._keep(group, self._attempt(work, group, chunk))
                bar.update(len(chunk))
        others = launch.gather((self.unwritten, self.complaint))
        self.unwritten = [line for unwritten, _ in others for line in unwritten]
        self.complaint = next((complaint for _, complaint in others if complaint), "")
        self._check_complete(records)

    def _stamped(self, record: Record) -> dict[str, str]:
        return {} if self.stamp is None else {STAMP: self.stamp(record)}

    def _attempt(self, work: Work, group: str, chunk: Sequence[Record]) -> list[Result]:
        """A chunk's entries; an image that cannot be done takes none of its company with it."""
        try:
            stamps = [self._stamped(record) for record in chunk]
            return [
                {"image_id": record["image_id"], **stamp, **result}
                for record, stamp, result in zip(chunk, stamps, work(group, chunk), strict=True)
            ]
        except Exception as error:
            if self.strict or _device_is_lost(error):
                raise
            if len(chunk) == 1:
                return [self._failed(group, chunk[0]["image_id"], error)]
        return [entry for one in chunk for entry in self._attempt(work, group, [one])]

    def _failed(self, group: str, key: Key, error: Exception) -> Result:
        """An image's entry where it has no result; what was not foreseen shows its traceback."""
        reason = str(error)
        if not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {error}"
            traceback.print_exception(error)
        say(f"image {key} ({group}) failed: {reason}")
        return {"image_id": key, "failed": reason}

    def _check_complete(self, records: Sequence[Record]) -> None:
        if not launch.is_main():
            return
        for group, kept in self.kept.items():
            known = {*kept.results, *kept.failures}
            missing = [r["image_id"] for r in records if r["image_id"] not in known]
            if missing:
                raise InputError(
                    f"{self.folder}: {len(missing)} results of {group} are not there, that of "
                    f"image {missing[0]} for one: OUTPUT_DIR must be a folder that all machines "
                    "share"
                )


def format_line(entries: Sequence[Mapping[str, Any]]) -> str:
    """A chunk as a line of JSON that carries its own checksum."""
    body = json.dumps(entries)
    return f'{{"crc32": {zlib.crc32(body.encode())}, "images": {body}}}\n'


def parse_line(text: str) -> list[dict[str, Any]]:
    """The chunk of a line; nothing from one that is torn or damaged."""
    match = _LINE.fullmatch(text.rstrip("\n"))
    if match is None or zlib.crc32(match[2].encode()) != int(match[1]):
        return []
    return json.loads(match[2])


def write_atomically(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        InputError: there is no room, or the place cannot be written to.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {path} ({error.strerror})") from error


def make_writable(folder: Path) -> None:
    """Make a folder, and find now, and not when the work is done, that it cannot be written to.

    Raises:
        InputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror})") from error


def say(text: str) -> None:
    """A line for the user that does not break the progress bar."""
    tqdm.write(text, file=sys.stderr)


@contextlib.contextmanager
def _bar(total: int, progress: bool) -> Iterator[Any]:
    """Images done, their rate and the time that is left; of the main process's own share."""
    processes = f" in process 1 of {launch.size()}" if launch.size() > 1 else ""
    with tqdm(
        total=total,
        unit="image",
        disable=not (progress and launch.is_main()),
        smoothing=0.05,
        postfix=processes.strip() or None,
        mininterval=0.1 if sys.stderr.isatty() else _QUIET,
        dynamic_ncols=True,
    ) as bar:
        yield bar


def _device_is_lost(error: Exception) -> bool:
    """After an error inside a GPU's kernel every further call on it fails."""
    lost = getattr(torch, "AcceleratorError", ())
    return isinstance(error, lost) and not isinstance(error, torch.OutOfMemoryError)

"""Results on disk, image by image, that any number of processes write and that survive a kill.

A finished batch of JSON-able results becomes one line with its checksum, in a file of the process's
own: a kill tears at most the line that is being written, and a torn line does not count.
"""

import contextlib
import itertools
import json
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lqn_seg.engine import launch
from lqn_seg.errors import InputError

Key = int | str
Record = dict[str, Any]
Result = dict[str, Any]
Batch = list[tuple[Record, list[str]]]  # records, and the groups that lack a result of each
STAMP = "input_hash"
_LINE = re.compile(r'\{"crc32": (\d+), "images": (\[.*\])\}')
_NAMED = 5  # images that are named where some have changed


class ResultStore:
    """A folder of results, and what is left to do.

    Args:
        folder: receives ``run.json`` and ``<group>.<process>.jsonl``; all processes see it.
        fingerprint: what has to be equal for results to belong together.
        groups: names of what is done with every image (conditions).
        resume: continue from the results in the folder; otherwise they are removed.
        strict: stop when the disk is full.
        may_change: keys of the fingerprint that a run need not share with the one it goes on from.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        groups: Sequence[str],
        resume: bool = False,
        strict: bool = False,
        may_change: Sequence[str] = (),
    ) -> None:
        self.folder, self.groups, self.strict = folder, list(groups), strict
        self.unwritten: list[tuple[str, str]] = []  # (group, line) that found no room on the disk
        self.complaint = ""  # why not
        self._stale: set[tuple[Key, str]] = set()  # (image id, stamp) of results that do not count
        self._entries: dict[str, dict[Key, Result]] | None = None
        expected = json.loads(json.dumps(fingerprint))
        with launch.together():
            if launch.is_main():
                self._open(expected, resume, set(may_change))
        with launch.together():
            if not launch.is_main() and self._fingerprint() != expected:
                raise InputError(
                    f"OUTPUT_DIR: process {launch.rank()} does not find its own run in "
                    f"{self.folder / 'run.json'}: all processes need the same files and one shared "
                    "folder"
                )

    def _open(self, fingerprint: dict[str, Any], resume: bool, may_change: set[str]) -> None:
        """Refuse to continue another run's results; a fresh start removes them all."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stored = self._fingerprint()
        except OSError as error:
            raise InputError(f"OUTPUT_DIR: cannot use {self.folder} ({error.strerror})") from error
        if not resume or stored is None:
            for old in self.folder.glob("*.jsonl"):
                old.unlink()
        else:
            keys = sorted({*fingerprint, *stored} - may_change)
            if others := [key for key in keys if fingerprint.get(key) != stored.get(key)]:
                raise InputError(
                    f"{self.folder} holds results of another configuration, teacher, data set or "
                    f"machine (it differs in: {', '.join(others)}): choose another OUTPUT_DIR, or "
                    "start again without --resume"
                )
        write_atomically(self.folder / "run.json", json.dumps(fingerprint, indent=2) + "\n")

    def _fingerprint(self) -> dict[str, Any] | None:
        """What ``run.json`` says; nothing where it is damaged, None where there is none."""
        path = self.folder / "run.json"
        if not path.is_file():
            return None
        try:
            stored = json.loads(path.read_text())
        except ValueError:
            return {}
        return stored if isinstance(stored, dict) else {}

    @property
    def entries(self) -> dict[str, dict[Key, Result]]:
        """By group and image id, the last result that counts, whichever process or run wrote it;
        a failure only where there is no result."""
        if self._entries is None:
            self._entries = {group: {} for group in self.groups}
            for group, entry in self._lines():
                key, kept = entry["image_id"], self._entries[group]
                made_good = "failed" in entry and "failed" not in kept.get(key, entry)
                if (key, entry.get(STAMP, "")) not in self._stale and not made_good:
                    kept[key] = entry
        return self._entries

    def _lines(self) -> Iterator[tuple[str, Result]]:
        """All entries: files in the order of their names, then what found no room."""
        for group in self.groups:
            for path in sorted(self.folder.glob(f"{group}.*.jsonl")):
                with path.open(errors="replace") as file:
                    for entry in itertools.chain.from_iterable(map(parse_line, file)):
                        yield group, entry
        for group, text in self.unwritten:
            for entry in parse_line(text):
                yield group, entry

    def results(self, group: str) -> dict[Key, Result]:
        return {key: entry for key, entry in self.entries[group].items() if "failed" not in entry}

    def failures(self, group: str) -> dict[Key, str]:
        entries = self.entries[group].items()
        return {key: entry["failed"] for key, entry in entries if "failed" in entry}

    def forget_changed(self, records: Sequence[Record], stamp: Callable[[Record], str]) -> None:
        """Let no result count whose ``STAMP`` is not its record's `stamp` now, and name the images.
        Every process has to call it; each reads its part of the records."""
        stamps: dict[Key, set[str]] = {}
        for _, entry in self._lines():
            if "failed" not in entry:
                stamps.setdefault(entry["image_id"], set()).add(entry.get(STAMP, ""))
        known = [record for record in records if record["image_id"] in stamps]
        mine = [(r["image_id"], stamp(r)) for r in known[launch.rank() :: launch.size()]]
        now = dict(itertools.chain.from_iterable(launch.gather(mine)))
        before = {group: self.results(group).keys() for group in self.groups}
        self._stale = {(key, old) for key in now for old in stamps[key] - {now[key]}}
        self._entries = None
        lost = {key for group in self.groups for key in before[group] - self.results(group).keys()}
        changed = [record["image_id"] for record in known if record["image_id"] in lost]
        if changed and launch.is_main():
            more = ", ..." if len(changed) > _NAMED else ""
            say(
                f"changed since their evaluation (image, label or annotation) and evaluated again: "
                f"{len(changed)} of {len(records)} images "
                f"({', '.join(map(str, changed[:_NAMED]))}{more})"
            )

    def left(self, records: Sequence[Record], batch: int, apart: bool = False) -> list[Batch]:
        """Batches that are not finished, the same in every process; failures are tried again. Where
        one begins depends on the image's place among the records alone, so images keep their
        company. A batch is of all groups; if `apart`, of one group after the other."""
        done = {group: self.results(group) for group in self.groups}
        batches = []
        for groups in [[group] for group in self.groups] if apart else [self.groups]:
            for start in range(0, len(records), batch):
                lacking = [
                    (record, [group for group in groups if record["image_id"] not in done[group]])
                    for record in records[start : start + batch]
                ]
                batches.append([(record, names) for record, names in lacking if names])
        return [batch for batch in batches if batch]

    def shard(self, records: Sequence[Record], batch: int, apart: bool = False) -> list[Batch]:
        """This process's part of what is `left`; every process has to ask for its own."""
        self._entries = None
        todo = self.left(records, batch, apart)
        launch.gather(None)  # nobody writes before all have seen what is left
        return todo[launch.rank() :: launch.size()]

    def append(self, group: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write a batch's entries, after all that could not be written before it."""
        self._entries = None
        self.unwritten.append((group, format_line(entries)))
        try:
            while self.unwritten:
                self._write(*self.unwritten[0])
                self.unwritten.pop(0)
        except OSError as error:
            reason = f"{self.folder}: cannot write results ({error.strerror})"
            if self.strict:
                raise InputError(reason) from error
            if not self.complaint:
                say(f"{reason}; results stay in memory, and every further batch tries again")
            self.complaint = reason

    def _write(self, group: str, line: str) -> None:
        with (self.folder / f"{group}.{launch.rank()}.jsonl").open("a+b") as file:
            data = line.encode()
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                # A torn line stays torn, alone.
                data = data if file.read(1) == b"\n" else b"\n" + data
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, records: Sequence[Record]) -> None:
        """Wait for the other processes, and take over what found no room on their disks; an
        `InputError` if their results are not there."""
        others = launch.gather((self.unwritten, self.complaint))
        self.unwritten = [line for unwritten, _ in others for line in unwritten]
        self.complaint = next((complaint for _, complaint in others if complaint), "")
        self._entries = None
        for group, entries in self.entries.items() if launch.is_main() else ():
            missing = [r["image_id"] for r in records if r["image_id"] not in entries]
            if missing:
                raise InputError(
                    f"{self.folder}: {len(missing)} results of {group} are missing, for example "
                    f"that of image {missing[0]}; OUTPUT_DIR must be a folder that all machines "
                    "share"
                )


def format_line(entries: Sequence[Mapping[str, Any]]) -> str:
    """A batch as a line of JSON that carries its own checksum."""
    body = json.dumps(entries)
    return f'{{"crc32": {zlib.crc32(body.encode())}, "images": {body}}}\n'


def parse_line(text: str) -> list[dict[str, Any]]:
    """The batch of a line; nothing from one that is torn or damaged."""
    match = _LINE.fullmatch(text.rstrip("\n"))
    if match is None or zlib.crc32(match[2].encode()) != int(match[1]):
        return []
    return json.loads(match[2])


def write_atomically(path: Path, text: str) -> None:
    """Write a file that appears whole or, with an `InputError`, not at all."""
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
    """Make a folder; an `InputError` if it cannot be written to, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror})") from error


def say(text: str) -> None:
    """A line for the user that does not break the progress bar."""
    tqdm.write(text, file=sys.stderr)

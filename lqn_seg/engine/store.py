"""Results on disk, image by image, that any number of processes write and that survive a kill.

A finished batch of JSON-able results becomes one line with its checksum, in a file of the process's
own: a kill tears at most the line that is being written, and a torn line does not count.
"""

import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm import tqdm

from lqn_seg.engine import launch
from lqn_seg.engine.stored import Index, Key, Results, format_line
from lqn_seg.errors import InputError

Record = dict[str, Any]
Batch = list[tuple[Record, list[str]]]  # records, and the groups that lack a result of each
_NAMED = 5  # images that are named where some have changed
_COPIED = 32  # entries of one line where results are copied


class ResultStore:
    """A folder of results, and what is left to do.

    Args:
        folder: receives ``run.json`` and ``<group>.<process>.jsonl``; all processes see it.
        fingerprint: what has to be equal for results to belong together.
        groups: names of what is done with every image (conditions).
        resume: continue from the results in the folder; otherwise they are removed.
        strict: stop when the disk is full.
        may_change: keys of the fingerprint that a run need not share with the one it goes on from.
        shard: name of a job whose company may write into the folder at the same time, unheard: it
            always resumes, and shares all of the fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        groups: Sequence[str],
        resume: bool = False,
        strict: bool = False,
        may_change: Sequence[str] = (),
        shard: str = "",
    ) -> None:
        self.folder, self.groups, self.strict, self.shard_name = folder, list(groups), strict, shard
        self.unwritten: list[tuple[str, str]] = []  # (group, line) that found no room on the disk
        self.complaint = ""  # why not
        self._stale: set[tuple[Key, str]] = set()  # (image id, stamp) of results that do not count
        self._found: Index | None = None
        self.fingerprint = json.loads(json.dumps(fingerprint))
        with launch.together():
            if launch.is_main():
                self._open(resume, set(may_change))
        with launch.together():
            if not launch.is_main() and read_fingerprint(folder) != self.fingerprint:
                raise InputError(
                    f"OUTPUT_DIR: process {launch.rank()} does not find its own run in "
                    f"{self.folder / 'run.json'}: all processes need the same files and one shared "
                    "folder"
                )

    def _open(self, resume: bool, may_change: set[str]) -> None:
        """Refuse to continue another run's results; a fresh start removes them all."""
        path, text = self.folder / "run.json", json.dumps(self.fingerprint, indent=2) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Shards write results after run.json, so those that are there now have theirs already.
            files = list(self.folder.glob("*.jsonl"))
            if self.shard_name and not files:
                write_first(path, text)
            stored = read_fingerprint(self.folder)
        except OSError as error:
            raise InputError(f"OUTPUT_DIR: cannot use {self.folder} ({error.strerror})") from error
        if self.shard_name:
            self._check_same(self.folder, stored or {}, set(), "choose another OUTPUT_DIR")
            return
        if not resume or stored is None:
            for old in files:
                old.unlink()
        else:
            remedy = "choose another OUTPUT_DIR, or start again without --resume"
            self._check_same(self.folder, stored, may_change, remedy)
        write_atomically(path, text)

    def _check_same(
        self, folder: Path, stored: dict[str, Any], may_change: set[str], remedy: str
    ) -> None:
        keys = sorted({*self.fingerprint, *stored} - may_change)
        if others := [key for key in keys if self.fingerprint.get(key) != stored.get(key)]:
            raise InputError(
                f"{folder} holds results of another configuration, teacher, data set or machine "
                f"(it differs in: {', '.join(others)}): {remedy}"
            )

    @property
    def found(self) -> Index:
        """What is there now, of all processes."""
        if self._found is None:
            self._found = Index(self.folder, self.groups, self.unwritten, self._stale)
        return self._found

    def results(self, group: str) -> Results:
        return self.found.results(group)

    def failures(self, group: str) -> dict[Key, str]:
        return self.found.failures[group]

    def forget_changed(self, records: Sequence[Record], stamp: Callable[[Record], str]) -> None:
        """Let no result count whose ``STAMP`` is not its record's `stamp` now, and name the images.
        Every process has to call it; each reads its part of the records."""
        stamps = self.found.stamps
        known = [record for record in records if record["image_id"] in stamps]
        mine = [(r["image_id"], stamp(r)) for r in known[launch.rank() :: launch.size()]]
        now = dict(itertools.chain.from_iterable(launch.gather(mine)))
        stale = {(key, old) for key in now for old in stamps[key] - {now[key]}}
        if stale == self._stale:
            return
        before = {group: self.results(group).keys() for group in self.groups}
        self._stale, self._found = stale, None
        lost = {key for group in self.groups for key in before[group] - self.results(group).keys()}
        changed = [record["image_id"] for record in known if record["image_id"] in lost]
        if changed and launch.is_main():
            more = ", ..." if len(changed) > _NAMED else ""
            say(
                f"changed since their evaluation (image, label or annotation) and evaluated again: "
                f"{len(changed)} of {len(records)} images "
                f"({', '.join(map(str, changed[:_NAMED]))}{more})"
            )

    def copy_from(self, folder: Path) -> set[int]:
        """Take the results that this folder lacks from another folder of the same run; returns
        into how many shards the runs were split that wrote there. An `InputError` if the other
        folder holds another run."""
        stored = read_fingerprint(folder)
        if stored is None:
            raise InputError(f"{folder} has no run.json, so it holds no results")
        self._check_same(folder, stored, set(), "its results cannot be merged with those of others")
        other = Index(folder, self.groups)
        for group in self.groups:
            theirs, mine = other.results(group), self.results(group)
            lacking = iter([key for key in theirs if key not in mine])
            while some := list(itertools.islice(lacking, _COPIED)):
                self.append(group, [theirs[key] for key in some])
        return other.shards

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
        todo = self.left(records, batch, apart)
        launch.gather(None)  # nobody writes before all have seen what is left
        return todo[launch.rank() :: launch.size()]

    def append(self, group: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write a batch's entries, after all that could not be written before it."""
        self._found = None
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
        process = self.shard_name or launch.rank()
        with (self.folder / f"{group}.{process}.jsonl").open("a+b") as file:
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
        if launch.size() > 1:
            self._found = None  # they have written
        for group in self.groups if launch.is_main() else ():
            there = {*self.results(group), *self.failures(group)}
            missing = [r["image_id"] for r in records if r["image_id"] not in there]
            if missing:
                raise InputError(
                    f"{self.folder}: {len(missing)} results of {group} are missing, for example "
                    f"that of image {missing[0]}; OUTPUT_DIR must be a folder that all machines "
                    "share"
                )


def read_fingerprint(folder: Path) -> dict[str, Any] | None:
    """What ``run.json`` says; nothing where it is damaged, None where there is none."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
    except ValueError:
        return {}
    return stored if isinstance(stored, dict) else {}


def write_first(path: Path, text: str) -> None:
    """Write a file that appears whole, unless another process has been faster."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        _write_synced(partial, text)
        try:
            os.link(partial, path)  # unlike a renaming it replaces nothing
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that appears whole or, with an `InputError`, not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        _write_synced(partial, text)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {path} ({error.strerror})") from error


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


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

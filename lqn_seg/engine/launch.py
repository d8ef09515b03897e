"""Several processes at one job: joining those that a launcher started, and their messages, which
are short and between the hosts: always by gloo, with or without GPUs."""

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lqn_seg.engine.interruption import is_launched
from lqn_seg.errors import InputError, PeerError

# A process whose share is done waits for the slowest; torch's own half an hour would end the run.
PATIENCE = timedelta(days=30)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names for what `mallopt` sets
_LARGEST_KEPT = 1 << 27  # bytes of a piece


def rank() -> int:
    """This process's number, 0 .. size() - 1."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes if `torchrun` started several, each on a GPU of its own."""
    if not is_launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Every process's value, by rank; a `PeerError` if one has ended."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise PeerError("another process of this run ended early") from error
    return values


@contextmanager
def together() -> Iterator[None]:
    """If the block, which every process enters, fails by bad input in one, it fails in all: by the
    first sentence as an `InputError` in the main process, as a `PeerError` in the others."""
    complaint = None
    try:
        yield
    except InputError as error:
        complaint = error
    if complaints := [text for text in gather(complaint and str(complaint)) if text]:
        raise (InputError if is_main() else PeerError)(complaints[0]) from complaint


def keep_memory() -> None:
    """Let glibc keep what this process frees; best called when the weights are loaded. Getting it
    again page by page takes a tenth of a teacher's time on a CPU for one image, a quarter for many
    at once. The price is a seventh of an EoMT-L's memory at 512 pixels. Other C libraries stay as
    they are."""
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def start(
    script: Sequence[str], per_machine: int, machines: int = 1, machine: int = 0, url: str = "auto"
) -> int:
    """Run a command in several processes, as `torchrun` does; returns its exit status.

    Args:
        script: the Python file and its arguments.
        per_machine: processes on each of the machines, of which this is number ``machine``.
        url: ``tcp://HOST:PORT`` of machine 0, needed for several; ``auto`` finds a free port.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    meeting = ["--standalone"]
    if machines > 1:
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        if not url.startswith("tcp://") or not host or not port.isdecimal():
            raise InputError(f"--dist-url must be tcp://HOST:PORT of machine 0, not {url!r}")
        meeting = [f"--nnodes={machines}", f"--node_rank={machine}"]
        meeting += [f"--master_addr={host}", f"--master_port={port}"]
    # Of Ctrl-C the processes themselves say what is left; failures are logged as errors.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    try:
        main([*meeting, f"--nproc_per_node={per_machine}", *script])
    except ChildFailedError as error:
        return next(iter(error.failures.values())).exitcode
    except SignalException as error:  # passed on to the processes, which have ended
        return 128 + error.sigval
    return 0

"""Files of weights: from a directory or the model hub, read without executing what is in them."""

import hashlib
import json
import os
import pickle
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub.constants
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lqn_seg.errors import InputError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# What libraries raise where a description or weights of a model make no sense.
_SENSELESS = (
    *(OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, EOFError),
    *(ArithmeticError, AssertionError, SafetensorError, StrictDataclassError),
    pickle.UnpicklingError,
)
_PATIENCE = 5.0  # seconds until the model hub counts as out of reach
_LARGEST = 1 << 20  # in a model's description: no width, depth or vocabulary is larger


@contextmanager
def named(sentence: str) -> Iterator[None]:
    """Within, what libraries raise at a senseless file becomes an `InputError` of this sentence."""
    try:
        yield
    except InputError:
        raise
    except _SENSELESS as error:
        raise InputError(f"{sentence} ({first_line(error)})") from error


def find_file(weights: str, names: Sequence[str], key: str) -> Path | None:
    """The first of ``names`` in a directory or hub repository; None where it has none of them. A
    hub file is taken from the cache where ``HF_HUB_OFFLINE`` is set or there is no network. An
    `InputError`, which begins with the configuration's ``key``, where there is no such
    directory."""
    path = Path(weights)
    if path.is_dir():
        return next((path / name for name in names if (path / name).is_file()), None)
    if path.is_absolute() or len(path.parts) > 2 or weights.startswith("."):
        raise InputError(f"{key}: {weights} does not exist")
    use_cache_without_network()
    for name in names:
        try:
            return Path(hf_hub_download(weights, name))
        except (OSError, ValueError, HFValidationError):  # not there, not reachable, not an id
            continue
    return None


@cache
def use_cache_without_network() -> None:
    """Take hub files from the cache alone, as ``HF_HUB_OFFLINE`` does, if the hub is out of reach:
    else each file is asked for again and again, two minutes until a sentence."""
    if huggingface_hub.constants.HF_HUB_OFFLINE or _hub_answers():
        return
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported later, and for processes


def _hub_answers() -> bool:
    """Whether the model hub, or the proxy on the way to it, takes connections."""
    hub = urlsplit(huggingface_hub.constants.ENDPOINT)
    target = urlsplit(getproxies().get(hub.scheme, "")) if hub.scheme in getproxies() else hub
    address = target.hostname or "", target.port or (80 if target.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        with suppress(OSError):
            socket.create_connection(address, timeout=_PATIENCE).close()
            answered.set()

    # In a thread: the time-out of a connection does not hold for looking up a name.
    threading.Thread(target=connect, daemon=True).start()
    return answered.wait(_PATIENCE)


def read_json(path: Path, key: str) -> dict[str, Any]:
    """A JSON object from a file that describes a model; an `InputError` where it cannot be read,
    holds something else, or a number that no model has."""
    where = f"{key}: {path} could not be loaded"
    with named(f"{where}: it is not JSON"):
        content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise InputError(f"{where}: it is not a JSON object")
    _refuse_absurd(content, where)
    return content


def _refuse_absurd(value: Any, where: str, name: str = "") -> None:
    """Raise for a number that would have a model built for ever, or beyond any memory."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            _refuse_absurd(inner, where, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and abs(value) > _LARGEST:
        raise InputError(f"{where}: {name} is {value:g}, which is too large for a model")


def read_weights(path: Path, key: str) -> dict[str, Tensor]:
    """Tensors by name, float32 where they are floating-point, from a safetensors or PyTorch file,
    flat, under ``state_dict`` (Lightning) or under ``model`` (Detectron2). Nothing in it is
    executed. An `InputError` where it is missing, damaged, or holds more than tensors."""
    how = "it is missing, damaged, or holds more than tensors"
    with named(f"{key}: {path} could not be loaded: {how}"):
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    state = content if isinstance(content, dict) else {}
    for inner in ("model", "state_dict"):
        if isinstance(state.get(inner), dict):
            state = state[inner]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"{key}: {path} holds no state dict, flat or under 'state_dict' or 'model'"
        )
    return {name: x.float() if x.is_floating_point() else x for name, x in state.items()}


def weight_file(weights: str | Path) -> Path | None:
    """The file of weights that a path names, or that lies in the folder it names; None where there
    is none, and for a repository of the model hub."""
    path = Path(weights)
    files = [path, *(path / name for name in (*WEIGHT_FILES, *_CLIP_FILES))] if weights else []
    return next((file for file in files if file.is_file()), None)


def checkpoint_hash(weights: str | Path, digits: int = 16) -> str:
    """First hex digits of the SHA-256 of a `weight_file`; empty where there is none."""
    digest, file = hashlib.sha256(), weight_file(weights)
    if file is None:
        return ""
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:digits]


def first_line(error: BaseException) -> str:
    """An error's message, cut to its first line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

"""What an image's results were made of: its files' bytes and its annotation, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lqn_seg.data.labelled_images import open_array
from lqn_seg.data.metadata import Metadata
from lqn_seg.errors import InputError

_DIGITS = 16  # hex


def input_hash(record: Mapping[str, Any], metadata: Metadata, instances: bool = False) -> str:
    """Hash of a record's content: another one once an image, a label or an annotation changes.

    Files count by their bytes, not by name, place or time, so that a copy of a data set is the
    same. One that cannot be read has a hash too, which no content has.

    Args:
        instances: whether the annotations of `Metadata.json_file` are scored too.

    Returns:
        16 hex digits.
    """
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)

    def add(key: str, content: bytes) -> None:
        digest.update(f"{key} {len(content)} ".encode())
        digest.update(content)

    for key in sorted(record):
        if key == "file_name":
            add(key, _image(record))
        elif key.endswith("file_name"):
            add(key, _bytes(record[key]))
        elif key != "row":
            add(key, json.dumps(record[key], sort_keys=True, default=str).encode())
    if instances and metadata.json_file is not None:
        try:
            found: Any = metadata.read_instances(record)
        except InputError as error:
            found = str(error)
        add("instances", json.dumps(found, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _image(record: Mapping[str, Any]) -> bytes:
    """An image's bytes: a file's, or those of its row of an array of images."""
    if "row" not in record:
        return _bytes(record["file_name"])
    try:
        return open_array(record["file_name"])[record["row"]].tobytes()
    except (InputError, IndexError) as error:
        return f"unreadable: {error}".encode()


def _bytes(path: Any) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError, TypeError) as error:
        return f"unreadable: {error}".encode()

"""What an image's results were made of: its files' bytes and its annotation, wherever they lie."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lqn_seg.data.labelled_images import open_array
from lqn_seg.data.metadata import Metadata
from lqn_seg.errors import InputError


def input_hash(
    record: Mapping[str, Any],
    metadata: Metadata,
    instances: bool = False,
    data: bytes | None = None,
) -> str:
    """Hash of a record's content, 16 hex digits: another one once an image, a label or an
    annotation changes. Files count by their bytes, not by name, place or time. One that cannot be
    read has a hash too, which no content has.

    Args:
        instances: whether the annotations of `Metadata.json_file` are scored too.
        data: the image file's content, where it has been read.
    """
    digest = hashlib.blake2b(digest_size=8)

    def add(key: str, content: bytes) -> None:
        digest.update(f"{key} {len(content)} ".encode())
        digest.update(content)

    def as_json(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, default=str).encode()

    for key in sorted(record):
        if key.endswith("file_name"):
            content = data if key == "file_name" else None
            add(key, _bytes(record, key) if content is None else content)
        elif key != "row":
            add(key, as_json(record[key]))
    if instances and metadata.json_file is not None:
        try:
            add("instances", as_json(metadata.read_instances(record)))
        except InputError as error:
            add("instances", as_json(str(error)))
    return digest.hexdigest()


def _bytes(record: Mapping[str, Any], key: str) -> bytes:
    """A file's bytes, or those of a row of an array of images."""
    try:
        if key == "file_name" and "row" in record:
            return open_array(record[key])[record["row"]].tobytes()
        return Path(record[key]).read_bytes()
    except (OSError, ValueError, TypeError, IndexError) as error:  # an InputError is a ValueError
        return f"unreadable: {error}".encode()

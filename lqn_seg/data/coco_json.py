"""What COCO's JSON files have in common, read with one sentence per malformed entry."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lqn_seg.errors import InputError


def load_json(path: Path) -> Mapping[str, Any]:
    """Read a file that must have the lists `images`, `annotations` and `categories`.

    Raises:
        InputError: it is missing, is no JSON, or lacks one of the three.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"annotation file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"annotation file {path} is not valid JSON ({error})") from None
    except OSError as error:
        raise InputError(f"annotation file {path} cannot be read ({error.strerror})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"annotation file {path} has no list under the key {key!r}")
    for key in ("annotations", "categories"):
        if not content[key]:
            raise InputError(f"annotation file {path} lists nothing under the key {key!r}")
    return content


def get(entry: Any, key: str, where: str, path: Path) -> Any:
    """`entry[key]`, or one sentence that names the file and the entry."""
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"annotation file {path}: {where} has no key {key!r}")
    return entry[key]


def images_by_id(content: Mapping[str, Any], path: Path) -> dict[Any, dict[str, Any]]:
    """The entries of `images` by their id.

    Raises:
        InputError: an entry has no id, or two have the same.
    """
    images: dict[Any, dict[str, Any]] = {}
    for i, entry in enumerate(content["images"]):
        image_id = get(entry, "id", f"images[{i}]", path)
        if image_id in images:
            raise InputError(f"annotation file {path}: images[].id {image_id!r} occurs twice")
        images[image_id] = entry
    return images


def read_instance_annotations(
    path: str | os.PathLike[str], table: Mapping[int, int], name: str
) -> dict[Any, list[dict[str, Any]]]:
    """Annotations of a COCO instances file by image id.

    Args:
        table: own id of a thing -> contiguous id.
        name: the data set's, for the sentences.

    Returns:
        image id -> annotations: "category_id" (contiguous), "segmentation" (as stored), "area",
        "bbox" and "iscrowd".

    Raises:
        InputError: the file is missing or malformed, or a category is not among the data set's.
    """
    path = Path(path)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for i, annotation in enumerate(load_json(path)["annotations"]):
        where = f"annotations[{i}]"
        keys = ("image_id", "category_id", "segmentation", "area", "bbox")
        image_id, category, *rest = (get(annotation, key, where, path) for key in keys)
        if category not in table:
            raise InputError(
                f"annotation file {path}: {where}.category_id {category!r} is not among the things "
                f"of {name}"
            )
        by_image.setdefault(image_id, []).append(
            {
                "category_id": table[category],
                **dict(zip(keys[2:], rest, strict=True)),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return by_image

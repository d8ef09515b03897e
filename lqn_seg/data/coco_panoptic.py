"""Reader of the COCO panoptic layout: a folder of images, a folder of id PNGs and one JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lqn_seg.data.metadata import Category, Dataset, Metadata, Record
from lqn_seg.errors import InputError


def load_coco_panoptic(
    name: str,
    image_dir: str | os.PathLike[str],
    panoptic_dir: str | os.PathLike[str],
    panoptic_json: str | os.PathLike[str],
) -> Dataset:
    """Open a data set in COCO panoptic layout (https://cocodataset.org/#format-data).

    The table of categories is the JSON's; the contiguous id is the index in it. The JSON is read
    and checked here; image and PNG files are read when they are used.

    An annotation whose image is not listed is one of the data set's `problems`.

    Raises:
        InputError: the JSON is missing or malformed, a key is missing, or a segment's category is
            outside the table. The sentence names file and field.
    """
    path = Path(panoptic_json)
    content = _load_json(path)
    metadata = Metadata(
        name=name,
        categories=_categories(content, path),
        evaluator_type="coco_panoptic_seg",
        image_root=os.fspath(image_dir),
        panoptic_root=os.fspath(panoptic_dir),
        panoptic_json=os.fspath(path),
    )
    problems = _without_image(content, path)
    _records(content, path, metadata)  # a malformed entry is named now, not in mid-run
    return Dataset(metadata, partial(_records, content, path, metadata), problems)


def _load_json(path: Path) -> Mapping[str, Any]:
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
    if not content["annotations"]:
        raise InputError(f"annotation file {path} lists no image under the key 'annotations'")
    return content


def _get(entry: Any, key: str, where: str, path: Path) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"annotation file {path}: {where} has no key {key!r}")
    return entry[key]


def _categories(content: Mapping[str, Any], path: Path) -> tuple[Category, ...]:
    categories = []
    for i, entry in enumerate(content["categories"]):
        where = f"categories[{i}]"
        color = entry.get("color") if isinstance(entry, dict) else None
        categories.append(
            Category(
                id=_get(entry, "id", where, path),
                name=_get(entry, "name", where, path),
                isthing=bool(_get(entry, "isthing", where, path)),
                color=None if color is None else (int(color[0]), int(color[1]), int(color[2])),
            )
        )
    if not categories:
        raise InputError(f"annotation file {path} lists nothing under the key 'categories'")
    for field in ("id", "name"):
        values = [getattr(category, field) for category in categories]
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise InputError(f"annotation file {path}: categories[].{field} {twice!r} occurs twice")
    return tuple(categories)


def _without_image(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """A sentence for every annotation whose image is not listed."""
    known = {_get(entry, "id", f"images[{i}]", path) for i, entry in enumerate(content["images"])}
    problems = []
    for i, annotation in enumerate(content["annotations"]):
        image_id = _get(annotation, "image_id", f"annotations[{i}]", path)
        if image_id not in known:
            problems.append(
                f"annotation file {path}: annotations[{i}] has image_id {image_id!r}, which no "
                "entry of 'images' has"
            )
    return tuple(problems)


def _records(content: Mapping[str, Any], path: Path, metadata: Metadata) -> list[Record]:
    """Detectron2's dictionaries, in the order of the annotations."""
    images: dict[Any, Any] = {}
    for i, entry in enumerate(content["images"]):
        images[_get(entry, "id", f"images[{i}]", path)] = entry
    records: list[Record] = []
    seen: set[Any] = set()
    for i, annotation in enumerate(content["annotations"]):
        where = f"annotations[{i}]"
        image_id = _get(annotation, "image_id", where, path)
        if image_id not in images:
            continue
        if image_id in seen:
            raise InputError(f"annotation file {path}: image_id {image_id!r} is annotated twice")
        seen.add(image_id)
        image, image_at = images[image_id], f"the image with id {image_id!r}"
        image_name = _get(image, "file_name", image_at, path)
        panoptic_name = _get(annotation, "file_name", where, path)
        segments = _get(annotation, "segments_info", where, path)
        records.append(
            {
                "file_name": os.path.join(metadata.image_root or "", image_name),
                "image_id": image_id,
                "height": int(_get(image, "height", image_at, path)),
                "width": int(_get(image, "width", image_at, path)),
                "pan_seg_file_name": os.path.join(metadata.panoptic_root or "", panoptic_name),
                "segments_info": [
                    _segment(segment, f"{where}.segments_info[{j}]", path, metadata)
                    for j, segment in enumerate(segments)
                ],
            }
        )
    return records


def _segment(entry: Any, where: str, path: Path, metadata: Metadata) -> dict[str, Any]:
    """A segment with its category as contiguous id, as Detectron2 hands it on."""
    category_id = _get(entry, "category_id", where, path)
    if category_id not in metadata.dataset_id_to_contiguous_id:
        raise InputError(
            f"annotation file {path}: {where}.category_id {category_id!r} is not among the ids of "
            "'categories'"
        )
    contiguous = metadata.dataset_id_to_contiguous_id[category_id]
    return {
        **entry,
        "id": int(_get(entry, "id", where, path)),
        "category_id": contiguous,
        "isthing": contiguous in metadata.thing_ids,
        "iscrowd": int(entry.get("iscrowd", 0)),
    }

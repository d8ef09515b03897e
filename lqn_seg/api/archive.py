"""A folder of results: pictures and maps of each image, and JSON files that list them all."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from lqn_seg import __version__
from lqn_seg.api.result import About, ClassificationResult, Result, SegmentationResult
from lqn_seg.data.file_names import file_name
from lqn_seg.data.images import write_id_map, write_label_map
from lqn_seg.data.masks import describe_segment, encode
from lqn_seg.engine.store import make_writable, write_atomically
from lqn_seg.errors import InputError
from lqn_seg.visualization.files import save_png

RESULTS, PANOPTIC, INSTANCES = "results.json", "panoptic.json", "instances.json"
_CONFIDENCE = "the winning class's share of a pixel's semantic scores, 0..1, not calibrated"
Entry = dict[str, Any]


class Archive:
    """Results of one model in a folder.

    Args:
        folder: made where it is missing; what other models left in its JSON files is dropped.
        about: what results must share to stand in one file.
        resume: refuse a folder of another model's results.

    Attributes:
        entries: by an image's file, its record in ``results.json`` (``image``), and where there are
            any its annotation in ``panoptic.json`` and its lines in ``instances.json``.

    Raises:
        InputError: the folder cannot be written to, or its ``results.json`` is damaged.
    """

    def __init__(
        self,
        folder: Path,
        about: About,
        resume: bool = False,
    ) -> None:
        make_writable(folder)
        self.folder, self.about = folder, describe_run(about)
        self.categories = [
            {"id": i, "name": c.name, "isthing": int(c.isthing)}
            for i, c in enumerate(about.categories)
        ]
        self.entries: dict[str, Entry] = {}
        stored = self._read(RESULTS)
        theirs = {key: value for key, value in stored.items() if key != "images"}
        if theirs == self.about:
            self._take(stored)
        elif stored and resume:
            keys = [key for key in self.about if theirs.get(key) != self.about[key]]
            raise InputError(
                f"{folder / RESULTS} is of another run (it differs in: {', '.join(keys)}): choose "
                "another folder, or leave --resume out to start again"
            )

    def has(self, file: str, stamp: str) -> bool:
        """Whether an image of this content is there, and all of its files."""
        image = self.entries.get(file, {}).get("image", {})
        files = [self.folder / name for name in image.get("files", ())]
        return image.get("stamp") == stamp and all(path.is_file() for path in files)

    def _read(self, name: str) -> Entry:
        path = self.folder / name
        try:
            content = json.loads(path.read_text()) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): move it away") from error
        return content if isinstance(content, dict) else {}

    def _take(self, stored: Entry) -> None:
        self.entries = {entry["file"]: {"image": entry} for entry in stored.get("images", [])}
        by_id = {entry["image"]["name"]: entry for entry in self.entries.values()}
        for annotation in self._read(PANOPTIC).get("annotations", []):
            if annotation["image_id"] in by_id:
                by_id[annotation["image_id"]]["panoptic"] = annotation
        for line in self._read(INSTANCES).get("annotations", []):
            if line["image_id"] in by_id:
                by_id[line["image_id"]].setdefault("instances", []).append(line)

    def name_of(self, file: str) -> str:
        """The start of the names of an image's files, which no other image's take."""
        if file in self.entries:
            return self.entries[file]["image"]["name"]
        name = file_name(PurePath(file).with_suffix("").as_posix())
        taken = {entry["image"]["name"].casefold() for entry in self.entries.values()}
        return name if name.casefold() not in taken else file_name(name, file)

    def add(self, result: Result, stamp: str = "") -> list[Path]:
        """Write a result's pictures and maps, and keep its records for `write`.

        Args:
            stamp: tells the image's content, so that a resumed run sees that it has changed.
        """
        name = self.name_of(result.file)
        stem = self.folder / name
        height, width = result.image.shape[:2]
        entry: Entry = {"file": result.file, "name": name, "height": height, "width": width}
        entry |= {"stamp": stamp} if stamp else {}
        written = [save_png(result.alone().picture, stem.with_name(f"{name}_overlay.png"))]
        if len(result.compared) > 1:
            written.append(save_png(result.picture, stem.with_name(f"{name}_compared.png")))
        record: Entry = {}
        if isinstance(result, SegmentationResult):
            written += self._write_maps(result, name, record)
        entry["files"] = [path.name for path in written]
        answers = result.compared or {result.method: result}
        entry["methods"] = {method: describe(answer) for method, answer in answers.items()}
        self.entries[result.file] = {"image": entry, **record}
        return written

    def _write_maps(self, result: SegmentationResult, name: str, record: Entry) -> list[Path]:
        labels = self.folder / f"{name}_labels.png"
        write_label_map(labels, result.semantic)
        written = [labels]
        if result.panoptic is not None:
            ids, segments = result.panoptic
            path = self.folder / f"{name}_panoptic.png"
            write_id_map(path, ids)
            written.append(path)
            infos = [
                {**describe_segment(ids, s["id"], s["category_id"]), "score": s["score"]}
                for s in segments
            ]
            record["panoptic"] = {"image_id": name, "file_name": path.name, "segments_info": infos}
        if result.instances is not None:
            found = result.instances
            rows = zip(found.pred_masks.numpy(), found.scores.tolist(), found.pred_classes.tolist())
            record["instances"] = [
                {"image_id": name, "category_id": category, "iscrowd": 0, "score": score}
                | encode(mask)
                for mask, score, category in rows
            ]
        return written

    def write(self) -> None:
        """Write the JSON files anew, each whole or not at all."""
        entries = list(self.entries.values())
        records = [entry["image"] for entry in entries]
        self._write(RESULTS, {**self.about, "images": records})
        images = [
            {"id": r["name"], "file_name": r["file"], "height": r["height"], "width": r["width"]}
            for r in records
        ]
        common = {"images": images, "categories": self.categories}
        if any("panoptic" in entry for entry in entries):
            annotations = [entry["panoptic"] for entry in entries if "panoptic" in entry]
            self._write(PANOPTIC, {**common, "annotations": annotations})
        if any("instances" in entry for entry in entries):
            found = [line for entry in entries for line in entry.get("instances", [])]
            lines = [{**line, "id": number} for number, line in enumerate(found, 1)]
            self._write(INSTANCES, {**common, "annotations": lines})

    def _write(self, name: str, content: Entry) -> None:
        write_atomically(self.folder / name, json.dumps(content) + "\n")


def describe_run(about: About) -> Entry:
    """What all records of a ``results.json`` share."""
    return {
        "lqn_seg": __version__,
        "task": about.task,
        "model": about.model,
        "method": about.method,
        "methods": list(about.methods),
        "classes": list(about.classes),
        "settings": about.settings,
        **({"confidence": _CONFIDENCE} if about.task == "segmentation" else {}),
    }


def describe(result: Result) -> Entry:
    """One method's answer in a few numbers."""
    about: Entry = {"stats": {k: round(v, 4) for k, v in result.stats.items() if np.isfinite(v)}}
    if isinstance(result, ClassificationResult):
        about["top"] = [[name, round(p, 6)] for name, p in result.top()]
    if isinstance(result, SegmentationResult):
        classes, areas = np.unique(result.semantic, return_counts=True)
        shares = zip(classes.tolist(), (areas / result.semantic.size).tolist())
        about["mean_confidence"] = round(float(result.confidence.mean()), 4)
        about["share_of_pixels"] = {result.classes[k]: round(share, 4) for k, share in shares}
        if result.panoptic is not None:
            about["segments"] = [
                {**s, "score": round(s["score"], 4)} for s in result.panoptic.segments
            ]
    return about

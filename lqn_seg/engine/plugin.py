"""What the plugin needs that is no matter of Detectron2: one method, records, scores by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from lqn_seg.config.methods import method_config
from lqn_seg.config.nodes import resolve_device
from lqn_seg.data.catalog import Record, get_dataset, register_entries
from lqn_seg.engine.build import build_segmenter
from lqn_seg.engine.evaluate import build_evaluators, mean_stats
from lqn_seg.errors import InputError
from lqn_seg.segmentation.postprocess import mask_hash
from lqn_seg.segmentation.segmenter import Segmenter

NOTHING_TO_TRAIN = (
    "LQNTTTMetaArch has nothing to train, its teacher is frozen and its students are fitted to one "
    "image each; MODEL.META_ARCHITECTURE EomtMetaArch trains the teacher"
)


def check_cfg(cfg: CfgNode) -> None:
    """Refuse bad MODEL.LQN.DATASETS, and a MODEL.DEVICE that Detectron2 has not: ``auto``, say."""
    register_entries(cfg.MODEL.LQN.DATASETS)
    device = resolve_device(cfg.MODEL.DEVICE)
    if device != cfg.MODEL.DEVICE:
        raise InputError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: Detectron2 needs the name of a device; the best one "
            f"here is MODEL.DEVICE {device}"
        )


def method_name(cfg: CfgNode) -> str:
    """The one method that runs: MODEL.LQN.METHODS if it names one alone, else METHOD."""
    names = cfg.MODEL.LQN.METHODS
    return names[0] if len(names) == 1 else cfg.MODEL.LQN.METHOD


def one_method_segmenter(cfg: CfgNode, things: frozenset[int], names: Sequence[str]) -> Segmenter:
    """The segmenter of `method_name`, for classes of these names and contiguous ids of things."""
    if cfg.MODEL.WEIGHTS:
        raise InputError(
            f"MODEL.WEIGHTS must be empty, not {cfg.MODEL.WEIGHTS!r}: LQNTTTMetaArch loads its "
            "teacher itself, from the directory or hub id in MODEL.LQN.TEACHER.WEIGHTS"
        )
    name = method_name(cfg)
    return build_segmenter(cfg, things, len(names), {name: method_config(cfg, name)}, names)


def whole_batches(count: int, batch: int, rank: int, size: int) -> list[int]:
    """Indices of one of `size` processes: images keep their company, however many there are."""
    starts = range(0, count, batch)[rank::size]
    return [k for start in starts for k in range(start, min(start + batch, count))]


class ImageScores:
    """The evaluators for the outputs that MODEL.MASK_FORMER.TEST turns on, image by image.

    Attributes:
        images: by image id, each task's statistics, ``lqn`` (the model's) and ``mask_hash``.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, prefix: str = "lqn/") -> None:
        dataset, self.prefix = get_dataset(dataset_name), prefix
        self.evaluators = build_evaluators(cfg, dataset.metadata)
        self.records = {record["image_id"]: record for record in dataset.records()}
        self.by_file = {Path(r["file_name"]).name: r for r in self.records.values()}
        self.images: dict[int | str, dict[str, Any]] = {}

    def reset(self) -> None:
        self.images = {}

    def process(self, inputs: Sequence[Record], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch, before Detectron2's COCOPanopticEvaluator rewrites it in place."""
        for given, output in zip(inputs, outputs, strict=True):
            # The mapper takes fields away, and other readers of the same files number otherwise.
            record = self.records.get(given.get("image_id", "")) or self.by_file.get(
                Path(given["file_name"]).name
            )
            if record is None:
                raise InputError(f"{given['file_name']} is not in the evaluator's data set")
            line: dict[str, Any] = {"lqn": output.get("lqn"), "mask_hash": mask_hash(output)}
            line |= {task: e.statistics(record, output) for task, e in self.evaluators.items()}
            self.images[record["image_id"]] = line

    def summarize(self, parts: Sequence[Mapping[int | str, dict[str, Any]]]) -> dict[str, Any]:
        """Metrics 0 .. 100 by ``prefix + task`` and means under ``lqn``, of the images of all
        processes, which are this one's from now on."""
        gathered = {key: line for part in parts for key, line in part.items()}
        self.images = {key: gathered[key] for key in self.records if key in gathered}
        lines = list(self.images.values())
        results: dict[str, Any] = {
            f"{self.prefix}{task}": evaluator.summarize([line[task] for line in lines])
            for task, evaluator in self.evaluators.items()
        }
        stats = [line["lqn"] for line in lines if line["lqn"]]
        return {**results, "lqn": mean_stats(stats)} if stats else results

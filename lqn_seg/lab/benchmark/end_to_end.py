"""From an image file to a stored result, stage by stage, on the path that evaluations take.

A scene is a teacher and drawn images with noise, written as JPEG files with their truth. Each
method evaluates them in a run of its own, so that none profits from what another has computed;
a calibration to which every image looks damaged lets alignment, views and student do all their
work. Runs alternate between the methods.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor

from lqn_seg.adapt.calibration import QUANTILE, alarmed, save_calibration
from lqn_seg.adapt.views import centre_view
from lqn_seg.config.methods import adaptation
from lqn_seg.config.nodes import get_classification_cfg, load_cfg
from lqn_seg.core.alignment import Calibration, LayerRange
from lqn_seg.core.precision import resolve_precision
from lqn_seg.data.catalog import Dataset, get_dataset
from lqn_seg.data.coco import load_coco_panoptic
from lqn_seg.data.corruptions import corrupt
from lqn_seg.data.images import read_id_map, read_image, write_id_map
from lqn_seg.data.labelled_images import load_image_folder, read_labelled_image
from lqn_seg.data.shipped import find_config
from lqn_seg.engine.build import build_calibration, build_head, build_teacher
from lqn_seg.engine.calibrate import calibrate_on
from lqn_seg.engine.classify import Classification
from lqn_seg.engine.evaluate import DatasetRun, Evaluation
from lqn_seg.errors import InputError, nearest
from lqn_seg.lab.benchmark.benchmark import machine
from lqn_seg.lab.benchmark.stages import OTHER, STAGES, StageClock, stages_timed
from lqn_seg.lab.benchmark.teachers import CLIPS, EOMTS, build_scene
from lqn_seg.segmentation.windows import windows_of
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.clip import ClipTeacher

DEMO = "demo"  # the shipped teacher; the others have random weights
METHODS = ("teacher", "restore", "field", "lqn")
_NOISE = "gaussian_noise", 3  # of the drawn images
_CALIBRATED_ON = 2  # images, at least


def parse_scene(text: str) -> tuple[str, int]:
    """A teacher's name and the side of its images, 0 for its own, of "eomt-l:512"."""
    name, _, side = text.partition(":")
    nearest(name, (DEMO, *CLIPS, *EOMTS), "scene")
    if side and (name == DEMO or not side.isdecimal() or int(side) == 0):
        raise InputError(f"a scene is like demo, eomt-l or eomt-l:512, not {text!r}")
    return name, int(side or 0)


@dataclass(frozen=True)
class EndToEndConfig:
    scenes: tuple[str, ...]  # as `parse_scene` takes them
    images: int = 4  # of a scene
    classes: int = 0  # of a random head; 0 is the teacher's own number
    precision: str = "auto"  # of the teachers
    device: str = "cpu"
    threads: int = 1  # on a CPU
    repeats: int = 3  # runs of each method

    def __post_init__(self) -> None:
        for scene in self.scenes:
            parse_scene(scene)
        if self.repeats < 1 or self.images < 1:
            raise InputError("a benchmark needs repeats and images of at least 1")


class EndToEnd:
    """All scenes, one after the other. `say` is told as it goes; pages with flame graphs go into
    the folder."""

    def __init__(
        self, config: EndToEndConfig, folder: Path, say: Callable[[str], None] = print
    ) -> None:
        self.config, self.folder, self.say = config, folder, say
        self.results: dict[str, Any] = {}  # so far

    def run(self) -> dict[str, Any]:
        """As it is written to ``benchmark.json``."""
        config = self.config
        about = {
            "environment": machine(config.threads, torch.device(config.device)),
            "settings": asdict(config),
        }
        for text in config.scenes:
            # On the disk of the output, where results are written as they would be.
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                scene = SceneRun(text, Path(folder), config)
                row = scene.measure(config.repeats, self.say)
                self.results = {**about, "end_to_end": [*self.results.get("end_to_end", ()), row]}
                page = self.folder / f"flame_{text.replace(':', '_')}.html"
                try:
                    self.say(f"flame graph: {scene.flame_graph(scene.methods[-1], page)}")
                except ModuleNotFoundError:
                    self.say("no flame graph without pyinstrument: pip install 'lqn_seg[profile]'")
        return self.results


class SceneRun:
    """One scene's teacher and images, in a folder, and runs of methods on them."""

    def __init__(self, scene: str, folder: Path, config: EndToEndConfig) -> None:
        self.scene, self.folder, self.count = scene, folder, config.images
        name, side = parse_scene(scene)
        self.is_clip = name in CLIPS
        device = torch.device(config.device)
        precision = resolve_precision(config.precision, device)
        self.cfg = _configuration(name, config.device)
        self.cfg.MODEL.LQN.TEACHER.PRECISION = precision
        self.cfg.MODEL.LQN.EVAL.THREADS = config.threads
        self.cfg.MODEL.LQN.EVAL.MAX_IMAGES = self.count
        self.teacher: Teacher[Any]
        if name == DEMO:
            self.teacher = build_teacher(self.cfg)
        else:
            self.teacher = build_scene(name, side, config.classes, precision, device).teacher
        number, side = max(self.count, _CALIBRATED_ON), min(self.teacher.image_size)
        if self.is_clip:
            self.dataset = draw_objects(folder / "images", side, number)
        else:
            names = build_head(self.cfg, self.teacher).class_names
            self.dataset = draw_scenes(folder / "images", side, number, names)
        self.calibration = self._calibration()
        self.cfg.MODEL.LQN.CALIBRATION = str(folder / "calibration.safetensors")
        save_calibration(Path(self.cfg.MODEL.LQN.CALIBRATION), self.calibration, {})

    def _calibration(self) -> Calibration:
        """The teacher's own where it has one; to it, every image is damaged and noisy. What two
        images say of random weights would blow tokens up, so that style is counted and stays."""
        found = build_calibration(self.cfg, self.teacher)
        if found is None:
            records = self.dataset.records()
            found, _ = calibrate_on(self.teacher, records, self._inputs, 1, QUANTILE)
            found = replace(found, layers={k: _idle(clean) for k, clean in found.layers.items()})
        return replace(alarmed(found), noise=0.0)

    def _inputs(self, pixels: Any) -> Tensor:
        if isinstance(self.teacher, ClipTeacher):
            return centre_view(pixels, self.teacher)[None]
        return windows_of(pixels, self.teacher, self.cfg.MODEL.LQN.INFERENCE)

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that the scene's task has."""
        return tuple(m for m in METHODS if not (self.is_clip and m == "field"))

    def open(self, method: str) -> DatasetRun:
        """A method's run from the first image, all earlier results forgotten."""
        cfg = self.cfg.clone()
        cfg.OUTPUT_DIR = str(self.folder / "results" / method)
        if isinstance(self.teacher, ClipTeacher):
            recipes = {method: adaptation(cfg, method)}
            folder = Path(cfg.OUTPUT_DIR)
            parts = self.teacher, self.calibration, recipes, folder
            return Classification(cfg, self.dataset, *parts, strict=True)
        cfg.MODEL.LQN.METHODS = (method,)
        return Evaluation(cfg, self.dataset, strict=True, teacher=self.teacher)

    def time(self, method: str) -> StageClock:
        """One run of a method."""
        run = self.open(method)
        with stages_timed(self.teacher.device) as clock:
            run.run(progress=False)
        return clock

    def measure(self, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
        """Medians over the repeats, per image, as ``benchmark.json`` has them."""
        clocks: dict[str, list[StageClock]] = {method: [] for method in self.methods}
        for turn in range(repeats + 1):
            for method in self.methods:
                clock = self.time(method)
                if turn:  # the first warms up
                    clocks[method].append(clock)
                whole = sum(clock.ms.values()) / self.count
                say(f"{self.scene}, {method}, turn {turn}: {whole:.1f} ms per image")
        test = self.cfg.MODEL.MASK_FORMER.TEST
        outputs = [k.removesuffix("_ON").lower() for k in test if k.endswith("_ON") and test[k]]
        return {
            "scene": self.scene,
            "teacher": self.teacher.name,
            "precision": self.teacher.precision,
            "image_size": self.teacher.image_size,
            "classes": self.dataset.metadata.num_classes,
            "outputs": ["class scores"] if self.is_clip else outputs,
            "images": self.count,
            "batch": self.cfg.MODEL.LQN.BATCH,
            "methods": {method: self._medians(of_one) for method, of_one in clocks.items()},
        }

    def _medians(self, clocks: Sequence[StageClock]) -> dict[str, dict[str, float]]:
        """Of each stage and of the "total", whose median the stages' need not add up to."""

        def median(values: Sequence[float]) -> float:
            return statistics.median(values) / self.count

        stages = {
            stage: {
                "ms": median([clock.ms[stage] for clock in clocks]),
                "busy_ms": median([clock.busy_ms[stage] for clock in clocks]),
            }
            for stage in (*STAGES, OTHER)
        }
        total = {
            "ms": median([sum(clock.ms.values()) for clock in clocks]),
            "busy_ms": median([sum(clock.busy_ms.values()) for clock in clocks]),
        }
        return {**stages, "total": total}

    def flame_graph(self, method: str, path: Path) -> Path:
        """Write a page that shows where a method's run spends its time, by functions; a
        `ModuleNotFoundError` without pyinstrument."""
        from pyinstrument import Profiler
        from pyinstrument.renderers import HTMLRenderer

        run = self.open(method)
        with Profiler(interval=1e-3, async_mode="disabled") as profiler:
            run.run(progress=False)
        path.write_text(profiler.output(HTMLRenderer(show_all=True)))
        return path


def _idle(clean: LayerRange) -> LayerRange:
    """A range to which all is aligned, by the same arithmetic."""
    style = clean.style and replace(clean.style, write=torch.zeros_like(clean.style.write))
    return replace(clean, style=style)


def _configuration(name: str, device: str) -> CfgNode:
    """Everything is predicted, and every query competes: random weights are sure of nothing."""
    if name in CLIPS:
        cfg = get_classification_cfg()
        cfg.MODEL.DEVICE, cfg.CLASSIFICATION.PROMPTS = device, "single"
        return cfg
    if name == DEMO:
        return load_cfg(str(find_config(DEMO)), ["MODEL.LQN.EVAL.CORRUPTIONS", "()"], device)
    wanted: dict[str, Any] = {f"{task}_ON": True for task in ("SEMANTIC", "PANOPTIC", "INSTANCE")}
    wanted |= dict.fromkeys(("OBJECT_MASK_THRESHOLD", "OVERLAP_THRESHOLD"), 0.0)
    words = [w for key, v in wanted.items() for w in (f"MODEL.MASK_FORMER.TEST.{key}", v)]
    return load_cfg(str(find_config("configs/Base-LQN.yaml")), words, device)


def draw_scenes(folder: Path, side: int, count: int, class_names: Sequence[str]) -> Dataset:
    """The shipped scenes, `side` pixels wide and noisy, as a data set in COCO's panoptic layout;
    the first of its classes are what the scenes hold."""
    shipped = get_dataset("demo_panoptic_val")
    stuff = {*range(shipped.metadata.num_classes)} - shipped.metadata.thing_ids
    categories = [
        {"id": i + 1, "name": name, "isthing": int(i not in stuff)}
        for i, name in enumerate(class_names)
    ]
    folder.mkdir(parents=True)
    images, annotations = [], []
    for record in shipped.records()[:count]:
        stem = Path(record["file_name"]).stem
        _write_noisy(read_image(record["file_name"]), side, folder / f"{stem}.jpg")
        ids = _enlarged(read_id_map(record["pan_seg_file_name"]), side)
        write_id_map(folder / f"{stem}.png", ids)
        key = {"id": record["image_id"], "file_name": f"{stem}.jpg"}
        images.append({**key, "height": side, "width": side})
        segments = [
            {"id": s["id"], "category_id": s["category_id"] % len(categories) + 1, "bbox": [0] * 4}
            for s in record["segments_info"]
        ]
        annotation = {"image_id": key["id"], "file_name": f"{stem}.png"}
        annotations.append({**annotation, "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return load_coco_panoptic("drawn scenes", folder, folder, folder / "panoptic.json")


def draw_objects(folder: Path, side: int, count: int) -> Dataset:
    """The shipped pictures of objects, `side` pixels wide and noisy, in folders of their class."""
    shipped = get_dataset("demo_objects_val")
    records = shipped.records()
    for record in records[:: max(len(records) // count, 1)][:count]:
        path = folder / shipped.metadata.class_names[record["label"]] / record["image_id"]
        path = path.parent / f"{Path(record['image_id']).stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_noisy(read_labelled_image(record), side, path)
    return load_image_folder("drawn objects", folder)


def _write_noisy(pixels: Any, side: int, path: Path) -> None:
    large = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    noisy = corrupt(np.array(large), *_NOISE, 0)
    Image.fromarray(noisy).save(path, quality=95, subsampling=0)  # the noise stays


def _enlarged(ids: Any, side: int) -> Any:
    places = (np.arange(side) * len(ids)) // side
    return ids[places][:, places]

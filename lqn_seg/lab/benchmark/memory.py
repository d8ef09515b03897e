"""What a process holds at most while it segments an image: each method in a process of its own.

The teacher has random weights, so no segment is found in a random image; where some are, the
post-processing of every method takes more. A calibration to which every image looks damaged lets
alignment and students do all their work.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lqn_seg.adapt.calibration import (
    FILE_NAME,
    alarmed,
    calibrate,
    calibrated_layers,
    load_calibration,
    save_calibration,
)
from lqn_seg.adapt.methods import Method, SegmentationConfig
from lqn_seg.core.config import preset, with_variant
from lqn_seg.core.precision import resolve_precision
from lqn_seg.engine.launch import keep_memory
from lqn_seg.errors import InputError
from lqn_seg.lab.benchmark.teachers import EOMTS, eomt_head, random_eomt
from lqn_seg.lab.report.wording import table, wrapped
from lqn_seg.segmentation.segmenter import Segmenter

METHODS = ("teacher", "restore", "field", "lqn")
_CPU = torch.device("cpu")
_FEW = 10  # patches a side, of the images that the calibration is made on


@dataclass(frozen=True)
class MemoryConfig:
    teacher: str = "eomt-l"  # of `EOMTS`
    image_size: int = 0  # 0 for the teacher's own
    precision: str = "auto"
    threads: int = 1
    methods: tuple[str, ...] = METHODS

    def __post_init__(self) -> None:
        if self.teacher not in EOMTS:
            names = ", ".join(EOMTS)
            raise InputError(f"the memory of an EoMT is measured ({names}), not of {self.teacher}")
        object.__setattr__(self, "precision", resolve_precision(self.precision, _CPU))


def peaks(config: MemoryConfig, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """For each ``method`` the MiB of a process before its first image, ``loaded_mib``, and its
    most, ``peak_mib``."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        _alone(_write_calibration, config, path)
        found = []
        for method in config.methods:
            loaded, peak = _alone(_peak, config, path, method)
            found.append({"method": method, "loaded_mib": loaded, "peak_mib": peak})
            say(f"{method}: {peak:.0f} MiB")
    return found


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _peak(config: MemoryConfig, path: Path, method: str) -> tuple[float, float]:
    teacher = random_eomt(config.teacher, config.image_size, config.precision)
    recipes: dict[str, Method] = {method: recipe(method)}
    # Panoptic output alone: class scores of every pixel would add as much to every method.
    settings = SegmentationConfig(semantic=False, panoptic=True, threads=config.threads)
    calibration = alarmed(load_calibration(path, teacher))
    parts = teacher, eomt_head(teacher), recipes, frozenset[int](), settings, calibration
    segmenter = Segmenter(*parts)
    keep_memory()
    loaded = resident_mib()
    segmenter([random_image(*teacher.image_size)])
    return loaded, resident_mib()


def recipe(method: str) -> Method:
    """Of the preset "default"; None is the teacher's."""
    return None if method == "teacher" else with_variant(preset("default"), method)


def random_image(height: int, width: int) -> Tensor:
    """(3, height, width) uint8, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def resident_mib() -> float:
    """The most that this process has held in memory."""
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _write_calibration(config: MemoryConfig, path: Path) -> None:
    """As large as the teacher's own, and made in seconds: on few patches, of its first layer, which
    stands for all."""
    full = random_eomt(config.teacher, config.image_size, config.precision)
    patch = full.model.config.patch_size
    small = {"num_hidden_layers": 2, "num_blocks": 1}
    few = random_eomt(config.teacher, _FEW * patch, config.precision, **small)
    images = torch.stack([random_image(*few.image_size), random_image(*few.image_size).flip(-1)])
    found = calibrate(few, lambda: [images.float() / 255])
    depths = calibrated_layers(full.num_layers, full.num_query_layers)
    blank = torch.zeros(*full.grid, full.width)
    layers = {k: deepcopy(replace(found.layers[min(k, 1)], centre=blank)) for k in depths}
    save_calibration(path, replace(found, layers=layers), {})


def memory_text(numbers: Mapping[str, Any]) -> str:
    """A table of ``settings`` and ``peaks``, with each method's peak over the first one's."""
    settings, found = numbers["settings"], numbers["peaks"]
    side = settings["image_size"] or EOMTS[settings["teacher"]][3]
    heading = (
        f"Peak memory of a process that segments one image: {settings['teacher']} (random weights) "
        f"at {side} px in {settings['precision']}, recipes of the preset default, panoptic output"
    )
    first = found[0]
    rows = [
        [p["method"], p["loaded_mib"], p["peak_mib"], p["peak_mib"] / first["peak_mib"]]
        for p in found
    ]
    heads = ["", "loaded\nMiB", "peak\nMiB", f"peak over\n{first['method']}'s"]
    return f"{wrapped(heading)}\n{table(rows, heads, ('.0f', '.0f', '.2f'))}"

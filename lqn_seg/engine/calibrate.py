"""Calibrate the teacher of a configuration on a folder of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lqn_seg import __version__
from lqn_seg.adapt.calibration import (
    CHECKPOINT,
    FILE_NAME,
    PASSES,
    PRECISION,
    QUANTILE,
    calibrate,
    save_calibration,
)
from lqn_seg.config.nodes import load_cfg, segmentation_config
from lqn_seg.core.alignment import Calibration
from lqn_seg.data.catalog import Dataset, get_dataset
from lqn_seg.data.corruptions import Pixels
from lqn_seg.data.images import find_images
from lqn_seg.data.labelled_images import read_labelled_image
from lqn_seg.data.metadata import Record
from lqn_seg.data.shipped import find_local
from lqn_seg.engine.build import build_teacher, describe_teacher
from lqn_seg.engine.store import make_writable, say
from lqn_seg.engine.usable import name_problems, spread, usable_records
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import windows_of
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.files import checkpoint_hash

BATCH = 8


@dataclass
class Calibrated:
    """A calibration, what it was made of, and what it took.

    Attributes:
        images: how many.
        sizes: (height, width) in pixels of the images.
        inputs: windows that the teacher saw in each of its passes.
        seconds: for everything, reading included.
    """

    teacher: Teacher[Any]
    images: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    inputs: int = 0
    seconds: float = 0.0
    path: Path = Path()

    def about(self, weights: str, source: str, quantile: float) -> dict[str, Any]:
        """What its file says of it; height and width are those of the smallest and the largest
        image, the date is UTC's."""
        height, width = ([min(sides), max(sides)] for sides in zip(*self.sizes))
        return {
            "images": self.images,
            "from": source,
            "quantile": quantile,
            "height": height,
            "width": width,
            CHECKPOINT: checkpoint_hash(find_local(weights)) if weights else "",
            PRECISION: self.teacher.precision,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "version": __version__,
        }


def calibrate_teacher(
    config_file: str,
    images: Path | str,
    overrides: Sequence[str] = (),
    device: str = "",
    most: int = 0,
    quantile: float | None = None,
    output: Path | None = None,
    strict: bool = False,
) -> Calibrated:
    """Calibrate on clean images, cut into windows as the configuration evaluates, and save it.

    Args:
        images: a folder, searched below, or the name of a registered data set.
        most: use so many images, spread over all by name; 0 is all.
        quantile: fraction of the windows left out at either end of each range.
        output: file to write; by default beside the teacher's local weights.
        strict: stop at the first image that cannot be read, which is otherwise named and left out.
    """
    cfg = load_cfg(config_file, overrides, device)
    if most < 0:
        raise InputError(f"--max must not be negative, not {most}")
    quantile = QUANTILE if quantile is None else quantile
    if not 0 <= quantile < 0.5:
        raise InputError(f"--quantile must be in [0, 0.5), not {quantile}")
    source = get_dataset(images) if isinstance(images, str) else images
    records = spread(calibration_records(source, strict), most)
    if output is None:
        folder = Path(find_local(cfg.MODEL.LQN.TEACHER.WEIGHTS))
        if not cfg.MODEL.LQN.TEACHER.WEIGHTS or not folder.is_dir():
            raise InputError("--output is required: the weights are not in a local folder")
        output = folder / FILE_NAME
    if not output.parent.is_dir():
        raise InputError(f"--output: folder {output.parent} does not exist")
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder, expected a file")
    make_writable(output.parent)
    teacher = build_teacher(cfg)
    print(describe_teacher(cfg, teacher), flush=True)
    inference = segmentation_config(cfg).inference

    def windows(pixels: Pixels) -> Tensor:
        return windows_of(pixels, teacher, inference)

    calibration, made = calibrate_on(teacher, records, windows, BATCH, quantile, strict)
    about = made.about(cfg.MODEL.LQN.TEACHER.WEIGHTS, Path(images).name, quantile)
    save_calibration(output, calibration, {**about, "inference": inference})
    made.path = output
    return made


def calibrate_on(
    teacher: Teacher[Any],
    records: Sequence[Record],
    windows: Callable[[Pixels], Tensor],
    batch: int,
    quantile: float,
    strict: bool = False,
) -> tuple[Calibration, Calibrated]:
    """`calibrate`, with a bar, and what it was made of. ``windows`` gives the (N, 3, h, w) uint8
    teacher inputs of an image; what cannot be read is named and left out, or with `strict` an
    `InputError`. The teacher gets ``batch`` windows at a time."""
    left_out: set[int] = set()
    made, start = Calibrated(teacher), perf_counter()

    def batches() -> Iterator[Tensor]:
        waiting: list[Tensor] = []
        made.inputs = 0
        for number, record in enumerate(records):
            bar.update()
            if number in left_out:  # in every pass the same ones
                continue
            try:
                pixels = read_labelled_image(record)
                crops = windows(pixels)
            except InputError as error:
                if strict:
                    raise
                left_out.add(number)
                say(f"left out: {error}")
                continue
            made.sizes.add(pixels.shape[:2])
            made.inputs += len(crops)
            waiting.extend(crops)
            while len(waiting) >= batch:
                yield inputs(waiting[:batch])
                del waiting[:batch]
        if waiting:
            yield inputs(waiting)

    def inputs(crops: list[Tensor]) -> Tensor:
        return torch.stack(crops).to(teacher.device).float() / 255

    with tqdm(total=PASSES * len(records), desc=f"{PASSES} passes", unit="image") as bar:
        calibration = calibrate(teacher, batches, quantile)
    if left_out:
        say(f"{len(left_out)} of {len(records)} images LEFT OUT")
    made.images, made.seconds = len(records) - len(left_out), perf_counter() - start
    return calibration, made


def calibration_records(source: Path | Dataset, strict: bool = False) -> list[Record]:
    """Records of the images below a folder, or of a data set; an `InputError` where there is none,
    or with `strict` one that cannot be listed."""
    if isinstance(source, Dataset):
        return usable_records(source, strict)
    files = find_images(source, below=True)
    name_problems(files.problems(f"folder {source}"), strict)
    if not files.images:
        raise InputError(f"folder {source} holds no image")
    return [{"file_name": str(file)} for file in files.images]

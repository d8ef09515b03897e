"""Calibrate the teacher of a configuration on a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lqn_seg.core.gauge import Calibration
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.images import read_image
from lqn_seg.engine.build import build_teacher, describe_teacher, find_local
from lqn_seg.engine.config import load_cfg, segmentation_config
from lqn_seg.engine.sharded import make_writable
from lqn_seg.errors import InputError
from lqn_seg.segmentation.calibration import (
    FILE_NAME,
    PASSES,
    QUANTILE,
    calibrate,
    save_calibration,
)
from lqn_seg.segmentation.windows import layout_of
from lqn_seg.teachers.base import Teacher

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_BATCH = 8
T = TypeVar("T")


def calibrate_teacher(
    config_file: str,
    images: Path | str,
    overrides: Sequence[str] = (),
    device: str = "",
    most: int = 0,
    quantile: float | None = None,
    output: Path | None = None,
) -> Path:
    """Calibrate on clean images, cut into windows as the configuration evaluates.

    Args:
        images: a folder, searched below, or the name of a registered data set.
        most: use the first so many images by name; 0 is all.
        quantile: share of the windows left out at either end of each range.
        output: file to write; by default beside the teacher's local weights.

    Returns:
        The file that was written.

    Raises:
        InputError: no image is found, or nothing says where to write, or the config is wrong.
    """
    cfg = load_cfg(config_file, overrides, device)
    if most < 0:
        raise InputError(f"--max must not be negative, not {most}")
    files = _image_files(images)[: most or None]
    weights = Path(find_local(cfg.MODEL.LQN.TEACHER.WEIGHTS))
    if output is None:
        if not cfg.MODEL.LQN.TEACHER.WEIGHTS or not weights.is_dir():
            raise InputError("--output is needed: the teacher's weights are not in a local folder")
        output = weights / FILE_NAME
    if not output.parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}")
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder, expected a file")
    make_writable(output.parent)
    share = QUANTILE if quantile is None else quantile
    if not 0 <= share < 0.5:
        raise InputError(f"--quantile must be in [0, 0.5), not {share}")
    teacher = build_teacher(cfg)
    print(describe_teacher(cfg, teacher), flush=True)
    inference = segmentation_config(cfg).inference

    def windows(file: Path) -> Tensor:
        image = torch.from_numpy(read_image(file)).movedim(2, 0)
        return layout_of(image, teacher, inference).crops(image)

    found = calibrate_on(teacher, files, windows, _BATCH, share)
    save_calibration(
        output,
        found,
        {
            "images": len(files),
            "from": Path(images).name,
            "quantile": share,
            "inference": inference,
        },
    )
    return output


def calibrate_on(
    teacher: Teacher[Any],
    sources: Sequence[T],
    windows: Callable[[T], Tensor],
    batch: int,
    quantile: float,
) -> Calibration:
    """`calibrate`, with a bar.

    Args:
        windows: (N, 3, h, w) uint8 teacher inputs that a source holds.
        batch: how many the teacher gets at a time.
        quantile: see `calibrate`.
    """
    with tqdm(total=PASSES * len(sources), desc=f"{PASSES} passes", unit="image") as bar:

        def batches() -> Iterator[Tensor]:
            waiting: list[Tensor] = []
            for number, source in enumerate(sources, 1):
                bar.update()
                waiting.extend(windows(source))
                while len(waiting) >= batch or (waiting and number == len(sources)):
                    yield torch.stack(waiting[:batch]).to(teacher.device).float() / 255
                    waiting = waiting[batch:]

        return calibrate(teacher, batches, quantile)


def _image_files(images: Path | str) -> list[Path]:
    if isinstance(images, str):
        return [Path(record["file_name"]) for record in get_dataset(images).records()]
    files = sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"--images: there is no image below {images}")
    return files

"""Calibrate the teacher of a configuration on a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lqn_seg.adapt.calibration import (
    FILE_NAME,
    PASSES,
    QUANTILE,
    calibrate,
    save_calibration,
)
from lqn_seg.config.nodes import load_cfg, segmentation_config
from lqn_seg.core.alignment import Calibration
from lqn_seg.data.catalog import Dataset, get_dataset
from lqn_seg.data.images import find_images
from lqn_seg.data.labelled_images import read_labelled_image
from lqn_seg.data.metadata import Record
from lqn_seg.engine.build import build_teacher, describe_teacher, find_local
from lqn_seg.engine.store import make_writable, say
from lqn_seg.engine.usable import name_problems, usable_records
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import layout_of
from lqn_seg.teachers.base import Teacher

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
    strict: bool = False,
) -> Path:
    """Calibrate on clean images, cut into windows as the configuration evaluates.

    Args:
        images: a folder, searched below, or the name of a registered data set.
        most: use the first so many images by name; 0 is all.
        quantile: share of the windows left out at either end of each range.
        output: file to write; by default beside the teacher's local weights.
        strict: stop at the first image that cannot be read, which is otherwise named and left out.

    Returns:
        The file that was written.

    Raises:
        InputError: no image is found, or nothing says where to write, or the config is wrong.
    """
    cfg = load_cfg(config_file, overrides, device)
    if most < 0:
        raise InputError(f"--max must not be negative, not {most}")
    source = get_dataset(images) if isinstance(images, str) else images
    records = calibration_records(source, strict)[: most or None]
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

    def windows(record: Record) -> Tensor:
        image = torch.from_numpy(read_labelled_image(record)).movedim(2, 0)
        return layout_of(image, teacher, inference).crops(image)

    found, count = calibrate_on(teacher, records, windows, _BATCH, share, strict)
    save_calibration(
        output,
        found,
        {
            "images": count,
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
    strict: bool = False,
) -> tuple[Calibration, int]:
    """`calibrate`, with a bar; images that cannot be read are named, counted and left out.

    Args:
        windows: (N, 3, h, w) uint8 teacher inputs that a source holds; raises `InputError` where it
            cannot be read.
        batch: how many the teacher gets at a time.
        quantile: see `calibrate`.
        strict: raise that error.

    Returns:
        The calibration, and how many sources it was made from.

    Raises:
        InputError: fewer than two sources can be read.
    """
    left_out: set[int] = set()

    def read(number: int) -> list[Tensor]:
        if number in left_out:  # in every pass the same ones
            return []
        try:
            return [*windows(sources[number])]
        except InputError as error:
            if strict:
                raise
            left_out.add(number)
            say(f"left out: {error}")
            return []

    with tqdm(total=PASSES * len(sources), desc=f"{PASSES} passes", unit="image") as bar:

        def batches() -> Iterator[Tensor]:
            waiting: list[Tensor] = []
            for number in range(len(sources)):
                bar.update()
                waiting.extend(read(number))
                is_last = number == len(sources) - 1
                while len(waiting) >= batch or (waiting and is_last):
                    yield torch.stack(waiting[:batch]).to(teacher.device).float() / 255
                    waiting = waiting[batch:]

        found = calibrate(teacher, batches, quantile)
    if left_out:
        say(f"{len(left_out)} of {len(sources)} images LEFT OUT")
    return found, len(sources) - len(left_out)


def calibration_records(source: Path | Dataset, strict: bool = False) -> list[Record]:
    """Records of the images below a folder, or of a data set.

    Args:
        strict: whether it is an error that something there cannot be listed, which is otherwise
            named and left out.

    Raises:
        InputError: there is no image.
    """
    if isinstance(source, Dataset):
        return usable_records(source, strict)
    found = find_images(source, below=True)
    name_problems(found.problems(f"folder {source}"), strict)
    if not found.images:
        raise InputError(f"--images: there is no image below {source}")
    return [{"file_name": str(file)} for file in found.images]

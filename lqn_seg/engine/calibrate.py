"""Calibrate the teacher of a configuration on a folder of images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lqn_seg.adapt.calibration import FILE_NAME, PASSES, QUANTILE, calibrate, save_calibration
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

BATCH = 8
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
    """Calibrate on clean images, cut into windows as the configuration evaluates; returns the file.

    Args:
        images: a folder, searched below, or the name of a registered data set.
        most: use the first so many images by name; 0 is all.
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
    records = calibration_records(source, strict)[: most or None]
    if output is None:
        folder = Path(find_local(cfg.MODEL.LQN.TEACHER.WEIGHTS))
        if not cfg.MODEL.LQN.TEACHER.WEIGHTS or not folder.is_dir():
            raise InputError("--output is needed: the teacher's weights are not in a local folder")
        output = folder / FILE_NAME
    if not output.parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}")
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder, expected a file")
    make_writable(output.parent)
    teacher = build_teacher(cfg)
    print(describe_teacher(cfg, teacher), flush=True)
    inference = segmentation_config(cfg).inference

    def windows(record: Record) -> Tensor:
        image = torch.from_numpy(read_labelled_image(record)).movedim(2, 0)
        return layout_of(image, teacher, inference).crops(image)

    calibration, count = calibrate_on(teacher, records, windows, BATCH, quantile, strict)
    about = {"images": count, "from": Path(images).name, "quantile": quantile}
    save_calibration(output, calibration, {**about, "inference": inference})
    return output


def calibrate_on(
    teacher: Teacher[Any],
    sources: Sequence[T],
    windows: Callable[[T], Tensor],
    batch: int,
    quantile: float,
    strict: bool = False,
) -> tuple[Calibration, int]:
    """`calibrate`, with a bar, and how many sources it was made from. ``windows`` gives the (N, 3,
    h, w) uint8 teacher inputs of a source; what cannot be read is named and left out, or with
    `strict` an `InputError`. The teacher gets ``batch`` windows at a time."""
    left_out: set[int] = set()

    def batches() -> Iterator[Tensor]:
        waiting: list[Tensor] = []
        for number, source in enumerate(sources):
            bar.update()
            if number in left_out:  # in every pass the same ones
                continue
            try:
                waiting.extend(windows(source))
            except InputError as error:
                if strict:
                    raise
                left_out.add(number)
                say(f"left out: {error}")
            while len(waiting) >= batch:
                yield inputs(waiting[:batch])
                del waiting[:batch]
        if waiting:
            yield inputs(waiting)

    def inputs(crops: list[Tensor]) -> Tensor:
        return torch.stack(crops).to(teacher.device).float() / 255

    with tqdm(total=PASSES * len(sources), desc=f"{PASSES} passes", unit="image") as bar:
        calibration = calibrate(teacher, batches, quantile)
    if left_out:
        say(f"{len(left_out)} of {len(sources)} images LEFT OUT")
    return calibration, len(sources) - len(left_out)


def calibration_records(source: Path | Dataset, strict: bool = False) -> list[Record]:
    """Records of the images below a folder, or of a data set; an `InputError` where there is none,
    or with `strict` one that cannot be listed."""
    if isinstance(source, Dataset):
        return usable_records(source, strict)
    files = find_images(source, below=True)
    name_problems(files.problems(f"folder {source}"), strict)
    if not files.images:
        raise InputError(f"--images: there is no image below {source}")
    return [{"file_name": str(file)} for file in files.images]

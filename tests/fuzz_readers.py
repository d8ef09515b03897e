#!/usr/bin/env python
"""Mutated files for everything that reads files: each gives a result or one sentence, and soon.

    python tests/fuzz_readers.py                              # 1000 inputs for each reader
    python tests/fuzz_readers.py coco_panoptic yaml --inputs 5000 --seed 7

A reader is a folder of small valid files and what the product does with it. A file of the folder is
mutated: JSON and YAML in a value, a key or a byte, all others in bytes. Anything but a result or an
`InputError` of one line is a finding, and so is an input that takes longer than `PATIENCE`. A
process of their own reads the inputs, and is ended where it hangs. A seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

PATIENCE = 20.0  # seconds for one input
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, 255, 256, 2**31, 2**63, 1e300, float("nan")),
    *("", "0", "1", "x", "../x", "#00ff00", "ä\u0000"),
    *([], [0], [[]], [[1, 2], [3, 4]], {}, {"a": 1}),
)


@dataclass
class Outcome:
    """What became of a reader's inputs."""

    read: int = 0  # how many gave a result
    refused: int = 0  # and how many a sentence
    # What must not happen, by its text: how often, and the first input's number.
    findings: dict[str, list[int]] = field(default_factory=dict)

    def add(self, number: int, text: str) -> None:
        """Take in what `read_one` says of an input."""
        if text == "":
            self.read += 1
        elif text == "refused":
            self.refused += 1
        else:
            self.findings.setdefault(text, [0, number])[0] += 1

    def __str__(self) -> str:
        bad = sum(count for count, _ in self.findings.values())
        total = self.read + self.refused + bad
        return f"{total} inputs: {self.read} read, {self.refused} refused, {bad} findings"


# ---- mutations -----------------------------------------------------------------------------------


def mutate(data: bytes, suffix: str, rng: random.Random) -> bytes:
    """A changed copy of a file's content."""
    if suffix in (".json", ".yaml") and rng.random() < 0.8:
        loaded = json.loads(data) if suffix == ".json" else yaml.safe_load(data)
        changed = mutate_value(copy.deepcopy(loaded), rng)
        if suffix == ".json":
            return json.dumps(changed).encode("utf-8", "surrogatepass")
        return yaml.safe_dump(changed, allow_unicode=True).encode()
    for _ in range(rng.choice((1, 1, 2, 8))):
        data = mutate_bytes(data, rng)
    return data


def mutate_value(value: Any, rng: random.Random) -> Any:
    """One place of a nested value changed: replaced, dropped, doubled."""
    paths = list(paths_in(value))
    path = rng.choice(paths)
    if not path:
        return rng.choice(ODD_VALUES)
    *above, last = path
    node = value
    for key in above:
        node = node[key]
    action = rng.random()
    if action < 0.7:
        node[last] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif action < 0.85 or isinstance(node, dict):
        del node[last]
    else:
        node.append(copy.deepcopy(node[last]))
    return value


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a nested value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths_in(value[key], (*path, key))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, inserted, or nothing left."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 1, 4, 64)))
    noise, inserted = rng.randbytes(end - start), rng.randbytes(4)
    middles = (noise, noise, b"", data[start:end] * 2, inserted + data[start:end])
    return rng.choice((*(data[:start] + m + data[end:] for m in middles), data[:start], b""))


# ---- readers -------------------------------------------------------------------------------------


def scene(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)


def write_images(folder: Path) -> None:
    for number in range(2):
        Image.fromarray(scene(number)).save(folder / f"{number}.jpg")


def write_coco(path: Path, annotations: list[dict[str, Any]]) -> None:
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 12, "width": 16} for n in range(2)],
        "annotations": annotations,
        "categories": [
            {"id": 3, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
            {"id": 5, "name": "cat", "isthing": 1, "color": "#040506"},
        ],
    }
    path.write_text(json.dumps(content))


def make_panoptic(folder: Path) -> None:
    write_images(folder)
    annotations = []
    ids = np.zeros((12, 16, 3), np.uint8)
    ids[2:6, :, 0], ids[6:, 8:, 0] = 1, 2
    for number in range(2):
        Image.fromarray(ids).save(folder / f"{number}.png")
        segments = [
            {"id": 1, "category_id": 3, "iscrowd": 0, "area": 64, "bbox": [0, 2, 16, 4]},
            {"id": 2, "category_id": 5, "iscrowd": number, "area": 48, "bbox": [8, 6, 8, 6]},
        ]
        annotations.append(
            {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}
        )
    write_coco(folder / "panoptic.json", annotations)


def make_instances(folder: Path) -> None:
    from pycocotools.mask import encode

    write_images(folder)
    block = np.zeros((12, 16), np.uint8, order="F")
    block[3:9, 2:12] = 1
    shapes: list[Any] = [
        [[1, 1, 9, 1, 9, 9, 1, 9]],
        {"size": [12, 16], "counts": [20, 10, 62, 50, 50]},
        {"size": [12, 16], "counts": encode(block)["counts"].decode()},
    ]
    annotations = [
        {
            **{"id": n + 1, "image_id": n % 2, "category_id": 3 + 2 * (n % 2), "iscrowd": n % 2},
            **{"segmentation": shape, "area": 60, "bbox": [1, 1, 8, 8]},
        }
        for n, shape in enumerate(shapes)
    ]
    write_coco(folder / "instances.json", annotations)


def read_all(dataset: Any) -> None:
    """What evaluation and validation read of a data set; a bad file is one image's."""
    from lqn_seg.errors import InputError
    from lqn_seg.lab.validate.ground_truth import read_ground_truth

    failed = []
    records = dataset.records(strict=False)
    for record in records:
        try:
            read_ground_truth(record, dataset.metadata)
        except InputError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def read_panoptic(folder: Path) -> None:
    from lqn_seg.data.coco import load_coco_panoptic

    read_all(load_coco_panoptic("fuzz", folder, folder, folder / "panoptic.json"))


def read_instances(folder: Path) -> None:
    from lqn_seg.data.coco import load_coco_instances

    read_all(load_coco_instances("fuzz", folder, folder / "instances.json"))


def make_label_folders(folder: Path) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    write_images(folder / "images")
    for number in range(2):
        labels = np.random.default_rng(number).integers(0, 3, (12, 16), np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")


def read_label_folders(folder: Path) -> None:
    from lqn_seg.data.label_folders import load_label_folders

    read_all(load_label_folders("fuzz", folder / "images", folder / "labels", ["a", "b", "c"]))


def make_images(folder: Path) -> None:
    image, exif = Image.fromarray(scene(0)), Image.Exif()
    exif[0x0112] = 6  # turned
    image.save(folder / "turned.jpg", exif=exif)
    image.quantize(4).save(folder / "palette.png", bits=2)
    image.convert("1").save(folder / "bits.png")
    image.convert("I;16").save(folder / "deep.png")
    for suffix in ("png", "webp", "tif", "gif", "bmp"):
        image.save(folder / f"picture.{suffix}")


def read_images(folder: Path) -> None:
    from lqn_seg.data.images import read_id_map, read_image, read_label_map
    from lqn_seg.errors import InputError

    for path in sorted(folder.iterdir()):
        read_image(path)
        for read in (read_label_map, read_id_map):
            try:
                read(path)
            except InputError as error:
                assert not bad_sentence(error)


def make_yaml(folder: Path) -> None:
    root = Path(__file__).parents[1] / "configs"
    (folder / "base.yaml").write_text((root / "Base-LQN.yaml").read_text())
    text = (root / "demo_lqn.yaml").read_text().replace("Base-LQN.yaml", "base.yaml")
    (folder / "demo.yaml").write_text(text)
    (folder / "classify.yaml").write_text(
        (root / "classification" / "demo.yaml").read_text().replace("../Base-LQN.yaml", "base.yaml")
    )


def read_yaml(folder: Path) -> None:
    from lqn_seg.config.nodes import load_any_cfg

    for name in ("demo.yaml", "classify.yaml"):
        load_any_cfg(str(folder / name), device="cpu")


def make_study(folder: Path) -> None:
    root = Path(__file__).parents[1] / "configs" / "study"
    shutil.copy(root / "quick.yaml", folder / "study.yaml")


def read_study(folder: Path) -> None:
    from lqn_seg.lab.study.study_file import load_study

    load_study(str(folder / "study.yaml"))


def make_teacher(folder: Path) -> None:
    from conftest import save_teacher

    save_teacher(folder)
    content = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def read_teacher(folder: Path) -> None:
    from lqn_seg.teachers.eomt import load_eomt

    load_eomt(str(folder))


def make_calibration(folder: Path) -> None:
    import torch

    from lqn_seg.adapt.calibration import calibrate, save_calibration
    from lqn_seg.teachers.eomt import load_eomt

    (folder / "teacher").mkdir()
    make_teacher(folder / "teacher")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = calibrate(load_eomt(str(folder / "teacher")), lambda: iter([images]))
    save_calibration(folder / "calibration.safetensors", result, {})


def read_calibration(folder: Path) -> None:
    from lqn_seg.adapt.calibration import load_calibration
    from lqn_seg.teachers.eomt import load_eomt

    load_calibration(folder / "calibration.safetensors", load_eomt(str(folder / "teacher")))


def make_clip(folder: Path) -> None:
    root = Path(__file__).parents[1] / "datasets" / "demo_objects" / "teacher"
    for path in root.iterdir():
        if path.is_file():
            shutil.copy(path, folder)


def read_clip(folder: Path) -> None:
    from lqn_seg.teachers.clip import load_clip

    load_clip(str(folder))


STORED = [[{"image_id": n, "methods": {"lqn": {"score": n / 3}}}] for n in range(4)]


def make_results(folder: Path) -> None:
    from lqn_seg.engine.stored import format_line

    (folder / "clean.0.jsonl").write_text("".join(map(format_line, STORED)))


def read_results(folder: Path) -> None:
    """A damaged line is no result; what is read is what was stored."""
    from lqn_seg.engine.stored import parse_line

    with (folder / "clean.0.jsonl").open(errors="replace") as file:
        result = [parse_line(text) for text in file]
    assert all(chunk in [*STORED, []] for chunk in result), result


@dataclass(frozen=True)
class Reader:
    make: Callable[[Path], None]  # writes valid files into an empty folder
    read: Callable[[Path], None]  # reads them, as the product does
    mutated: str = "**/*"  # a pattern of the files that are mutated


READERS = {
    "coco_panoptic": Reader(make_panoptic, read_panoptic),
    "coco_panoptic_json": Reader(make_panoptic, read_panoptic, "*.json"),
    "coco_instances_json": Reader(make_instances, read_instances, "*.json"),
    "label_folders": Reader(make_label_folders, read_label_folders),
    "images": Reader(make_images, read_images),
    "yaml": Reader(make_yaml, read_yaml),
    "study": Reader(make_study, read_study),
    "teacher": Reader(make_teacher, read_teacher),
    "teacher_json": Reader(make_teacher, read_teacher, "*.json"),
    "calibration": Reader(make_calibration, read_calibration, "*.safetensors"),
    "results": Reader(make_results, read_results),
    "clip_json": Reader(make_clip, read_clip, "*.json"),
}


# ---- the work ------------------------------------------------------------------------------------


def bad_sentence(error: Exception) -> str:
    """What is wrong with an error's text, or ""."""
    text = str(error)
    is_bad = not text or "\n" in text.strip() or "Traceback" in text
    return f"not one sentence: {text!r}" if is_bad else ""


def read_one(reader: Reader, valid: Path, number: int, seed: int) -> str:
    """ "" for a result, "refused" for a sentence, otherwise what happened."""
    from lqn_seg.errors import InputError

    rng = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        shutil.copytree(valid, folder)
        files = sorted(path for path in folder.glob(reader.mutated) if path.is_file())
        file = rng.choice(files)
        file.write_bytes(mutate(file.read_bytes(), file.suffix, rng))
        try:
            reader.read(folder)
        except InputError as error:
            return bad_sentence(error).replace(name, "") or "refused"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"
    return ""


def work(reader: Reader, valid: Path, numbers: list[int], seed: int, pipe: Any) -> None:
    """In a process of its own: read inputs, and tell of each."""
    import torch

    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:  # libraries tell of every file
        os.dup2(nowhere.fileno(), 2)
    for number in numbers:
        pipe.send((number, read_one(reader, valid, number, seed)))
    pipe.close()


def fuzz(name: str, inputs: int, seed: int = 0, patience: float = PATIENCE) -> Outcome:
    """Read so many mutated inputs with a reader of `READERS`."""
    reader, outcome = READERS[name], Outcome()
    context = multiprocessing.get_context("fork")  # nothing is imported anew after a hang
    with tempfile.TemporaryDirectory() as folder:
        valid = Path(folder)
        reader.make(valid)
        reader.read(valid)  # valid files are read; imports are done
        numbers = list(range(inputs))
        while numbers:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(reader, valid, numbers, seed, theirs))
            process.start()
            theirs.close()
            done = 0
            for number in numbers:
                try:
                    text = ours.recv()[1] if ours.poll(patience) else f"more than {patience:g} s"
                except EOFError:
                    text = "the process died"
                done += 1
                outcome.add(number, text)
                if text.startswith(("more than", "the process died")):
                    process.kill()
                    break
            process.join()
            numbers = numbers[done:]
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}; default: all")
    parser.add_argument("--inputs", type=int, default=1000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds: Counter[str] = Counter()
    for name in arguments.readers or READERS:
        outcome = fuzz(name, arguments.inputs, arguments.seed)
        print(f"{name}: {outcome}", flush=True)
        for text, (count, first) in outcome.findings.items():
            print(f"  {count} x {text} (input {first})", flush=True)
            kinds[text] += count
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())

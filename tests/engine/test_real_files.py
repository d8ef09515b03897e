"""The published configurations on real files, with a random teacher: do they run, and right?"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import EomtForUniversalSegmentation

from lqn_seg.data.catalog import get_dataset
from lqn_seg.lab.report.run import evaluate
from lqn_seg.segmentation.postprocess import (
    instance_inference,
    mask_hash,
    panoptic_inference,
    semantic_inference,
)

pytestmark = pytest.mark.skipif(
    "LQN_SEG_REAL_DATA" not in os.environ, reason="LQN_SEG_REAL_DATA is not set"
)
CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = {
    "coco_panoptic_lqn": 133,
    "coco_instance_lqn": 80,
    "ade20k_lqn": 150,
    "ade20k_panoptic_lqn": 150,
    "cityscapes_lqn": 19,
}
SIDE = 32  # pixels of the teacher's input
THRESHOLD = 0.2


@pytest.fixture(scope="module")
def root(tmp_path_factory, script) -> Path:
    """The samples where the configurations look for the validation sets."""
    real = Path(os.environ["LQN_SEG_REAL_DATA"])
    root = tmp_path_factory.mktemp("real")
    coco, ade = root / "coco", root / "ADEChallengeData2016"
    (coco / "annotations").mkdir(parents=True)
    (ade / "annotations_instance" / "validation").mkdir(parents=True)
    for kind in ("instances", "panoptic"):
        file = f"annotations/{kind}_val2017.json"
        (coco / file).symlink_to(real / "coco" / file.replace("val", "train"))
    for folder in ("val2017", "panoptic_val2017"):
        (coco / folder).symlink_to(real / "coco" / folder.replace("val", "train"))
    for kind in ("images", "annotations"):
        (ade / kind).symlink_to(real / "ADEChallengeData2016" / kind)
    (root / "cityscapes").symlink_to(real / "cityscapes")
    prepare = script("datasets", "prepare_ade20k_panoptic")
    for file in (ade / "annotations" / "validation").glob("*.png"):
        # The samples have no instance maps: each class of things is made one instance.
        labels = np.array(Image.open(file)).astype(int) - 1
        things = [k for k in np.unique(labels) if k in prepare.THINGS]
        instances = np.zeros((*labels.shape, 3), np.uint8)
        for number, thing in enumerate(things, 1):
            instances[labels == thing] = (prepare.THINGS.index(thing) + 1, number, 0)
        Image.fromarray(instances).save(ade / "annotations_instance" / "validation" / file.name)
    prepare.write_panoptic(root, "val")
    return root


def crops_of(picture: Image.Image, semantic: bool) -> tuple[list[np.ndarray], list[int], tuple]:
    """EoMT's protocol with Pillow: windows, their starts, and (height, width) of the resized."""
    choose = max if semantic else min
    scale = choose(SIDE / picture.width, SIDE / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.array(picture.resize(size, Image.Resampling.BILINEAR))
    height, width = pixels.shape[:2]
    if not semantic:
        return (
            [np.pad(pixels, ((0, SIDE - height), (0, SIDE - width), (0, 0)))],
            [0],
            (height, width),
        )
    count = math.ceil(max(size) / SIDE)
    starts = [int(k * (max(size) - SIDE) / max(count - 1, 1)) for k in range(count)]
    tall = height > width
    crops = [pixels[s : s + SIDE] if tall else pixels[:, s : s + SIDE] for s in starts]
    return crops, starts, (height, width)


@torch.no_grad()
def predicted_by_hand(model, metadata, file: str, task: str) -> dict:
    """A teacher's prediction, from transformers' model and the protocol's sentences alone."""
    picture = Image.open(file).convert("RGB")
    size = (picture.height, picture.width)
    crops, starts, (height, width) = crops_of(picture, task == "sem_seg")
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    total, count = torch.zeros(metadata.num_classes, height, width), torch.zeros(height, width)
    for crop, start in zip(crops, starts):
        pixels = torch.from_numpy(crop.copy()).movedim(2, 0).float() / 255
        output = model(pixel_values=((pixels - mean) / std)[None])
        masks = F.interpolate(output.masks_queries_logits, (SIDE, SIDE), mode="bilinear")
        classes = output.class_queries_logits[0]
        if task == "sem_seg":
            rows, columns = (slice(start, start + SIDE), slice(0, SIDE))
            place = (..., rows, columns) if height > width else (..., columns, rows)
            total[place] += semantic_inference(masks[0], classes)
            count[place] += 1
    if task == "sem_seg":
        return {task: F.interpolate((total / count)[None], size, mode="bilinear")[0]}
    masks = F.interpolate(masks[..., :height, :width], size, mode="bilinear")[0]
    things = metadata.thing_ids
    if task == "segm":
        return {"instances": instance_inference(masks, classes, things)}
    return {"panoptic_seg": panoptic_inference(masks, classes, things, THRESHOLD, THRESHOLD)}


@pytest.mark.parametrize("name", CLASSES)
def test_a_published_config_runs_on_real_files(name, root, tmp_path, teacher_for, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    teacher = teacher_for(tmp_path / "teacher", CLASSES[name])
    sizes = {"INPUT_SIZE": SIDE, "STRIDE": 8, "WIDTHS": (32, 32), "POSITION_DIM": 32}
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": THRESHOLD,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": THRESHOLD,
        "MODEL.LQN.TEACHER.WEIGHTS": teacher,
        "MODEL.LQN.PRESET": "paper",
        **{f"MODEL.LQN.STUDENT.{key}": value for key, value in sizes.items()},
        "MODEL.LQN.FIT.STEPS": 2,
        "MODEL.LQN.EVAL.MAX_IMAGES": 2,
        "MODEL.LQN.EVAL.PANEL_IMAGES": 0,
        "MODEL.LQN.EVAL.BOOTSTRAP_SAMPLES": 5,
        "OUTPUT_DIR": tmp_path / "output",
    }
    overrides = [str(part) for pair in values.items() for part in pair]
    report = evaluate(str(CONFIGS / f"{name}.yaml"), overrides, methods=["teacher", "lqn"])
    assert report is not None
    results = json.loads((tmp_path / "output" / "inference" / "results.json").read_text())
    result = results["per_image"]["clean"]
    # Students answer, with masks of their own.
    hashes = {method: [line["mask_hash"] for line in lines] for method, lines in result.items()}
    assert hashes["lqn"] != hashes["teacher"]
    (task,) = set(results["metrics"]["clean"]["teacher"]) - {"lqn", "trimap", "confidence"}
    dataset = get_dataset(report.cfg.DATASETS.TEST[0])
    model = EomtForUniversalSegmentation.from_pretrained(teacher).eval()
    assert [line["image_id"] for line in result["teacher"]] == [
        record["image_id"] for record in dataset.records()[:2]
    ]
    for record, hash_ in zip(dataset.records(), hashes["teacher"]):
        by_hand = predicted_by_hand(model, dataset.metadata, record["file_name"], task)
        assert mask_hash(by_hand) == hash_
    if task == "panoptic_seg":
        assert by_hand[task][1], "no segment passes the thresholds: nothing is compared"

"""The linear teacher from its training to an evaluation on another data set's classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from lqn_seg.adapt.dense.settings import DENSE
from lqn_seg.config.nodes import load_cfg
from lqn_seg.data.class_maps import class_map
from lqn_seg.data.segmentation_sets import IDD_LITE_CLASSES
from lqn_seg.engine.build import build_segmenter
from lqn_seg.engine.calibrate import calibrate_teacher
from lqn_seg.engine.training.train_linear import LinearTrainer
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import measure
from lqn_seg.lab.cost.flops import teacher_shape
from lqn_seg.lab.report.run import evaluate
from lqn_seg.teachers.linear_head import StoredHead, read_linear_head, write_linear_head
from tests.data.test_class_maps import CITYSCAPES

SEMANTIC = [
    *("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False"),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dinov2")
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**shape, image_size=56, patch_size=14)).save_pretrained(path)
    return path


@pytest.fixture
def cfg(small_config, backbone):
    overrides = [
        *("MODEL.LQN.TEACHER.NAME", "dinov2", "MODEL.LQN.TEACHER.WEIGHTS", ""),
        *("MODEL.LQN.TEACHER.IMAGE_SIZE", "(84, 84)", "MODEL.LQN.TRAIN.BACKBONE", str(backbone)),
        *("MODEL.LQN.TRAIN.AUGMENTATION", "scale", "DATASETS.TRAIN", '("demo_panoptic_train",)'),
        *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "30", "SOLVER.WARMUP_ITERS", "2"),
        *("SOLVER.BASE_LR", "0.03", "SEED", "0"),
    ]
    return load_cfg(str(small_config), overrides)


def test_training_changes_the_head_alone_and_writes_a_teacher(cfg, backbone):
    trainer = LinearTrainer(cfg)
    before = {name: x.clone() for name, x in trainer.teacher.model.state_dict().items()}
    folder = trainer.train()
    moved = {n for n, x in trainer.teacher.model.state_dict().items() if not x.equal(before[n])}
    assert moved == {"head.weight", "head.bias"}
    assert np.mean(trainer.losses[-5:]) < 0.9 * np.mean(trainer.losses[:5])
    files = [load_file(path / "model.safetensors") for path in (backbone, folder)]
    assert all(files[0][name].equal(files[1][name]) for name in files[0])
    head = read_linear_head(str(folder), "")
    assert head is not None and head.image_size == (84, 84) and head.class_names[7] == "rod"
    assert head.weight.equal(trainer.learner.weight)
    assert json.loads((folder / "training.json").read_text())["iterations"] == 30
    again = LinearTrainer(cfg)
    again.run()
    assert again.losses == trainer.losses


def test_what_it_cannot_do_is_said(cfg):
    cfg.MODEL.LQN.TRAIN.BACKBONE = ""
    with pytest.raises(InputError, match=r"MODEL\.LQN\.TRAIN\.BACKBONE is empty"):
        LinearTrainer(cfg)


@pytest.fixture(scope="module")
def street(tmp_path_factory, backbone):
    """Overrides: a linear teacher of Cityscapes' classes, and a data set of IDD Lite's."""
    root = tmp_path_factory.mktemp("street")
    folder = root / "teacher"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((backbone / name).read_bytes())
    torch.manual_seed(1)
    head = StoredHead(torch.randn(19, 32), torch.zeros(19), CITYSCAPES, (56, 56))
    write_linear_head(folder, head)
    random = np.random.default_rng(0)
    for kind, shape in (("images", (60, 90, 3)), ("labels", (60, 90))):
        (root / kind).mkdir()
        for number in range(3):
            pixels = random.integers(0, 7 if kind == "labels" else 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{number}.png")
    classes = list(IDD_LITE_CLASSES)
    entry = {"IMAGE_DIR": str(root / "images"), "LABEL_DIR": str(root / "labels")}
    sets = [{"NAME": "street_test", **entry, "CLASSES": classes}]
    return [
        *("MODEL.LQN.TEACHER.NAME", "dinov2", "MODEL.LQN.TEACHER.WEIGHTS", str(folder), *SEMANTIC),
        *("MODEL.LQN.INFERENCE", "windows", "MODEL.LQN.DATASETS", repr(sets)),
        *("DATASETS.TEST", '("street_test",)', "MODEL.LQN.EVAL.CORRUPTIONS", "()"),
    ]


METHODS = (
    *("teacher", "restore", "lqn", "lqn@distill", "lqn-src", "apm@paper", "kernel", "ridge"),
    *("untrained", "blur", "denoise", "standardise", "dehaze", "flip", *DENSE),
)


def test_every_method_is_scored_on_the_classes_of_another_data_set(street, small_config, capsys):
    made = calibrate_teacher(str(small_config), "street_test", street)
    assert made.path.name == "calibration.safetensors"
    report = evaluate(str(small_config), street, methods=METHODS)
    assert not report.failed
    said = capsys.readouterr().out
    assert "note: the teacher's 19 classes are scored as the 7 of street_test" in said
    metrics = report.evaluation.metrics("clean", "teacher")
    assert set(report.methods) == set(METHODS) and 0 < metrics["sem_seg"]["mIoU"] < 100


@pytest.fixture
def segmenter(street, small_config):
    cfg = load_cfg(str(small_config), street)
    return build_segmenter(cfg, frozenset(), 7, {"teacher": None}, IDD_LITE_CLASSES)


def test_merged_scores_are_the_sums_of_the_teachers_probabilities(segmenter):
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    (merged,) = segmenter([image])
    segmenter.class_map = ()
    (own,) = segmenter([image])
    whole, parts = (x["teacher"].output["sem_seg"] for x in (merged, own))
    torch.testing.assert_close(parts.sum(0), torch.ones(60, 90))
    table = class_map(CITYSCAPES, IDD_LITE_CLASSES)
    for index in range(7):
        expected = sum(parts[k] for k in range(19) if table[k] == index)
        torch.testing.assert_close(whole[index], expected)


def test_its_cost_by_formula_is_what_its_modules_multiply(segmenter):
    shape = teacher_shape(segmenter.teacher)
    images = torch.randn(1, 3, 56, 56)
    counted = measure(lambda: segmenter.head(segmenter.teacher.encode(images)[0][:, -1]))
    assert counted.gmacs == pytest.approx(shape.gmacs + shape.head_macs / 1e9, rel=1e-3)


def test_segments_and_other_classes_are_refused(street, small_config):
    cfg = load_cfg(str(small_config), street)
    with pytest.raises(
        InputError, match=r"predicts 19 classes \(road, .*street_test has 2 \(a, b .* does not map"
    ):
        build_segmenter(cfg, frozenset(), 2, {"teacher": None}, ("a", "b"))
    cfg.MODEL.LQN.INFERENCE, cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = "pad", True
    for names, why in ((IDD_LITE_CLASSES, "merged classes"), (CITYSCAPES, "a linear head")):
        with pytest.raises(InputError, match=f"{why}.* no segments"):
            build_segmenter(cfg, frozenset(), len(names), {"teacher": None}, names)


def test_an_eomt_is_merged_as_well(street, small_config, teacher_for, tmp_path):
    folder = teacher_for(tmp_path / "eomt", 19)
    content = json.loads((folder / "config.json").read_text())
    content["id2label"] = dict(enumerate(CITYSCAPES))
    (folder / "config.json").write_text(json.dumps(content))
    names = ["MODEL.LQN.TEACHER.NAME", "eomt", "MODEL.LQN.TEACHER.WEIGHTS", str(folder)]
    report = evaluate(str(small_config), [*street, *names], methods=("teacher", "lqn", "larger"))
    assert not report.failed and report.evaluation.segmenter.class_map[10] == 6

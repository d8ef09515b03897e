"""EoMT trained by Detectron2's own trainer, and what it saves as a teacher."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.images import read_image
from lqn_seg.detectron2 import LQNTrainer
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise

NAME = "demo_panoptic_train"
SHAPE = dict(
    **dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=48),
    **dict(patch_size=8, num_blocks=2, num_queries=12, num_upscale_blocks=1, train_num_points=64),
)


@pytest.fixture
def training_cfg(cfg, tmp_path):
    """A new EoMT of the scenes' classes, and Detectron2's loaders and solver."""
    (tmp_path / "eomt.json").write_text(json.dumps(SHAPE))
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "EomtMetaArch"]
        + ["MODEL.LQN.TEACHER.WEIGHTS", "", "MODEL.LQN.TEACHER.CONFIG", str(tmp_path / "eomt.json")]
        + ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", ()]
        + ["MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", (48,)]
        + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 25, "SOLVER.BASE_LR", 0.05]
        + ["SOLVER.WARMUP_ITERS", 0, "SOLVER.CLIP_GRADIENTS.ENABLED", True]
        + ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SEED", 1]
    )
    return cfg


def test_eomt_trains_through_the_default_trainer_and_is_a_teacher_then(training_cfg, tmp_path):
    cfg = training_cfg
    torch.manual_seed(0)
    trainer = DefaultTrainer(cfg)
    assert all(p.requires_grad for p in trainer.model.parameters())
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert trainer.model.model.attn_mask_probs.max() == 0  # annealed
    # What was saved, under its own architecture and as a teacher of the other.
    cfg.DATASETS.TEST = (NAME,)
    image = read_image(get_dataset(NAME).records()[0]["file_name"])[:, :, ::-1]
    saved = str(tmp_path / "output" / "model_final.pth")
    cfg.MODEL.WEIGHTS = saved
    own = DefaultPredictor(cfg)(image)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "LQNTTTMetaArch", ""
    cfg.MODEL.LQN.TEACHER.WEIGHTS, cfg.MODEL.LQN.METHOD = saved, "teacher"
    teacher = DefaultPredictor(cfg)(image)
    assert torch.equal(own["sem_seg"], teacher["sem_seg"])
    pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        (expected,) = trainer.model.eval()([{"image": pixels}])
    assert torch.equal(expected["sem_seg"], own["sem_seg"])
    cfg.MODEL.LQN.TEACHER.CONFIG = ""
    with pytest.raises(InputError, match=r"model_final\.pth .*holds only tensors.*TEACHER\.CONFIG"):
        build_model(cfg)
    cfg.MODEL.LQN.TEACHER.CONFIG = str(tmp_path / "eomt.json")
    state = torch.load(saved, weights_only=True)
    state["model"]["pixel_mean"] += 0.1  # as of a teacher that was trained on other pixels
    torch.save(state, saved)
    result = build_model(cfg).segmenter.teacher.pixel_mean
    assert result == pytest.approx([mean + 0.1 for mean in IMAGENET_MEAN])


def square(size, rows, columns):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def test_losses_are_those_of_the_same_targets_however_a_mapper_gives_them(training_cfg):
    """Instances and a label map, Mask2Former's way, or the window that they are fitted into."""
    model = build_model(training_cfg).train()
    size = (48, 48)
    disc, sky = square(size, slice(4, 20), slice(8, 24)), square(size, slice(0, 4), slice(0, 48))
    labels = torch.full(size, 255)
    labels[disc], labels[sky] = 2, 10
    labels[30:40] = 5  # a crowd of things: in the label map, and no instance
    theirs, ours = Instances(size), Instances(size)
    theirs.gt_classes, theirs.gt_masks = torch.tensor([2, 10]), torch.stack([disc, sky])
    ours.gt_classes, ours.gt_masks = torch.tensor([2]), BitMasks(disc[None])
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)

    def losses(**given):
        torch.manual_seed(0)  # of the points
        return model([{"image": image, **given}])

    together = losses(instances=theirs)
    assert set(together) == {"loss_set_prediction"}
    for given in ({"instances": ours, "sem_seg": labels}, {"instances": theirs, "sem_seg": labels}):
        assert losses(**given) == together
    labels[30:40] = 255
    assert losses(sem_seg=labels) == together
    assert losses(sem_seg=torch.full(size, 255))["loss_set_prediction"].isfinite()
    batch = {
        "pixel_values": normalise(image[None] / 255, IMAGENET_MEAN, IMAGENET_STD),
        "mask_labels": [torch.stack([disc, sky]).float()],
        "class_labels": [torch.tensor([2, 10])],
    }
    torch.manual_seed(0)
    expected = model.model(**batch).loss
    torch.testing.assert_close(together["loss_set_prediction"], expected)


def test_masked_attention_follows_detectron2s_iteration(training_cfg):
    model = build_model(training_cfg).train()
    inputs = [{"image": torch.zeros(3, 48, 48, dtype=torch.uint8), "sem_seg": torch.zeros(48, 48)}]
    with EventStorage(0) as storage:
        for iteration, expected in ((0, [1, 1]), (24, [0, 0])):
            storage.iter = iteration
            model(inputs)
            assert model.model.attn_mask_probs.tolist() == expected


def test_what_cannot_be_trained_on_is_named(training_cfg):
    model = build_model(training_cfg).train()
    image, size = torch.zeros(3, 48, 48, dtype=torch.uint8), (48, 48)
    boxes, wrong = Instances(size), Instances(size)
    boxes.gt_classes = torch.tensor([2])
    wrong.gt_classes, wrong.gt_masks = torch.tensor([13]), BitMasks(torch.ones(1, *size))
    for given, said in (
        ({}, "neither 'instances' nor 'sem_seg'"),
        ({"instances": boxes}, r"MODEL\.MASK_ON True and INPUT\.MASK_FORMAT bitmask"),
        ({"instances": wrong}, r"class 13, but the model's are 0 \.\. 12"),
        ({"sem_seg": torch.zeros(4, 4)}, r"masks of an image of \(48, 48\) are \(4, 4\)"),
    ):
        with pytest.raises(InputError, match=said):
            model([{"image": image, **given}])


def test_the_test_time_architecture_says_that_it_has_nothing_to_train(cfg, caplog):
    cfg.DATASETS.TRAIN = (NAME,)
    with caplog.at_level("WARNING", "detectron2.lqn_seg"):
        model = build_model(cfg)
    assert "LQNTTTMetaArch has nothing to train" in caplog.text
    assert not model.train().training
    with pytest.raises(InputError, match=r"MODEL\.META_ARCHITECTURE EomtMetaArch"):
        LQNTrainer.build_optimizer(cfg, model)


def test_a_trained_start_is_that_teacher(training_cfg, teacher_dir):
    training_cfg.MODEL.LQN.TEACHER.WEIGHTS = str(teacher_dir)
    model = build_model(training_cfg)
    assert model.training and model.model.training
    names = model.state_dict().keys()
    assert all(name.startswith(("model.", "pixel_")) for name in names)  # each weight once
    before = {k: v.clone() for k, v in model.state_dict().items()}
    DetectionCheckpointer(model).load("")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    training_cfg.MODEL.LQN.TEACHER.PRECISION = "bfloat16"
    with pytest.raises(InputError, match=r"PRECISION must be float32 for training"):
        build_model(training_cfg)

"""Teacher training: schedules in closed form, a falling loss, and a resume that changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lqn_seg.config.nodes import load_cfg
from lqn_seg.engine.training import loop
from lqn_seg.engine.training.eomt_training import (
    EomtLosses,
    annealed_mask_probabilities,
    sine_cosine_grid,
)
from lqn_seg.engine.training.optimizers import learning_rate_factor
from lqn_seg.engine.training.train import TeacherTrainer
from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt import load_eomt


@pytest.fixture
def cfg(tmp_path, small_config):
    teacher = tmp_path / "eomt.json"
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape |= {"image_size": 96, "patch_size": 16, "num_blocks": 2, "num_queries": 10}
    shape |= {"num_upscale_blocks": 1, "train_num_points": 64}
    teacher.write_text(json.dumps(shape))
    cfg = load_cfg(str(small_config))
    cfg.MODEL.LQN.TEACHER.CONFIG = str(teacher)
    cfg.DATASETS.TRAIN = ("demo_panoptic_train",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 4, 6, 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.SEED = 0
    return cfg


def test_annealing_goes_block_by_block_from_one_to_zero():
    assert annealed_mask_probabilities(0, 2) == [1, 1]
    assert annealed_mask_probabilities(1, 2) == [0, 0]
    half = annealed_mask_probabilities(1 / 2, 2)  # the first block is done, the second begins
    assert half[0] == pytest.approx(0) and half[1] == pytest.approx(1)
    middle = annealed_mask_probabilities(1 / 3, 2)
    assert middle == [pytest.approx(0.5**0.9), 1]


def test_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(k, 10, 110) for k in range(111)]
    assert factors[:10] == [(k + 1) / 10 for k in range(10)]
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0)
    assert factors[35] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_position_embeddings_start_as_sines_and_cosines():
    grid = sine_cosine_grid((3, 5), 18)
    assert grid.shape == (15, 18)
    assert grid[:, 16:].eq(0).all()
    row, column, frequency = 2, 4, 1 / 100 ** (1 / 4)
    assert grid[row * 5 + column, 1] == pytest.approx(math.sin(row * frequency))
    assert grid[row * 5 + column, 8 + 4 + 1] == pytest.approx(math.cos(column * frequency))


@pytest.fixture
def augmented(cfg):
    """The same on crops of another size than the scenes', with colours and the per-pixel loss."""
    path = Path(cfg.MODEL.LQN.TEACHER.CONFIG)
    path.write_text(path.read_text().replace('"image_size": 96', '"image_size": 64'))
    cfg.MODEL.LQN.TRAIN.AUGMENTATION = "photographs"
    cfg.MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT = 2.0
    return cfg


@pytest.mark.parametrize("which", ["cfg", "augmented"])
def test_a_resumed_training_is_the_uninterrupted_one(which, request, tmp_path, monkeypatch):
    cfg = request.getfixturevalue(which)
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    whole = TeacherTrainer(cfg).train()
    cfg.OUTPUT_DIR = str(tmp_path / "parts")
    first, step = TeacherTrainer(cfg), TeacherTrainer.step

    def die_in_the_fifth(self):
        if self.iteration == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(TeacherTrainer, "step", die_in_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    monkeypatch.setattr(TeacherTrainer, "step", step)
    parts = TeacherTrainer(cfg).train(resume=True)
    a, b = load_eomt(str(whole)), load_eomt(str(parts))
    images = torch.randn(1, 3, *a.image_size)
    assert torch.equal(a.encode(images)[0], b.encode(images)[0])
    made = json.loads((parts / "training.json").read_text())
    assert made["iterations"] == 6 and made["images"] == 8 and made["seed"] == 0


def test_a_checkpoint_of_another_recipe_is_refused(cfg):
    TeacherTrainer(cfg).train()
    for node, key, value in ((cfg.MODEL.LQN.TRAIN, "PIXEL_LOSS_WEIGHT", 1.0), (cfg, "SEED", 1)):
        before, node[key] = node[key], value
        with pytest.raises(InputError, match="another configuration"):
            TeacherTrainer(cfg).train(resume=True)
        node[key] = before
    TeacherTrainer(cfg).checkpoint_path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read"):
        TeacherTrainer(cfg).train(resume=True)


def test_a_random_seed_is_refused(cfg):
    cfg.SEED = -1
    with pytest.raises(InputError, match="SEED"):
        TeacherTrainer(cfg)


def test_the_loss_falls_and_the_finished_teacher_runs_unmasked(cfg, tmp_path):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 40, 3e-3
    trainer = TeacherTrainer(cfg)
    folder = trainer.train()
    assert sum(trainer.losses[-5:]) < 0.8 * sum(trainer.losses[:5])
    teacher = load_eomt(str(folder))
    assert teacher.model.attn_mask_probs.tolist() == [0, 0]
    assert teacher.model.config.id2label[7] == "rod"


def test_every_image_comes_once_an_epoch(cfg):
    trainer = TeacherTrainer(cfg)
    indices = [i for k in range(4) for i in trainer.batch_indices(k)]
    assert sorted(indices[:8]) == sorted(indices[8:]) == list(range(8))
    assert indices[:8] != indices[8:]


def test_images_of_another_size_are_named(cfg, tmp_path):
    path = tmp_path / "eomt.json"
    path.write_text(path.read_text().replace('"image_size": 96', '"image_size": 64'))
    with pytest.raises(InputError, match=r"\.png is 96x96 pixels; .* 64x64"):
        TeacherTrainer(cfg).step()


def test_the_pixel_loss_is_cross_entropy_of_the_upsampled_logits(cfg):
    learner = EomtLosses(TeacherTrainer(cfg).model, 1.0)
    rows, columns = learner.model.grid_size
    tokens = torch.randn(2, 11 + rows * columns, 16)
    labels = torch.randint(-1, 13, (2, 96, 96))
    logits = learner.classifier(tokens[:, 11:]).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    # Upsampling from the middle of one patch to the next, at the middle of every pixel.
    position = ((torch.arange(96) + 0.5) / 16 - 0.5).clamp(0, 5)
    low = position.floor().long().clamp(max=4)
    matrix = torch.zeros(96, 6)
    matrix[torch.arange(96), low] = 1 - (position - low)
    matrix[torch.arange(96), low + 1] += position - low
    pixels = matrix @ logits @ matrix.T
    chances = pixels.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    expected = -chances[labels >= 0].mean()
    torch.testing.assert_close(learner.pixel_loss(tokens, labels), expected)
    assert learner.pixel_loss(tokens, torch.full_like(labels, -1)) == 0


def test_the_pixel_loss_reaches_the_layers_and_is_not_exported(augmented):
    trainer = TeacherTrainer(augmented)
    learner = trainer.learner
    learner.losses_of(trainer.batch())["loss_pixel"].backward()
    assert trainer.model.layers[0].mlp.fc1.weight.grad.abs().max() > 1e-6
    assert learner.classifier.weight.grad.abs().max() > 1e-3
    learner.zero_grad()
    before = learner.classifier.weight.detach().clone()
    folder = trainer.train()
    assert not learner.classifier.weight.equal(before)
    saved = torch.load(trainer.checkpoint_path, weights_only=True)["learner"]
    assert saved["classifier.weight"].equal(learner.classifier.weight)
    assert set(load_file(folder / "model.safetensors")) == set(trainer.model.state_dict())


def test_a_crop_without_any_label_can_be_trained_on(augmented):
    trainer = TeacherTrainer(augmented)
    batch = trainer.batch()
    batch["mask_labels"][1] = batch["mask_labels"][1][:0]
    batch["class_labels"][1] = batch["class_labels"][1][:0]
    trainer.loss(batch).backward()
    norms = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
    assert torch.stack(norms).isfinite().all()


def test_the_precision_in_force_and_the_duration_are_said(cfg, monkeypatch, capsys):
    assert TeacherTrainer.precision(cfg) == "float32"
    cfg.SOLVER.AMP.ENABLED = True
    for is_fast, words in ((True, "matrix products in bfloat16"), (False, "has no effect")):
        monkeypatch.setattr(loop, "has_bfloat16", lambda _, fast=is_fast: fast)
        assert words in TeacherTrainer.precision(cfg)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 8, 1
    TeacherTrainer(cfg).train()
    assert capsys.readouterr().err.count("s per iteration, about ") == 1

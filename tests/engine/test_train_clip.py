"""Training a CLIP: its start from an EoMT, that it learns, and the folder it leaves."""

from __future__ import annotations

import json
import signal

import open_clip
import pytest
import torch
from open_clip import factory
from transformers import EomtConfig, EomtForUniversalSegmentation

from lqn_seg.config.nodes import get_classification_cfg
from lqn_seg.data import catalog
from lqn_seg.engine.training.train_clip import (
    ClipTrainer,
    augment,
    read_model_cfg,
    save_clip,
    start_from_eomt,
)
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Preprocessing
from lqn_seg.teachers.clip import ClipTeacher, load_clip
from lqn_seg.teachers.eomt import load_eomt
from tests.classification.conftest import TEXT, build_clip

VISION = dict(image_size=32, patch_size=8, width=32, layers=2, head_width=16)
VISION |= dict(ls_init_value=1.0, no_ln_pre=True)


@pytest.fixture
def cfg(tmp_path, prepare_demo, monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})
    prepare_demo.write_objects(tmp_path, "train", 40, seed=0)
    catalog.register_image_folder("objects", tmp_path / "train")
    model = tmp_path / "clip.json"
    model.write_text(json.dumps({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}))
    cfg = get_classification_cfg()
    cfg.DATASETS.TRAIN = ("objects",)
    cfg.MODEL.DEVICE, cfg.SEED = "cpu", 0
    cfg.MODEL.LQN.TEACHER.CONFIG = str(model)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 16, 3e-3
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 25, 5
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def test_it_learns_and_leaves_a_folder_that_open_clip_reads(cfg):
    folder = ClipTrainer(cfg).train()
    about = json.loads((folder / "training.json").read_text())
    assert about["iterations"] == 25 and about["images"] == 40
    teacher = load_clip(str(folder))
    again = open_clip.create_model(f"local-dir:{folder}")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = again.eval().encode_image(images, normalize=True)
    torch.testing.assert_close(teacher.image_features(images), expected)  # to rounding
    # Words that no caption had are zero, those that some had are not.
    weight = teacher.token_embedding.weight
    tokens = teacher.tokenize(["a photo of a ring.", "xylophone"])
    assert weight[tokens[0, 1:6]].abs().sum(1).min() > 0
    assert not weight[tokens[1, 1:3]].any()


def test_the_loss_falls(cfg):
    cfg.SOLVER.MAX_ITER = 60
    trainer = ClipTrainer(cfg)
    batch = trainer.batch()
    with torch.no_grad():
        before = trainer.loss(batch).item()
    trainer.train()
    with torch.no_grad():
        assert trainer.loss(batch).item() < before - 0.3


def test_a_resumed_training_is_the_uninterrupted_one(cfg, tmp_path, monkeypatch):
    shape = {**VISION, "patch_dropout": 0.5}  # draws from torch's own random numbers
    content = {"embed_dim": 16, "vision_cfg": shape, "text_cfg": TEXT}
    (tmp_path / "clip.json").write_text(json.dumps(content))
    cfg.SOLVER.MAX_ITER, cfg.MODEL.LQN.TRAIN.EMA = 4, 0.5
    whole = ClipTrainer(cfg).train()
    weights = (whole / "open_clip_model.safetensors").read_bytes()
    loss, steps = ClipTrainer.loss, []

    def pressed_in_the_second(self, batch):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return loss(self, batch)

    cfg.OUTPUT_DIR = str(tmp_path / "parts")
    monkeypatch.setattr(ClipTrainer, "loss", pressed_in_the_second)
    with pytest.raises(KeyboardInterrupt, match=r"2 of 4 iterations are in .*checkpoint\.pt"):
        ClipTrainer(cfg).train()
    assert not (tmp_path / "parts" / "teacher").exists()
    torch.manual_seed(3)  # another process has another state
    parts = ClipTrainer(cfg).train(resume=True)
    assert len(steps) == 4
    assert (parts / "open_clip_model.safetensors").read_bytes() == weights


@pytest.fixture
def pretrained(cfg, tmp_path):
    """A CLIP of two image blocks and two text blocks, with its own input; and to start from it."""
    shape = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    folder = tmp_path / "pretrained"
    save_clip(folder, build_clip(VISION), shape, Preprocessing((0.5,) * 3, (0.3,) * 3))
    cfg.MODEL.LQN.TEACHER.CONFIG, cfg.MODEL.LQN.TRAIN.BACKBONE = "", str(folder)
    cfg.MODEL.LQN.TRAIN.BACKBONE_WARMUP = 2
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 1e-3, 6, 2
    return folder


def test_it_starts_as_the_pretrained_one_and_keeps_its_words_and_input(cfg, pretrained, capsys):
    teacher, trainer = load_clip(str(pretrained)), ClipTrainer(cfg)
    images, words = torch.randn(2, 3, 32, 32), teacher.tokenize(["xylophone", "a ring"])
    trainer.model.eval()
    with torch.no_grad():
        found = trainer.model.encode_image(images, normalize=True)
        texts = trainer.model.encode_text(words, normalize=True)
    torch.testing.assert_close(found, teacher.image_features(images))
    torch.testing.assert_close(texts, teacher.encode_text(words).detach())
    again = load_clip(str(trainer.train()))
    assert f"from {pretrained}, on 40 images of objects at 32x32" in capsys.readouterr().out
    assert again.pixel_mean == (0.5,) * 3 and again.pixel_std == (0.3,) * 3
    assert not torch.equal(again.image_features(images), teacher.image_features(images))
    unseen = words[0, 1]  # of no caption: only the decay has touched it
    before, after = (x.token_embedding.weight[unseen] for x in (teacher, again))
    assert after.any() and torch.cosine_similarity(before, after, 0) > 0.999


def test_rates_fall_with_the_depth_and_start_in_two_stages(cfg, pretrained):
    trainer = ClipTrainer(cfg)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    of = {names[id(p)]: group for group in trainer.groups for p in group["params"]}
    assert set(of) == set(names.values())
    for name, depth, is_backbone in (
        ("visual.proj", 0, False),
        ("text_projection", 0, False),
        ("logit_scale", 0, False),
        ("visual.ln_post.weight", 0, True),
        ("ln_final.bias", 0, True),
        ("visual.transformer.resblocks.1.attn.out_proj.weight", 0, True),
        ("visual.transformer.resblocks.0.mlp.c_proj.weight", 1, True),
        ("visual.conv1.weight", 1, True),
        ("visual.positional_embedding", 1, True),
        ("transformer.resblocks.1.ln_1.weight", 0, True),
        ("transformer.resblocks.0.attn.in_proj_weight", 1, True),
        ("token_embedding.weight", 1, True),
        ("positional_embedding", 1, True),
    ):
        rates = []
        for step in range(6):
            trainer.iteration = step
            rates.append(trainer.rate(of[name]) / (1e-3 * 0.8**depth))
        line = [0, 0, 0, 1 / 2, 1, (1 / 2) ** 0.9]
        if not is_backbone:
            line = [0, 1 / 2, 1, (3 / 4) ** 0.9, (2 / 4) ** 0.9, (1 / 4) ** 0.9]
        assert rates == pytest.approx(line), name


def test_it_starts_from_a_file_of_a_named_architecture(cfg, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    (tmp_path / "named").mkdir()
    about = json.loads((pretrained / "open_clip_config.json").read_text())
    (tmp_path / "named" / "tiny-clip.json").write_text(json.dumps(about["model_cfg"]))
    open_clip.add_model_config(tmp_path / "named")
    cfg.MODEL.LQN.TEACHER.CONFIG = "tiny-clip"
    cfg.MODEL.LQN.TRAIN.BACKBONE = str(pretrained / "open_clip_model.safetensors")
    expected = load_clip(str(pretrained)).model.visual.conv1.weight
    trainer = ClipTrainer(cfg)
    assert torch.equal(trainer.model.visual.conv1.weight, expected)
    cfg.SOLVER.MAX_ITER = 1
    assert load_clip(str(trainer.train())) is not None


def test_two_starts_and_none_are_named(cfg, pretrained, tmp_path):
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    with pytest.raises(InputError, match=r"BACKBONE_MULTIPLIER is for a CLIP from scratch"):
        ClipTrainer(cfg)
    cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.MODEL.WEIGHTS = 1.0, "eomt"
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS is for a CLIP from scratch"):
        ClipTrainer(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.LQN.TRAIN.BACKBONE = "", str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"MODEL\.LQN\.TRAIN\.BACKBONE: .*out holds no open_clip"):
        ClipTrainer(cfg)


def test_the_loss_by_hand(cfg):
    trainer = ClipTrainer(cfg)
    images, captions, place, present = batch = trainer.batch()
    with torch.no_grad():
        result = trainer.loss(batch).item()
        a = trainer.model.encode_image(images, normalize=True)
        b = trainer.model.encode_text(captions, normalize=True)
        logits = trainer.model.logit_scale.exp() * a @ b.T
        rows = [logits[i].softmax(0)[place[i]].log() for i in range(16)]
        columns = []
        for k in range(len(present)):
            mine = [i for i in range(16) if place[i] == k]
            columns.append(sum(logits[:, k].softmax(0)[i].log() for i in mine) / len(mine))
    expected = -(sum(rows) / 16 + sum(columns) / len(present)) / 2
    assert result == pytest.approx(expected.item(), rel=1e-5)


def test_the_tower_starts_as_the_eomts_first_layers(tmp_path):
    shape = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=8)
    shape |= dict(image_size=32, num_blocks=1, num_queries=3, num_register_tokens=0, num_labels=4)
    eomt = EomtForUniversalSegmentation(EomtConfig(**shape))
    for parameter in eomt.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    eomt.save_pretrained(tmp_path)
    model = open_clip.model.CLIP(16, VISION, TEXT)
    start_from_eomt(model, str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    expected, _ = load_eomt(str(tmp_path)).encode(images)
    field, _ = ClipTeacher(model, None).encode(images)
    torch.testing.assert_close(field, expected[:, :2], atol=2e-3, rtol=2e-3)  # norms' eps differ
    for changes in (dict(patch_size=16), dict(layers=4), dict(no_ln_pre=False)):
        other = open_clip.model.CLIP(16, {**VISION, **changes}, TEXT)
        with pytest.raises(InputError, match=r"MODEL\.WEIGHTS: the EoMT"):
            start_from_eomt(other, str(tmp_path))


def test_augmentation_keeps_size_and_range():
    images = torch.rand(32, 3, 16, 16)
    changed = augment(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    ramp = torch.linspace(0, 1, 16).expand(200, 3, 16, 16)
    mirrored = augment(ramp, torch.Generator().manual_seed(0))[:, 0, 0]
    share = (mirrored[:, 0] > mirrored[:, -1]).float().mean()
    assert 0.35 < share < 0.65


def test_bad_input_is_named(cfg, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_model_cfg(str(tmp_path / "nowhere.json"))
    (tmp_path / "half.json").write_text('{"embed_dim": 4}')
    with pytest.raises(InputError, match="lacks open_clip's key 'vision_cfg'"):
        read_model_cfg(str(tmp_path / "half.json"))
    (tmp_path / "file").write_text("")
    cfg.OUTPUT_DIR = str(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write to"):  # before the training
        ClipTrainer(cfg).train()
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(InputError, match=r"DATASETS\.TRAIN must name exactly one"):
        ClipTrainer(cfg)

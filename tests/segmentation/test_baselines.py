"""Mask2Former, MaskFormer and OneFormer beside a teacher, against transformers' own processing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import (
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    SwinConfig,
)

from lqn_seg.adapt.methods import BaselineModel
from lqn_seg.errors import InputError
from lqn_seg.lab.report.run import evaluate
from lqn_seg.lab.report.wording import title
from lqn_seg.segmentation.baselines import Preprocessing, load_universal
from lqn_seg.segmentation.windows import resize_scores

CLASSES = 13  # the scenes'
QUICKLY = [
    *("MODEL.LQN.EVAL.PANEL_IMAGES", "0", "MODEL.LQN.EVAL.MAX_IMAGES", "2"),
    *("MODEL.LQN.EVAL.CORRUPTIONS", "()"),
]


def backbone() -> SwinConfig:
    return SwinConfig(
        **{"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1]},
        **{"num_heads": [1, 1, 2, 2], "window_size": 4},
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


SHARED = {"num_labels": CLASSES, "num_queries": 6, "mask_feature_size": 32}


def build(kind: str):
    torch.manual_seed(0)
    if kind == "mask2former":
        sizes = {"feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
        layers = {"encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2}
        config = Mask2FormerConfig(
            backbone_config=backbone(), **SHARED, **sizes, **layers, dim_feedforward=16
        )
        model = Mask2FormerForUniversalSegmentation(config)
    elif kind == "maskformer":
        decoder = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 6}
        config = MaskFormerConfig(
            backbone_config=backbone(),
            decoder_config={
                "model_type": "detr",
                **decoder,
                **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
                **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
            },
            **{"num_labels": CLASSES, "fpn_feature_size": 32, "mask_feature_size": 32},
        )
        model = MaskFormerForInstanceSegmentation(config)
    else:
        sizes = {"hidden_dim": 32, "conv_dim": 32, "mask_dim": 32, "dim_feedforward": 16}
        layers = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
        text = {"text_encoder_width": 32, "text_encoder_num_layers": 1, "task_seq_len": 12}
        words = {"text_encoder_vocab_size": 64, "text_encoder_context_length": 12}
        config = OneFormerConfig(
            backbone_config=backbone(),
            **{"num_labels": CLASSES, "num_queries": 6, "is_training": False},
            **sizes,
            **layers,
            **text,
            **words,
            encoder_feedforward_dim=16,
        )
        model = OneFormerForUniversalSegmentation(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):  # loud: some pass the thresholds
        if parameter.ndim > 1:
            is_query = "queries_" in name or "query_emb" in name
            deviation = 5.0 if is_query else 2 * parameter[0].numel() ** -0.5
            parameter.data.normal_(0, deviation, generator=generator)
    return model.eval()


def write_tokenizer(path) -> None:
    """CLIP's tokenizer with a vocabulary of letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt")).save_pretrained(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each kind saved as transformers does, 64 pixels on the short side."""
    made = {}
    for kind in ("mask2former", "maskformer", "oneformer"):
        path = made[kind] = tmp_path_factory.mktemp(kind)
        build(kind).save_pretrained(path)
        content = {"size": {"shortest_edge": 64, "longest_edge": 160}, "size_divisor": 32}
        (path / "preprocessor_config.json").write_text(json.dumps(content))
    write_tokenizer(made["oneformer"])
    return made


def load(folders, kind, **arguments):
    return load_universal(BaselineModel(kind, str(folders[kind])), "cpu", CLASSES, **arguments)


def random_image(height, width):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(1)).to(
        torch.uint8
    )


def close(got, want):
    return (got - want).abs().max() <= 1e-3 * want.abs().max()


@pytest.mark.parametrize("kind", ["mask2former", "maskformer"])
def test_logits_are_transformers_own(folders, kind):
    # 64 x 96 needs neither resizing nor padding, so that both protocols agree.
    image = random_image(64, 96)
    answers, shape = load(folders, kind)(image, (64, 96), ["panoptic"])
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 160})
    inputs = processor(image, return_tensors="pt")
    assert shape == tuple(inputs["pixel_values"].shape[-2:]) == (64, 96)
    with torch.no_grad():
        output = build(kind)(pixel_values=inputs["pixel_values"])
    masks = torch.nn.functional.interpolate(output.masks_queries_logits, (64, 96), mode="bilinear")
    # Pixels are normalised in another order, which the loud weights make more of.
    assert close(answers["panoptic"][0], masks[0])
    assert close(answers["panoptic"][1], output.class_queries_logits[0])


@pytest.mark.parametrize(
    "content, image, size",
    [
        ({}, (480, 640), (800, 1067)),
        ({}, (400, 1000), (533, 1333)),  # the long side decides
        ({"size": 512, "max_size": 2048, "size_divisibility": 32}, (256, 300), (512, 600)),
        ({"size": {"height": 384, "width": 384}}, (100, 300), (384, 384)),
        ({"size": {"shortest_edge": 640}, "do_resize": False}, (100, 300), (100, 300)),
    ],
)
def test_sizes_are_detectron2s(content, image, size):
    assert Preprocessing.of(content).size(image) == size


def test_oneformer_hears_its_task(folders):
    model, image = load(folders, "oneformer"), random_image(64, 96)
    tokens = model.task_tokens["semantic"]
    assert tokens.shape == (1, 12)
    assert not torch.equal(tokens, model.task_tokens["instance"])
    answers, _ = model(image, (64, 96), ["semantic", "instance"])
    pixels, _ = model.preprocessing(image)
    for task, (_, classes) in answers.items():
        with torch.no_grad():
            output = build("oneformer")(pixel_values=pixels, task_inputs=model.task_tokens[task])
        assert close(classes, output.class_queries_logits[0])


def test_oneformer_without_its_tokenizer_is_one_sentence(folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["oneformer"] / name).read_bytes())
    with pytest.raises(InputError, match=r"vocab\.json"):
        load_universal(BaselineModel("oneformer", str(tmp_path)), "cpu", CLASSES)


def test_bad_baselines_are_named(folders, tmp_path, teacher_folder):
    with pytest.raises(InputError, match="13 classes, the data set has 150"):
        load_universal(BaselineModel("m", str(folders["mask2former"])), "cpu", 150)
    with pytest.raises(InputError, match="an EoMT is a teacher"):
        load_universal(BaselineModel("eomt", str(teacher_folder)), "cpu")
    with pytest.raises(InputError, match="could not be loaded"):
        load_universal(BaselineModel("m", str(tmp_path)), "cpu")
    with pytest.raises(InputError, match="does not exist"):
        load_universal(BaselineModel("m", str(tmp_path / "nowhere")), "cpu")
    for name in ("mask2former=", "=somewhere"):
        with pytest.raises(InputError, match=r"MODEL\.LQN\.METHODS"):
            BaselineModel.parse(name)
    whole = BaselineModel.parse("mask2former=facebook/mask2former@main=x")
    assert whole == BaselineModel("mask2former", "facebook/mask2former@main=x")
    assert title("mask2former=dir") == "Mask2Former" and title("mine=dir") == "mine"


def test_padding_is_not_part_of_the_answer(folders):
    model, image = load(folders, "mask2former"), random_image(50, 70)
    pixels, inside = model.preprocessing(image)  # to 64 x 90, padded to 64 x 96
    assert pixels.shape == (1, 3, 64, 96) and inside == (64, 90)
    assert (pixels[..., 90:] == 0).all() and (pixels[..., :90] != 0).any()
    with torch.no_grad():
        masks = build("mask2former")(pixel_values=pixels).masks_queries_logits[0]
    want = resize_scores(resize_scores(masks, (64, 96))[..., :90], (50, 70))
    assert close(model(image, (50, 70), ["panoptic"])[0]["panoptic"][0], want)


def test_one_command_gives_one_table(small_config, folders, capsys):
    selected = ["teacher", "lqn", *(f"{kind}={path}" for kind, path in folders.items())]
    report = evaluate(str(small_config), QUICKLY, methods=selected)
    printed = capsys.readouterr().out
    for name in ("EoMT (teacher)", "LQN", "Mask2Former", "MaskFormer", "OneFormer"):
        assert name in printed
    assert "On these 2 images LQN" in report.sentence()
    results = json.loads((report.evaluation.folder / "results.json").read_text())
    for method in selected[2:]:
        result = results["metrics"]["clean"][method]
        assert 0 <= result["panoptic_seg"]["PQ"] <= 100 and 0 <= result["sem_seg"]["mIoU"] <= 100
        assert result["lqn"]["token_cos"] is None  # it has no teacher
        assert results["gmacs"][method]["gmacs_total"] > 0
        assert results["baselines"][method]
    oneformer, mask2former = (
        results["gmacs"][m]["gmacs_total"] for m in (selected[4], selected[2])
    )
    assert math.isfinite(oneformer) and math.isfinite(mask2former)


def test_baselines_alone_run_no_teacher(small_config, folders):
    name = f"mask2former={folders['mask2former']}"
    overrides = [*QUICKLY, "MODEL.LQN.BASELINE_SIZES", "(96, 0)"]
    report = evaluate(str(small_config), overrides, methods=[name])
    assert report.sentence() == "" and report.metrics["clean"][name]["lqn"]["input_height"] == 96

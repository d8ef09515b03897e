"""Files of the original release against a plain EoMT on timm's and DINOv3's own blocks."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from timm.layers import LayerNorm2d
from torch import nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import count_eomt
from lqn_seg.lab.cost.flops import EomtShape, eomt_gmacs
from lqn_seg.teachers.eomt import EomtTeacher, load_eomt
from lqn_seg.teachers.eomt_head import EomtHead

WIDTH, QUERIES, CLASSES, BLOCKS, LAYERS = 192, 5, 7, 2, 4
needs_dinov3 = pytest.mark.skipif(
    not hasattr(transformers, "EomtDinov3ForUniversalSegmentation"), reason="transformers 5"
)

# Of two implementations of the same sums, in standard deviations of the logits: processors order
# and round products differently. (A tensor that is mixed up moves logits by about one.)
ROUNDING = 1e-5


class Upscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.norm = LayerNorm2d(WIDTH)

    def forward(self, x):
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


class Original(nn.Module):
    """A small EoMT under the original release's names; `encoder.backbone` is timm's ViT."""

    def __init__(self, size=(64, 64), swiglu=False) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = self.build_backbone(size, swiglu)
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.encoder.register_buffer(f"pixel_{name}", torch.tensor(values).view(1, 3, 1, 1))
        self.register_buffer("attn_mask_probs", torch.zeros(BLOCKS))
        self.q = nn.Embedding(QUERIES, WIDTH)
        self.class_head = nn.Linear(WIDTH, CLASSES + 1)
        linear = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
        self.mask_head = nn.Sequential(linear[0], nn.GELU(), linear[1], nn.GELU(), linear[2])
        self.upscale = nn.Sequential(Upscale(), Upscale())
        self.grid = (size[0] // 16, size[1] // 16)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():  # loud, and no two alike
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator))
        self.eval()

    def build_backbone(self, size, swiglu):
        kind = "giant" if swiglu else "small"
        shape = {"embed_dim": WIDTH, "depth": LAYERS, "num_heads": WIDTH // 64}
        name = f"vit_{kind}_patch14_reg4_dinov2"
        return timm.create_model(name, img_size=size, patch_size=16, num_classes=0, **shape)

    def embed(self, x):
        return self.encoder.backbone._pos_embed(self.encoder.backbone.patch_embed(x))

    def block(self, index, x):
        return self.encoder.backbone.blocks[index](x)

    def predict(self, x):
        x = self.encoder.backbone.norm(x)
        queries = x[:, :QUERIES]
        patches = x[:, QUERIES + 5 :].mT.unflatten(2, self.grid)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), self.upscale(patches))
        return masks, self.class_head(queries)

    @torch.no_grad()
    def forward(self, images):
        x = self.embed(images)
        for index in range(LAYERS):
            if index == LAYERS - BLOCKS:
                x = torch.cat([self.q.weight[None].expand(len(x), -1, -1), x], 1)
            x = self.block(index, x)
        return self.predict(x)

    def file(self):
        state = {f"network.{name}": value for name, value in self.state_dict().items()}
        return {**state, "criterion.empty_weight": torch.ones(CLASSES + 1)}


class OriginalDinov3(Original):
    """The same on DINOv3, whose layers are transformers' and rotate their positions."""

    def build_backbone(self, size, swiglu):
        self.vit = [build_dinov3().eval()]  # in a list: its names are not the original's
        vit, backbone = self.vit[0], nn.Module()
        backbone.patch_embed = vit.embeddings
        del backbone.patch_embed.mask_token
        backbone.patch_embed.mask_token = None
        backbone.blocks, backbone.norm = vit.model.layer, vit.norm
        self.rope = [vit.rope_embeddings(torch.zeros(1, 3, *size))]
        return backbone

    def embed(self, x):
        return self.encoder.backbone.patch_embed(x)

    def block(self, index, x):
        return self.encoder.backbone.blocks[index](x, position_embeddings=self.rope[0])


def build_dinov3() -> DINOv3ViTModel:
    torch.manual_seed(1)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 2 * WIDTH}
    heads = WIDTH // 32  # not 64 wide: only the base's config.json says it
    return DINOv3ViTModel(
        DINOv3ViTConfig(**shape, num_attention_heads=heads, num_register_tokens=4)
    )


def answers(teacher: EomtTeacher, images):
    field, context = teacher.encode(images)
    return EomtHead(teacher.model)(field[:, -1], context.last_queries)


def assert_same(teacher: EomtTeacher, original: Original, size, tolerance=ROUNDING) -> None:
    images = torch.randn(2, 3, *size)
    assert teacher.image_size == size
    expected = original(images)
    with torch.no_grad():
        output = teacher.model(images)
    transformers_own = output.masks_queries_logits, output.class_queries_logits
    for result in (answers(teacher, images), transformers_own):
        for got, want in zip(result, expected):
            assert (got - want).abs().max() <= tolerance * want.std()


@pytest.mark.parametrize("layout", ["flat.bin", "nested.ckpt", "flat.safetensors", "directory"])
def test_every_layout_gives_the_originals_logits(layout, tmp_path):
    original = Original()
    state, path = original.file(), tmp_path / layout
    if layout == "directory":
        path.mkdir()
        (path / "config.json").write_text("{}")  # whatever else its repository keeps there
        torch.save(state, path / "pytorch_model.bin")
    elif layout == "nested.ckpt":
        compiled = {n.replace("network.", "network._orig_mod."): v for n, v in state.items()}
        torch.save({"state_dict": compiled}, path)
    elif layout == "flat.safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    teacher = load_eomt(str(path))
    assert_same(teacher, original, (64, 64))
    teacher.model.save_pretrained(tmp_path / "converted")
    assert_same(load_eomt(str(tmp_path / "converted")), original, (64, 64))


@pytest.mark.parametrize("size", [(48, 96), (96, 32)])
def test_images_that_are_not_square(size, tmp_path):
    original = Original(size)
    torch.save(original.file(), tmp_path / "file.bin")
    teacher = load_eomt(str(tmp_path / "file.bin"), image_size=size)
    assert_same(teacher, original, size)
    teacher.model.save_pretrained(tmp_path / "converted")
    assert_same(load_eomt(str(tmp_path / "converted")), original, size)
    # 3 x 6 patches are no square, so without a size nobody knows what they were
    with pytest.raises(InputError, match="cannot be told"):
        load_eomt(str(tmp_path / "file.bin"))


def test_another_size_resamples_positions_as_timm_does(tmp_path):
    original = Original((64, 64))
    torch.save(original.file(), tmp_path / "file.bin")
    teacher = load_eomt(str(tmp_path / "file.bin"), image_size=(32, 96))
    before = original.encoder.backbone.pos_embed.clone()
    original.encoder.backbone.set_input_size((32, 96))
    original.grid = (2, 6)
    assert before.shape != original.encoder.backbone.pos_embed.shape
    assert_same(teacher, original, (32, 96))
    with pytest.raises(InputError, match="multiples"):
        load_eomt(str(tmp_path / "file.bin"), image_size=(32, 90))
    plain = load_eomt(str(tmp_path / "file.bin"))
    with pytest.raises(InputError, match="64x64 pixels, not 32x96"):
        plain.encode(torch.zeros(1, 3, 32, 96))


def test_swiglu_of_the_giant(tmp_path):
    original = Original(swiglu=True)
    torch.save(original.file(), tmp_path / "file.bin")
    assert_same(load_eomt(str(tmp_path / "file.bin")), original, (64, 64))


def test_a_mixed_up_tensor_is_no_rounding(tmp_path):
    """What the tolerance must not let pass: the smallest mistakes that a conversion could make."""
    original = Original()
    state = original.file()
    torch.save(state, tmp_path / "file.bin")
    one, other = (f"network.encoder.backbone.blocks.{k}.norm1.bias" for k in (0, 1))
    swapped = {**state, one: state[other], other: state[one]}
    shifted = {**state, "network.class_head.bias": state["network.class_head.bias"] + 1e-3}
    for wrong in (swapped, shifted):
        torch.save(wrong, tmp_path / "file.bin")
        with pytest.raises(AssertionError):
            assert_same(load_eomt(str(tmp_path / "file.bin")), original, (64, 64))


def test_masked_attention_is_what_the_file_says(tmp_path):
    state = Original().file()
    for value in (0.0, 1.0):
        state["network.attn_mask_probs"] = torch.full((BLOCKS,), value)
        torch.save(state, tmp_path / "file.bin")
        model = load_eomt(str(tmp_path / "file.bin")).model
        assert model.attn_mask_probs.tolist() == [value] * BLOCKS


BACKBONE = "network.encoder.backbone.blocks"
BROKEN = {
    "missing: mask_head.fc2.bias": {"network.mask_head.2.bias": None},
    "blocks.0.bogus|layers.0.bogus": {f"{BACKBONE}.0.bogus": 1},
    "unexpected key mask_head.6.weight": {"network.mask_head.6.weight": 1},
    "class_predictor.bias": {"network.class_head.bias": 3},
    "missing: layers.1.attention.k_proj.bias": {
        f"{BACKBONE}.1.attn.qkv.{name}": None for name in ("weight", "bias")
    },
}


@pytest.mark.parametrize("words", BROKEN)
def test_loading_is_strict(words, tmp_path):
    """A tensor that is not there (None), or is of another length."""
    state = Original().file()
    for name, length in BROKEN[words].items():
        state.pop(name, None)
        state |= {} if length is None else {name: torch.zeros(length)}
    torch.save(state, tmp_path / "file.bin")
    with pytest.raises(InputError, match=words) as error:
        load_eomt(str(tmp_path / "file.bin"))
    assert "file.bin" in str(error.value)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Bomb()}, tmp_path / "file.bin")
    with pytest.raises(InputError, match="more than tensors"):
        load_eomt(str(tmp_path / "file.bin"))


def test_a_file_of_another_kind_is_named(tmp_path):
    path = tmp_path / "file.bin"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not have the original release's keys"):
        load_eomt(str(path))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"file\.bin could not be loaded"):
        load_eomt(str(path))
    with pytest.raises(InputError, match="does not exist"):
        load_eomt(str(tmp_path / "nowhere.bin"))


# --- what the file says of its input


def with_pixels(state, mean, std):
    for name, values in (("mean", mean), ("std", std)):
        state[f"network.encoder.pixel_{name}"] = torch.tensor(values).view(1, 3, 1, 1)
    return state


def test_mean_and_deviation_are_the_files(tmp_path):
    torch.save(with_pixels(Original().file(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), tmp_path / "f.bin")
    teacher = load_eomt(str(tmp_path / "f.bin"))
    assert teacher.pixel_mean == pytest.approx((0.5, 0.4, 0.3))
    assert teacher.pixel_std == pytest.approx((0.2, 0.3, 0.4))
    assert "encoder.pixel_std" in teacher.preprocessing.source


def test_a_file_without_them_has_them_beside_it(tmp_path):
    state = {n: v for n, v in Original().file().items() if "pixel_" not in n}
    torch.save(state, tmp_path / "file.bin")
    assert load_eomt(str(tmp_path / "file.bin")).pixel_mean == (0.485, 0.456, 0.406)
    said = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_eomt(str(tmp_path / "file.bin")).pixel_std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("std", [(0.2, 0.0, 0.2), (0.2, 0.2), (0.2, float("nan"), 0.2)])
def test_a_deviation_that_cannot_be_is_named(std, tmp_path):
    state = Original().file()
    state["network.encoder.pixel_std"] = torch.tensor(std)
    torch.save(state, tmp_path / "file.bin")
    with pytest.raises(InputError, match=r"file\.bin: encoder\.pixel_std must be three positive"):
        load_eomt(str(tmp_path / "file.bin"))


# --- DINOv3


def delta_of(original: OriginalDinov3):
    """The file as the release publishes it, and the base that it is a difference to."""
    base = build_dinov3()
    names = {"layer": "blocks", "embeddings": "patch_embed", "norm": "norm"}
    start = {}
    for name, value in base.state_dict().items():
        first, _, rest = name.removeprefix("model.").partition(".")
        start[f"network.encoder.backbone.{names[first]}.{rest}"] = value
    state = original.file()
    delta = {n: v - start[n] if n in start else v for n, v in state.items()}
    delta["network.attn_mask_probs"] = torch.full((BLOCKS,), -1.0)  # 0 as the difference to 1
    for name in ("mean", "std"):  # the original code starts with ImageNet's and adds the file
        delta[f"network.encoder.pixel_{name}"] = torch.zeros(1, 3, 1, 1)
    return delta, base


@needs_dinov3
@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
def test_delta_weights_and_their_base(size, tmp_path):
    original = OriginalDinov3(size)
    delta, base = delta_of(original)
    assert torch.equal(delta["network.q.weight"], original.q.weight)
    torch.save(delta, tmp_path / "delta.bin")
    base.save_pretrained(tmp_path / "base")
    teacher = load_eomt(str(tmp_path / "delta.bin"), image_size=size, base=str(tmp_path / "base"))
    assert_same(teacher, original, size, 1e-4)
    assert teacher.model.attn_mask_probs.tolist() == [0.0] * BLOCKS
    teacher.model.save_pretrained(tmp_path / "converted")
    assert_same(load_eomt(str(tmp_path / "converted")), original, size, 1e-4)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SATELLITE = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)


@needs_dinov3
@pytest.mark.parametrize(
    "stored, beside, expected",
    [
        (((0.0,) * 3, (0.0,) * 3), False, IMAGENET),
        (((0.015, 0.044, 0.094), (0.271, 0.276, 0.275)), False, ((0.5,) * 3, (0.5,) * 3)),
        (IMAGENET, False, IMAGENET),  # left as they are in a file of differences
        (SATELLITE, False, SATELLITE),
        (None, False, IMAGENET),
        (None, True, SATELLITE),  # what the base was trained with
    ],
)
def test_the_input_of_delta_weights(stored, beside, expected, tmp_path):
    delta, base = delta_of(OriginalDinov3())
    delta = {n: v for n, v in delta.items() if "pixel_" not in n}
    torch.save(with_pixels(delta, *stored) if stored else delta, tmp_path / "delta.bin")
    base.save_pretrained(tmp_path / "base")
    if beside:
        said = dict(zip(("image_mean", "image_std"), map(list, SATELLITE)))
        (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(said))
    paths = {"base": str(tmp_path / "base"), "image_size": (64, 64)}
    teacher = load_eomt(str(tmp_path / "delta.bin"), **paths)
    assert teacher.pixel_mean == pytest.approx(expected[0])
    assert teacher.pixel_std == pytest.approx(expected[1])


@needs_dinov3
def test_absolute_weights_on_dinov3(tmp_path):
    original = OriginalDinov3()
    torch.save(original.file(), tmp_path / "file.bin")
    (tmp_path / "shape.json").write_text(json.dumps({"num_attention_heads": WIDTH // 32}))
    paths = str(tmp_path / "file.bin"), str(tmp_path / "shape.json")
    teacher = load_eomt(*paths, image_size=(64, 64), base="absolute")
    assert_same(teacher, original, (64, 64))
    with pytest.raises(InputError, match=r"TEACHER\.BASE.*differences"):
        load_eomt(*paths, image_size=(64, 64))
    with pytest.raises(InputError, match="give the image size"):
        load_eomt(*paths, base="absolute")


@needs_dinov3
def test_a_base_that_does_not_fit_is_named(tmp_path):
    delta, base = delta_of(OriginalDinov3())
    torch.save(delta, tmp_path / "delta.bin")
    state = {n: v for n, v in base.state_dict().items() if n != "norm.weight"}
    save_file(state, tmp_path / "base.safetensors")
    arguments = {"image_size": (64, 64), "base": str(tmp_path / "base.safetensors")}
    with pytest.raises(InputError, match=r"layernorm\.weight is in the delta alone"):
        load_eomt(str(tmp_path / "delta.bin"), **arguments)
    with pytest.raises(InputError, match=r"TEACHER\.BASE: .*nowhere"):
        load_eomt(str(tmp_path / "delta.bin"), image_size=(64, 64), base=str(tmp_path / "nowhere"))


@needs_dinov3
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_masks_and_resume_on_dinov3(masked, tmp_path):
    torch.save(OriginalDinov3().file(), tmp_path / "file.bin")
    teacher = load_eomt(str(tmp_path / "file.bin"), image_size=(64, 64), base="absolute")
    teacher.model.attn_mask_probs.fill_(masked)
    teacher.refresh()
    images = torch.randn(1, 3, 64, 64)
    field, context = teacher.encode(images)
    for layer in range(LAYERS + 1):
        tokens = field[:, layer - 1] if layer else teacher.embed(images)
        last, after = teacher.resume(layer, tokens, context)
        assert torch.equal(last, field[:, -1])
        assert torch.equal(after.last_queries, context.last_queries)
    with torch.no_grad():
        expected = teacher.model(images).masks_queries_logits
    assert torch.allclose(answers(teacher, images)[0], expected, rtol=1e-3, atol=1e-3)


@needs_dinov3
def test_costs_on_dinov3_are_counted():
    config = transformers.EomtDinov3Config(
        **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64},
        **{"intermediate_size": 96, "num_blocks": 1, "num_queries": 4},
    )
    config.num_labels = 3
    closed = sum(eomt_gmacs(EomtShape.from_config(config)).values())
    assert closed == pytest.approx(count_eomt(config).gmacs, rel=1e-6)

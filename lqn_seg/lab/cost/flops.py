"""What a method costs: closed forms, and counts of the real models to hold them against.

Unit everywhere: GMACs, 1e9 multiply-adds, which is what fvcore prints as "FLOPs" (one fused
multiply-add is one). `torch.utils.flop_counter` counts a multiply-add as two; it is halved here.
Costs are per image or window (batch 1). Closed forms count matrix products, convolutions and
attention; norms, activations, softmax, the optimizer and the sampling of positions are not counted.
fvcore counts norms too and comes out that much higher, 0.1% for EoMT-L.

The paper counts "20.5 + 14 x 10" (Sec. 4, Computation FLOP Analysis): the teacher, and 14 times one
forward pass of one batch of positions. That figure is `gmacs_paper_convention`; the others count
everything: forward and backward, of every pass of every step, read-out and head.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lqn_seg.core.alignment import calibrated_layers
from lqn_seg.core.config import LQNConfig, StudentConfig
from lqn_seg.core.fast.products import ONE_DNN_LINEAR
from lqn_seg.core.fit import visited_positions
from lqn_seg.core.student import first_inputs, parameter_count
from lqn_seg.errors import InputError

# --- closed forms: the teacher and its head -------------------------------------------------------


@dataclass(frozen=True)
class EomtShape:
    """The numbers of an EoMT that its cost depends on.

    Attributes:
        image_size: (height, width) in pixels.
        patch_size: pixels.
        width: hidden size D.
        layers: number of blocks L; the last `num_blocks` of them also carry the queries.
        mlp_width: hidden size of a block's MLP.
        gated_mlp: SwiGLU, which has three matrices instead of two.
        num_queries, num_blocks, num_labels: of the segmentation head.
        num_prefix_tokens: CLS and registers.
        num_upscale_blocks: each doubles the grid (ConvTranspose2d 2x2, then depthwise 3x3).
        channels: of the image.
    """

    image_size: tuple[int, int]
    patch_size: int
    width: int
    layers: int
    mlp_width: int
    num_queries: int
    num_blocks: int
    num_labels: int
    num_prefix_tokens: int = 5
    num_upscale_blocks: int = 2
    channels: int = 3
    gated_mlp: bool = False

    @classmethod
    def from_config(cls, config: Any) -> EomtShape:
        """From a `transformers.EomtConfig` or `EomtDinov3Config`."""
        size, patch = config.image_size, config.patch_size
        if config.model_type == "eomt_dinov3":
            mlp_width, gated_mlp = config.intermediate_size, config.use_gated_mlp
        else:
            mlp_width, gated_mlp = int(config.hidden_size * config.mlp_ratio), config.use_swiglu_ffn
            if gated_mlp:  # two thirds, rounded up to a multiple of 8, as transformers does
                mlp_width = (int(mlp_width * 2 / 3) + 7) // 8 * 8
        return cls(
            image_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
            patch_size=patch if isinstance(patch, int) else patch[0],
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            mlp_width=mlp_width,
            num_queries=config.num_queries,
            num_blocks=config.num_blocks,
            num_labels=config.num_labels,
            num_prefix_tokens=1 + config.num_register_tokens,
            num_upscale_blocks=config.num_upscale_blocks,
            channels=config.num_channels,
            gated_mlp=gated_mlp,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        return prod(self.grid)


def load_eomt_config(directory: str | None = None) -> Any:
    """A `transformers.EomtConfig` from a local directory; without one, EoMT-L at 640 px.

    The default is transformers' own: ViT-L (24 blocks of width 1024, 16 heads), patches of 16 px,
    200 queries in the last 4 blocks, as published for COCO panoptic; with that data set's 133
    classes.

    Raises:
        InputError: the directory holds no EoMT configuration.
    """
    from transformers import AutoConfig, EomtConfig

    if directory is None:
        config = EomtConfig()
        config.num_labels = 133
        return config
    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"There is no 'config.json' in '{directory}'.")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read '{directory}/config.json': {error}") from error
    if not isinstance(config, EomtConfig):
        raise InputError(f"'{directory}/config.json' is a '{config.model_type}', not an 'eomt'.")
    return config


def block_macs(tokens: int, width: int, mlp_width: int, gated_mlp: bool = False) -> int:
    """Multiply-adds of one transformer block on `tokens` tokens: q, k, v, out; attention; MLP."""
    projections = 4 * tokens * width**2
    attention = 2 * tokens**2 * width
    mlp = (3 if gated_mlp else 2) * tokens * width * mlp_width
    return projections + attention + mlp


def vit_gmacs(
    patches: int,
    patch_inputs: int,
    width: int,
    layers: int,
    mlp_width: int,
    extra_tokens: int = 1,
) -> float:
    """A plain ViT encoder: `patches` patches of `patch_inputs` values, `extra_tokens` more tokens.

    With `patch_inputs=0` it is a text encoder (the embedding is a look-up).
    """
    embedding = patches * patch_inputs * width
    return (embedding + layers * block_macs(patches + extra_tokens, width, mlp_width)) / 1e9


@dataclass(frozen=True)
class ClipShape:
    """The numbers of a CLIP with two plain transformers that its cost depends on.

    Attributes:
        grid: (rows, columns) of patches.
        patch_size: pixels.
        width, layers, mlp_width: of the image encoder.
        text_width, text_layers, text_mlp_width, context_length: of the text encoder.
        joint_width: features of the space that both project to.
    """

    grid: tuple[int, int]
    patch_size: int
    width: int
    layers: int
    mlp_width: int
    text_width: int
    text_layers: int
    text_mlp_width: int
    context_length: int
    joint_width: int

    @classmethod
    def from_model(cls, model: Any) -> ClipShape:
        """From open_clip's model."""
        visual, text = model.visual, model.transformer
        return cls(
            grid=visual.grid_size,
            patch_size=visual.patch_size[0],
            width=visual.transformer.width,
            layers=visual.transformer.layers,
            mlp_width=visual.transformer.resblocks[0].mlp[0].out_features,
            text_width=text.width,
            text_layers=text.layers,
            text_mlp_width=text.resblocks[0].mlp[0].out_features,
            context_length=model.context_length,
            joint_width=visual.output_dim,
        )


def clip_gmacs(shape: ClipShape) -> dict[str, float]:
    """One pass of an image ("teacher", projection included), and of one "prompt"."""
    image = vit_gmacs(
        prod(shape.grid), 3 * shape.patch_size**2, shape.width, shape.layers, shape.mlp_width
    )
    prompt = vit_gmacs(
        shape.context_length, 0, shape.text_width, shape.text_layers, shape.text_mlp_width, 0
    )
    return {
        "teacher": image + shape.width * shape.joint_width / 1e9,
        "prompt": prompt + shape.text_width * shape.joint_width / 1e9,
    }


def eomt_gmacs(shape: EomtShape) -> dict[str, float]:
    """One forward pass, masked attention off: `teacher` (encoder, all blocks) and `head`."""
    embedding = shape.num_patches * shape.patch_size**2 * shape.channels * shape.width
    return {
        "teacher": embedding / 1e9 + eomt_resume_gmacs(shape, 0),
        "head": _eomt_head_macs(shape) / 1e9,
    }


def eomt_resume_gmacs(shape: EomtShape, layer: int) -> float:
    """The blocks after `layer` (1..L; 0 = all), which `teacher.resume(layer, tokens)` runs.

    Raises `InputError` if there is no such layer.
    """
    if not 0 <= layer <= shape.layers:
        raise InputError(f"Cannot resume after layer {layer}: the teacher has {shape.layers}.")
    total = 0
    for index in range(layer, shape.layers):
        tokens = shape.num_patches + shape.num_prefix_tokens
        if index >= shape.layers - shape.num_blocks:
            tokens += shape.num_queries
        total += block_macs(tokens, shape.width, shape.mlp_width, shape.gated_mlp)
    return total / 1e9


def _eomt_head_macs(shape: EomtShape) -> int:
    width, queries = shape.width, shape.num_queries
    classes = queries * width * (shape.num_labels + 1)
    mask_mlp = 3 * queries * width**2
    pixels, upscale = shape.num_patches, 0
    for _ in range(shape.num_upscale_blocks):
        upscale += 4 * pixels * width**2  # ConvTranspose2d 2x2, stride 2: every input meets 4 taps
        pixels *= 4
        upscale += 9 * pixels * width  # depthwise 3x3
    return classes + mask_mlp + upscale + queries * width * pixels


# --- closed forms: the student --------------------------------------------------------------------

_CHANNELS = 3


@dataclass(frozen=True)
class PassMacs:
    """Multiply-adds of one forward pass of some queries, and of the backward pass through it."""

    forward: int
    backward: int


def literal_pass_macs(config: StudentConfig, feature_dim: int, queries: int) -> PassMacs:
    """One pass as Table 4 states it: `[conv(x) | P(src) | P(dest)]` concatenated for every query.

    The convolution runs once per pass. Backward: every matrix product has two of the same size,
    for its weights and for its input; the convolution's input is the image, which needs none.
    """
    convolution = _convolution_macs(config)
    inputs = first_inputs(config, feature_dim)
    every_query = queries * (inputs * config.widths[0] + _deep_macs(config, feature_dim))
    return PassMacs(convolution + every_query, convolution + 2 * every_query)


def shared_pass_macs(
    config: StudentConfig, feature_dim: int, queries: int, table_rows: int, guided: int = 0
) -> PassMacs:
    """One pass as `core.student` computes it: the first layer once per distinct row.

    Its image part is one row, its positional parts one row per value of i, j and l, for source and
    destination; queries only add rows up. The way back sums each row's gradient over its queries by
    a product with the 0/1 matrix of who reads what. Position codes are constants: no gradient.

    Args:
        table_rows: rows of the address table, `H + W + L + 3` when fitting a whole grid.
        guided: guiding tokens, where there is a guide: queries, without those that share one.
    """
    width, convolution = config.widths[0], _convolution_macs(config)
    image = config.image_features * width
    table_rows *= 2 if config.source else 1
    guided *= feature_dim if config.guide else 0
    tables = (table_rows * config.position_dim + guided) * width
    deep = queries * _deep_macs(config, feature_dim)
    look_ups = queries * (1 + table_rows) * width
    return PassMacs(
        forward=convolution + image + tables + deep,
        backward=convolution + 2 * image + tables + look_ups + 2 * deep,
    )


def fit_gmacs(
    config: LQNConfig, grid: tuple[int, int, int], feature_dim: int, literal: bool = False
) -> float:
    """All steps of one image: forward and backward of every pass.

    Args:
        grid: (L, H, W) of the teacher's token field.
        literal: passes as Table 4 states them instead of as we compute them.
    """
    step = step_macs(config, grid, feature_dim, literal)
    return config.fit.steps * (step.forward + step.backward) / 1e9


def step_macs(
    config: LQNConfig, grid: tuple[int, int, int], feature_dim: int, literal: bool = False
) -> PassMacs:
    """All passes of one step; arguments as of `fit_gmacs`."""
    # Three passes from Src0, Src1 and Src2; without a recirculation loss only the first.
    passes = 3 if config.student.source and config.fit.alpha else 1
    n = visited_positions(config.fit, grid)
    if literal:
        one = literal_pass_macs(config.student, feature_dim, n)
        return PassMacs(passes * one.forward, passes * one.backward)
    # The passes of a step share their weights, and with them the rows of the first layer; and
    # their destinations, which are what is guided.
    layers, rows, columns = grid
    table_rows = sum(size + 1 for size in (rows, columns, layers)[: config.student.axes])
    return shared_pass_macs(config.student, feature_dim, passes * n, table_rows, guided=n)


def pass_gmacs(config: LQNConfig, grid: tuple[int, int, int], feature_dim: int) -> float:
    """One forward pass of one step's positions as Table 4 states it: the paper's "10 GFLOPs"."""
    n = visited_positions(config.fit, grid)
    return literal_pass_macs(config.student, feature_dim, n).forward / 1e9


def step_bytes(config: StudentConfig, feature_dim: int, lowered: bool = False) -> int:
    """What a step reads and writes per parameter, whatever it visits: the least memory traffic.

    In float32: the weights forward and backward (8 bytes), the gradients (4), and Adam, which reads
    weight, gradient and both moments and writes all but the gradient (28). With products in two
    bytes, weights and gradients are converted besides (6 each) and read and written there (4 + 2).
    """
    each = 28 + (12 + 6 if lowered else 12)
    return each * parameter_count(config, feature_dim)


def fit_bytes(config: LQNConfig, feature_dim: int, lowered: bool = False) -> int:
    """Memory traffic of a fit: `step_bytes` of every step, and fresh weights and moments."""
    reset = 12 * parameter_count(config.student, feature_dim)
    return reset + config.fit.steps * step_bytes(config.student, feature_dim, lowered)


def readout_gmacs(
    config: LQNConfig, grid: tuple[int, int, int], feature_dim: int, literal: bool = False
) -> float:
    """One forward pass for all H x W addresses of the last layer."""
    _, rows, columns = grid
    queries = rows * columns
    if literal:
        return literal_pass_macs(config.student, feature_dim, queries).forward / 1e9
    table_rows = _readout_table_rows(config, grid)
    one = shared_pass_macs(config.student, feature_dim, queries, table_rows, guided=queries)
    return one.forward / 1e9


def method_gmacs(
    config: LQNConfig,
    teacher: EomtShape,
    *,
    windows: float = 1.0,
    literal: bool = False,
    query_rows: int = 0,
    fit_per_image: bool = False,
) -> dict[str, float]:
    """Cost per image of a method, by stage, in GMACs.

    Args:
        config: the recipe; variant "teacher" has no student, so fit and read-out are 0.
        teacher: the EoMT.
        windows: windows per image (ADE20K at 512 px: about 1.83 on average; Cityscapes: 2).
        literal: count student passes as Table 4 states them instead of as we compute them.
        query_rows: rows below the grid for the query tokens, where the student gives them too.
        fit_per_image: one student for all windows' tokens, instead of one for each window.

    Returns:
        `gmacs_teacher` (encoder, once per view), `gmacs_restore`, `gmacs_fit`, `gmacs_readout`,
        `gmacs_head`, `gmacs_total`, their sum (of an image whose gauge asks for a student: the most
        there is), and `gmacs_paper_convention`: teacher and head, and for each step but one a
        single forward pass of one batch of positions, as the paper counts ("20.5 + 14 x 10").
    """
    parts = eomt_gmacs(teacher)
    grid = (teacher.layers, teacher.grid[0] + query_rows, teacher.grid[1])
    fit = readout = paper = 0.0
    views = 1
    restores = config.adapt.restore and config.fit.variant != "teacher"
    restore = restore_gmacs(teacher) if restores else 0.0
    if config.fit.variant in ("kernel", "ridge"):
        fit = closed_form_gmacs(config, grid, teacher.width)
    elif config.fit.variant not in ("teacher", "restore"):
        students, field = 1.0, grid  # of a window; a student of all windows has all their tokens
        if fit_per_image:
            students, field = 1 / windows, (grid[0], grid[1], round(windows * grid[2]))
        fit = students * fit_gmacs(config, field, teacher.width, literal)
        fit += head_in_fit_gmacs(config, teacher)
        views = config.fit.views
        readout = students * readout_gmacs(config, field, teacher.width, literal)
        one_pass = pass_gmacs(config, field, teacher.width)
        paper = students * max(0, config.fit.steps - 1) * one_pass
    if fit and config.adapt.gauged:
        fit += kernel_gmacs(grid, teacher.width)
    costs = {
        "gmacs_teacher": views * parts["teacher"],
        "gmacs_restore": views * restore,
        "gmacs_fit": fit,
        "gmacs_readout": readout,
        "gmacs_head": parts["head"],
        "gmacs_total": views * (parts["teacher"] + restore) + fit + readout + parts["head"],
        "gmacs_paper_convention": parts["teacher"] + parts["head"] + paper,
    }
    return {name: windows * cost for name, cost in costs.items()}


def head_in_fit_gmacs(config: LQNConfig, teacher: EomtShape) -> float:
    """What the ablations of objective and sampling ask of the frozen head during a fit.

    "entropy": at each step, forward and back to its inputs; the products of masks with pixels and
    with classes have two each. (Transformers takes queries and patches as one tensor: gradients go
    back to both.) "segments": once, to find them.
    """
    head, macs = _eomt_head_macs(teacher), 0
    if config.fit.objective == "entropy":
        masks = teacher.num_queries * teacher.num_patches * 4**teacher.num_upscale_blocks
        macs += config.fit.steps * (2 * head + masks * (teacher.width + 3 * teacher.num_labels))
    if config.fit.sampling == "segments" and config.student.source and config.fit.alpha:
        macs += head
    return macs / 1e9


def restore_gmacs(teacher: EomtShape) -> float:
    """Turning the tokens of each calibrated layer into principal directions and back."""
    layers = len(calibrated_layers(teacher.layers, teacher.num_blocks))
    return layers * 2 * teacher.num_patches * teacher.width**2 / 1e9


def closed_form_gmacs(config: LQNConfig, grid: tuple[int, int, int], feature_dim: int) -> float:
    """The kernel, its product with the tokens and, for "ridge", an LU solve besides."""
    n = grid[1] * grid[2]
    solve = n**3 // 3 + n * n * feature_dim if config.fit.variant == "ridge" else 0
    return kernel_gmacs(grid, feature_dim) + solve / 1e9


def kernel_gmacs(grid: tuple[int, int, int], feature_dim: int) -> float:
    """The kernel matrix over a grid's positions and its product with their tokens: the gauge."""
    return 2 * (grid[1] * grid[2]) ** 2 * feature_dim / 1e9


def _convolution_macs(config: StudentConfig) -> int:
    return config.image_features * _CHANNELS * config.stride**2


def _deep_macs(config: StudentConfig, feature_dim: int) -> int:
    """Per query: every layer after the first."""
    sizes = (*config.widths, feature_dim)
    return sum(n_in * n_out for n_in, n_out in pairwise(sizes))


def _readout_table_rows(config: LQNConfig, grid: tuple[int, int, int]) -> int:
    """The grid's own table; for a source of the user's, distinct values of i, j and l in the last
    layer's addresses and it together."""
    depth, rows, columns = grid
    source = config.fit.readout_source
    if isinstance(source, str):
        sizes = [size + 1 for size in (rows, columns, depth)]
    else:
        values: list[set[float]] = [set(range(1, rows + 1)), set(range(1, columns + 1)), {depth}]
        sizes = [len(axis | {value}) for axis, value in zip(values, source)]
    return sum(sizes[: config.student.axes])


# --- counts of the real thing ---------------------------------------------------------------------

_MATMUL_WORDS = frozenset(
    ("matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "tensordot")
    + ("linear", "bilinear", "conv", "conv1d", "conv2d", "conv3d", "convolution", "einsum")
    + ("attention", "lstm", "gru", "rnn")
)


def _linear_flops(inputs: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(inputs) * weight[0]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# From shapes, a multiply-add is two, as in PyTorch's own registry, which has rules for attention on
# the CPU in some releases and none in others (2.14).
FLOP_RULES: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    **({ONE_DNN_LINEAR: _linear_flops} if ONE_DNN_LINEAR is not None else {}),
}


@dataclass(frozen=True)
class FlopCount:
    """A count: total GMACs, GMACs per operator, and the operators that were not counted."""

    gmacs: float
    by_operator: dict[str, float]
    uncounted: tuple[str, ...]


class UncountedOperatorError(RuntimeError):
    """A matrix product, convolution or attention ran that the counter has no rule for."""


def count_fvcore(model: nn.Module, inputs: tuple[Any, ...]) -> FlopCount:
    """Forward pass of `model(*inputs)` by fvcore, with attention and any two-factor einsum counted.

    Works for models on the meta device too (weights without memory), where a full-size teacher
    takes a second. Norms are included, as fvcore does.

    Raises:
        UncountedOperatorError: an operator that multiplies matrices was not counted.
    """
    with warnings.catch_warnings():
        # fvcore scripts a loss of its own when imported, which PyTorch has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    analysis.set_op_handle("aten::scaled_dot_product_attention", _sdpa_handle)
    analysis.set_op_handle("aten::einsum", _einsum_handle)
    on_meta = any(isinstance(x, Tensor) and x.is_meta for x in inputs)
    tracing = _traceable_meta_convolutions() if on_meta else contextlib.nullcontext()
    with torch.no_grad(), tracing:
        by_operator = {name: count / 1e9 for name, count in analysis.by_operator().items()}
        uncounted = tuple(sorted(analysis.unsupported_ops()))
    refuse_uncounted(uncounted)
    return FlopCount(sum(by_operator.values()), by_operator, uncounted)


def count_torch(function: Callable[[], Any]) -> FlopCount:
    """Whatever `function()` runs, backward passes included, by `FlopCounterMode`, halved to GMACs.

    Raises:
        UncountedOperatorError: an operator that multiplies matrices was not counted (older PyTorch
            has no rule for attention on the CPU and would silently report 0 for it).
    """
    counting = FlopCounterMode(display=False, custom_mapping=FLOP_RULES)
    with _SeenOperators() as seen, counting as counter:
        function()
    rules = counter.flop_registry
    uncounted = tuple(sorted({str(packet) for packet in seen.packets if packet not in rules}))
    refuse_uncounted(uncounted)
    counts = counter.get_flop_counts().get("Global", {})
    by_operator = {str(packet): count / 2e9 for packet, count in counts.items()}
    return FlopCount(sum(by_operator.values()), by_operator, uncounted)


def count_eomt(config: Any, counter: str = "fvcore") -> FlopCount:
    """One forward pass of transformers' EoMT of this configuration, masked attention off.

    The weights are random and live on the meta device: no memory, no arithmetic.

    Args:
        config: a `transformers.EomtConfig` or `EomtDinov3Config`.
        counter: "fvcore" or "torch".
    """
    from transformers.models.auto.modeling_auto import AutoModelForUniversalSegmentation

    with torch.device("meta"):
        model = AutoModelForUniversalSegmentation.from_config(config).eval()
    # Read by the forward pass to decide on masked attention, so it needs a value: 0 = off.
    model.attn_mask_probs = torch.zeros(config.num_blocks)
    height, width = EomtShape.from_config(config).image_size
    image = torch.empty(1, config.num_channels, height, width, device="meta")
    logits = _Logits(model)
    if counter == "fvcore":
        return count_fvcore(logits, (image,))
    if counter == "torch":
        with torch.no_grad():
            return count_torch(lambda: logits(image))
    raise InputError(f"Unknown counter '{counter}'; there are 'fvcore' and 'torch'.")


def clip_on_meta(name: str, image_size: int = 0) -> Any:
    """open_clip's model of that name without weights: no memory, no arithmetic.

    Raises:
        InputError: open_clip has no model of that name.
    """
    import open_clip

    if name not in open_clip.list_models():
        raise InputError(f"open_clip has no model {name!r}; one of them is ViT-B-16-quickgelu")
    size = {"force_image_size": image_size} if image_size else {}
    with torch.device("meta"), _silence():
        return open_clip.create_model(name, pretrained=None, device="meta", **size).eval()


def count_clip(model: Any, counter: str = "fvcore") -> dict[str, FlopCount]:
    """One image's and one prompt's pass through a model of `clip_on_meta`.

    Args:
        counter: "fvcore" or "torch".
    """
    image = torch.empty(1, 3, *model.visual.image_size, device="meta")
    prompt = torch.zeros(1, model.context_length, dtype=torch.int64, device="meta")
    parts = {
        "teacher": (_Encoder(model.encode_image), image),
        "prompt": (_Encoder(model.encode_text), prompt),
    }
    found = {}
    with torch.no_grad(), plain_attention():
        for part, (encoder, given) in parts.items():
            if counter == "fvcore":
                found[part] = count_fvcore(encoder, (given,))
            elif counter == "torch":
                found[part] = count_torch(partial(encoder, given))
            else:
                raise InputError(f"Unknown counter '{counter}'; there are 'fvcore' and 'torch'.")
    return found


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """The fused attention layer of torch.nn has no rule in any counter; its parts have."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """open_clip warns that a model without weights has none."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Encoder(nn.Module):
    """One of a model's functions, for the tracer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.model = function.__self__  # type: ignore[attr-defined]

    def forward(self, given: Tensor) -> Tensor:
        return self.function(given)


class _Logits(nn.Module):
    """Tensors out, for the tracer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values=image)
        return output.masks_queries_logits, output.class_queries_logits


def refuse_uncounted(operators: tuple[str, ...]) -> None:
    """Raise if one of these operators multiplies matrices, going by the words of its name."""
    missed = [name for name in operators if _MATMUL_WORDS & set(re.split(r"[^a-z0-9]+|_", name))]
    if missed:
        raise UncountedOperatorError(f"Not counted, but not free: {', '.join(missed)}.")


def _sdpa_handle(inputs: list[Any], outputs: list[Any]) -> int:
    """softmax(q k^T) v: (..., N, E), (..., S, E), (..., S, V); the softmax is not counted."""
    query, key, value = (_jit_shape(v) for v in inputs[:3])
    return prod(query) * key[-2] + prod(query[:-1]) * value[-2] * value[-1]


def _einsum_handle(inputs: list[Any], outputs: list[Any]) -> int:
    """Two factors: the product of all index sizes. (fvcore's own rule rounds to four digits.)"""
    equation = inputs[0].toIValue().replace(" ", "")
    factors = equation.split("->")[0].split(",")
    if len(factors) != 2 or "." in equation:
        raise UncountedOperatorError(f"No rule to count einsum '{equation}'.")
    shapes = [_jit_shape(v) for v in inputs[1].node().inputs()]
    sizes = {i: n for letters, shape in zip(factors, shapes) for i, n in zip(letters, shape)}
    return prod(sizes.values())


def _jit_shape(value: Any) -> list[int]:
    return value.type().sizes()


class _SeenOperators(TorchDispatchMode):
    """Records every operator that reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: set[Any] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.packets.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _traceable_meta_convolutions() -> Iterator[None]:
    """Lets `torch.jit` trace convolutions of meta tensors, and record them as it does on a CPU.

    PyTorch's meta kernel for convolutions checks shapes in Python, which fails under tracing, and
    bypasses `aten::_convolution`, the only convolution fvcore knows. The first mode calls that
    operator, the second one answers it with an empty tensor of the right shape. Not for other
    devices: under a dispatch mode `torch.jit` would not record their convolutions at all.
    """
    with _CallConvolution(), _EmptyConvolution():
        yield


class _CallConvolution(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        convolutions = (nn.functional.conv2d, nn.functional.conv_transpose2d)
        if func not in convolutions or kwargs:
            return func(*args, **(kwargs or {}))
        if func is nn.functional.conv2d:
            x, weight, bias, stride, padding, dilation, groups = args
            transposed, output_padding = False, (0, 0)
        else:
            x, weight, bias, stride, padding, output_padding, groups, dilation = args
            transposed = True
        geometry = (stride, padding, dilation, transposed, output_padding, groups)
        return torch._convolution(x, weight, bias, *geometry, False, False, False, False)


class _EmptyConvolution(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not torch.ops.aten._convolution.default:
            return func(*args, **(kwargs or {}))
        x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args[:9]
        size, kernel = [int(n) for n in x.shape], [int(n) for n in weight.shape]
        axes = zip(size[2:], kernel[2:], stride, padding, dilation, output_padding)
        if transposed:
            channels = kernel[1] * groups
            out = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + o for n, k, s, p, d, o in axes]
        else:
            channels = kernel[0]
            out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in axes]
        return torch.empty(size[0], channels, *out, dtype=x.dtype, device="meta")

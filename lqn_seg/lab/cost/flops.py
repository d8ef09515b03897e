"""What a method costs, in closed form; `lab.cost.cost` counts the real modules to check it.

Unit: GMACs, 1e9 multiply-adds (fvcore's "FLOPs"), per image or window. Matrix products,
convolutions and attention count; norms, activations, softmax, the optimizer and the sampling of
positions do not. The paper counts "20.5 + 14 x 10" (Sec. 4): the teacher, and 14 forward passes of
one batch of positions (`gmacs_paper_convention`); the other numbers count everything that is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from operator import mul
from typing import Any

from lqn_seg.adapt.calibration import DIRECTIONS, calibrated_layers
from lqn_seg.adapt.methods import parse_ablation
from lqn_seg.core.config import (
    FLAG_FEATURES,
    NO_STUDENT,
    LQNConfig,
    StudentConfig,
    axis_features,
)
from lqn_seg.core.lqn import Grid
from lqn_seg.segmentation.views import DENSITY
from lqn_seg.teachers.dinov2 import Dinov2Teacher
from lqn_seg.teachers.eomt import EomtTeacher

_CHANNELS = 3


# ---- teachers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VitShape:
    """A plain transformer encoder: what its cost depends on."""

    grid: tuple[int, int]  # rows and columns of patches
    patch_values: int  # numbers in a patch; 0 for words, whose embedding is a look-up
    width: int
    layers: int
    mlp_width: int
    prefix: int = 1  # tokens beside the patches (CLS, registers)
    gated_mlp: bool = False  # SwiGLU, which has three matrices instead of two

    @property
    def patches(self) -> int:
        return prod(self.grid)

    def block_macs(self, queries: int = 0) -> int:
        """One block, with queries beside the tokens: q, k, v, out; attention; MLP."""
        tokens = self.patches + self.prefix + queries
        mlp = (3 if self.gated_mlp else 2) * tokens * self.width * self.mlp_width
        return 4 * tokens * self.width**2 + 2 * tokens**2 * self.width + mlp

    @property
    def gmacs(self) -> float:
        embedding = self.patches * self.patch_values * self.width
        return (embedding + self.layers * self.block_macs()) / 1e9


@dataclass(frozen=True, kw_only=True)
class EomtShape(VitShape):
    """An EoMT: a ViT whose last `num_blocks` blocks carry the queries too, and its head.

    Each upscale block doubles the grid (ConvTranspose2d 2x2, then depthwise 3x3).
    """

    image_size: tuple[int, int]
    num_queries: int
    num_blocks: int
    num_labels: int
    num_upscale_blocks: int

    @classmethod
    def from_config(cls, config: Any) -> EomtShape:
        """From an `EomtConfig` or `EomtDinov3Config` of transformers."""
        size, patch = config.image_size, config.patch_size
        height, width = (size, size) if isinstance(size, int) else size
        patch = patch if isinstance(patch, int) else patch[0]
        if config.model_type == "eomt_dinov3":
            mlp_width, gated_mlp = config.intermediate_size, config.use_gated_mlp
        else:
            mlp_width, gated_mlp = int(config.hidden_size * config.mlp_ratio), config.use_swiglu_ffn
            if gated_mlp:  # two thirds, rounded up to a multiple of 8, as transformers does
                mlp_width = (int(mlp_width * 2 / 3) + 7) // 8 * 8
        return cls(
            grid=(height // patch, width // patch),
            patch_values=config.num_channels * patch**2,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            mlp_width=mlp_width,
            prefix=1 + config.num_register_tokens,
            gated_mlp=gated_mlp,
            image_size=(height, width),
            num_queries=config.num_queries,
            num_blocks=config.num_blocks,
            num_labels=config.num_labels,
            num_upscale_blocks=config.num_upscale_blocks,
        )

    @property
    def head_macs(self) -> int:
        """Class and mask MLPs of the queries, the upscaled patches, and queries times pixels."""
        width, queries = self.width, self.num_queries
        classes = queries * width * (self.num_labels + 1)
        pixels, upscale = self.patches, 0
        for _ in range(self.num_upscale_blocks):
            upscale += 4 * pixels * width**2  # ConvTranspose2d: every input meets 4 taps
            pixels *= 4
            upscale += 9 * pixels * width
        return classes + 3 * queries * width**2 + upscale + queries * width * pixels


class LinearShape(EomtShape):
    """A ViT of timm's whose head is a linear classifier of its patches: no queries."""

    @classmethod
    def of(cls, teacher: Dinov2Teacher) -> LinearShape:
        model: Any = teacher.model
        mlp = model.blocks[0].mlp
        return cls(
            grid=teacher.grid,
            patch_values=model.patch_embed.proj.weight[0].numel(),
            width=teacher.width,
            layers=teacher.num_layers,
            mlp_width=mlp.fc2.in_features,
            prefix=model.num_prefix_tokens,
            gated_mlp=mlp.fc1.out_features == 2 * mlp.fc2.in_features,
            image_size=teacher.image_size,
            num_labels=model.head.out_features,
            **dict.fromkeys(("num_queries", "num_blocks", "num_upscale_blocks"), 0),
        )

    @property
    def head_macs(self) -> int:
        return self.patches * self.width * self.num_labels


def teacher_shape(teacher: EomtTeacher | Dinov2Teacher) -> EomtShape:
    """What the cost of a teacher and its head depends on."""
    if isinstance(teacher, EomtTeacher):
        return EomtShape.from_config(teacher.model.config)
    return LinearShape.of(teacher)


def eomt_gmacs(shape: EomtShape) -> dict[str, float]:
    """One forward pass, masked attention off: `teacher` (encoder, all blocks) and `head`."""
    queries = shape.num_blocks * (shape.block_macs(shape.num_queries) - shape.block_macs())
    return {"teacher": shape.gmacs + queries / 1e9, "head": shape.head_macs / 1e9}


def clip_shapes(model: Any) -> dict[str, VitShape]:
    """The image encoder ("teacher") and the text encoder ("prompt") of open_clip's model."""
    visual, text = model.visual, model.transformer
    return {
        "teacher": VitShape(
            grid=visual.grid_size,
            patch_values=_CHANNELS * visual.patch_size[0] ** 2,
            width=visual.transformer.width,
            layers=visual.transformer.layers,
            mlp_width=visual.transformer.resblocks[0].mlp[0].out_features,
        ),
        "prompt": VitShape(
            grid=(1, model.context_length),
            patch_values=0,
            width=text.width,
            layers=text.layers,
            mlp_width=text.resblocks[0].mlp[0].out_features,
            prefix=0,
        ),
    }


def clip_gmacs(model: Any) -> dict[str, float]:
    joint_width = model.visual.output_dim
    return {
        name: shape.gmacs + shape.width * joint_width / 1e9
        for name, shape in clip_shapes(model).items()
    }


# ---- the student ---------------------------------------------------------------------------------


def first_inputs(config: StudentConfig, feature_dim: int) -> int:
    """Features that a student's first layer reads."""
    weights = config.weights(feature_dim).items()
    return sum(s[0] for n, (s, _) in weights if n.startswith("first.") and len(s) == 2)


def parameter_count(config: StudentConfig, feature_dim: int) -> int:
    """Of one student (Table 4's products, and the biases)."""
    return sum(prod(shape) for shape, _ in config.weights(feature_dim).values())


@dataclass(frozen=True)
class PassMacs:
    forward: int
    backward: int


def pass_macs(
    config: StudentConfig,
    feature_dim: int,
    queries: int,
    grid: Grid | None = None,
    guided: int = 0,
    recirculates: bool = False,
) -> PassMacs:
    """One pass as Table 4 states it, `[conv(x) | P(src) | P(dest)]` concatenated for every query;
    or with a grid (L, H, W) as `core.lqn` computes it, the first layer once per distinct row.

    Backward, a product has two of the same size, for its weights and for its input; where the input
    is constant (the image, position codes) only one. Of distinct rows, the image is one, each value
    of i, j and l is one for dest, and to recirculate for src, of which src0 is one more. Queries
    add rows up by a product with the 0/1 matrix of who names what; the way back sums a row's
    gradient over its queries with the same. With a guide, `guided` tokens are read: the queries,
    without those that share one.
    """
    width = config.widths[0]
    convolution = config.image_features * _CHANNELS * config.stride**2
    deep = queries * sum(n_in * n_out for n_in, n_out in pairwise((*config.widths, feature_dim)))
    if grid is None:
        every_query = queries * first_inputs(config, feature_dim) * width + deep
        return PassMacs(convolution + every_query, convolution + 2 * every_query)
    layers, rows, columns = grid
    dests = (rows, columns, layers)[: config.axes]
    sources = [1 + size * recirculates for size in dests]
    roles = [sources, dests] if config.source else [dests]
    features = axis_features(config.position_dim, config.axes)
    codes = sum(FLAG_FEATURES + sum(map(mul, sizes, features)) for sizes in roles)
    image = config.image_features * width
    tables = (codes + (guided * feature_dim if config.guide else 0)) * width
    look_ups = queries * (1 + sum(map(sum, roles))) * width
    return PassMacs(
        forward=convolution + image + tables + look_ups + deep,
        backward=convolution + 2 * image + tables + look_ups + 2 * deep,
    )


def step_macs(config: LQNConfig, grid: Grid, feature_dim: int, literal: bool = False) -> PassMacs:
    """All passes of one step: from Src0, and to recirculate from Src1 and Src2."""
    passes = 3 if config.student.source and config.fit.alpha else 1
    n = config.fit.visited(grid)
    if literal:
        one = pass_macs(config.student, feature_dim, n)
        return PassMacs(passes * one.forward, passes * one.backward)
    # The passes share the first layer's rows, and the destinations, which are what is guided.
    # Views moved by half a patch have their tokens between those of the first.
    finer = 2 if config.views > 1 else 1
    rows = grid[0], finer * grid[1], finer * grid[2]
    return pass_macs(config.student, feature_dim, passes * n, rows, n, passes > 1)


def fit_gmacs(config: LQNConfig, grid: Grid, feature_dim: int, literal: bool = False) -> float:
    step = step_macs(config, grid, feature_dim, literal)
    return config.fit.steps * (step.forward + step.backward) / 1e9


def pass_gmacs(config: LQNConfig, grid: Grid, feature_dim: int) -> float:
    """One forward pass of one step's positions as Table 4 states it: the paper's "10 GFLOPs"."""
    n = config.fit.visited(grid)
    return pass_macs(config.student, feature_dim, n).forward / 1e9


def query_gmacs(config: LQNConfig, grid: Grid, feature_dim: int, literal: bool = False) -> float:
    """One forward pass for all H x W addresses of the last layer."""
    queries = grid[1] * grid[2]
    tabulated = None if literal else (1, *grid[1:])
    return pass_macs(config.student, feature_dim, queries, tabulated, queries, True).forward / 1e9


def fit_bytes(config: LQNConfig, feature_dim: int, lowered: bool = False) -> int:
    """The least memory traffic of a fit, per parameter: once 12 bytes of fresh weights and moments;
    each step the weights forward and backward (8), the gradients (4), and Adam (28). With products
    in two bytes (`lowered`), both are converted (6 each), and read and written there (6)."""
    step = 28 + (12 + 6 if lowered else 12)
    return (12 + config.fit.steps * step) * parameter_count(config.student, feature_dim)


# ---- methods on an EoMT --------------------------------------------------------------------------


def method_gmacs(
    config: LQNConfig, teacher: EomtShape, *, windows: float = 1.0, literal: bool = False
) -> dict[str, float]:
    """Cost per image of a method, by stage, in GMACs.

    Args:
        windows: per image (ADE20K at 512 px: about 1.83 on average; Cityscapes: 2).
        literal: count student passes as Table 4 states them instead of as we compute them.

    Returns:
        `gmacs_teacher`, `gmacs_align` and `gmacs_head` (once per view), `gmacs_fit`, `gmacs_query`
        and `gmacs_total`, their sum (with a student, the most there is); `gmacs_paper_convention`:
        teacher, head, and a single forward pass of one batch of positions for each step but one.
    """
    parts, variant = eomt_gmacs(teacher), config.fit.variant
    word, numbers = parse_ablation(config.ablation)
    query_rows = ceil(teacher.num_queries / teacher.grid[1]) if word == "student-queries" else 0
    grid, width = (teacher.layers, teacher.grid[0] + query_rows, teacher.grid[1]), teacher.width
    fit = query = paper = 0.0
    views = config.views
    align = align_gmacs(teacher) if config.aligns else 0.0
    if variant in ("kernel", "ridge"):
        fit = views * kernel_gmacs(grid, width, solve=variant == "ridge")
    elif variant not in NO_STUDENT:
        students, field = 1.0, grid  # of a window; a student of all windows has all their tokens
        if word == "fit-per-image":
            students, field = 1 / windows, (grid[0], grid[1], round(windows * grid[2]))
        fit = students * fit_gmacs(config, field, width, literal)
        fit += _head_in_fit_macs(config, teacher) / 1e9
        query = students * views * query_gmacs(config, field, width, literal)
        paper = students * max(0, config.fit.steps - 1) * pass_gmacs(config, field, width)
    if fit and config.adapt.mix_by_noise:
        fit += kernel_gmacs(grid, width)
    head = views * parts["head"] + (join_gmacs(teacher, views) if views > 1 else 0.0)
    # An ablation's views are only fitted to.
    passes = numbers[0] if word == "views" and fit else views
    stages = {
        "teacher": passes * parts["teacher"],
        "align": passes * align,
        "fit": fit,
        "query": query,
        "head": head,
    }
    stages["total"] = sum(stages.values())
    stages["paper_convention"] = views * parts["teacher"] + head + paper
    return {f"gmacs_{stage}": windows * cost for stage, cost in stages.items()}


def _head_in_fit_macs(config: LQNConfig, teacher: EomtShape) -> int:
    """What two ablations ask of the frozen head: "segments" once, "entropy" at each step.

    The latter forward and back to the patches, not to the queries.
    """
    word = parse_ablation(config.ablation)[0]
    if word == "entropy":
        masks = teacher.num_queries * teacher.patches * 4**teacher.num_upscale_blocks
        of_queries = teacher.num_queries * teacher.width * (teacher.num_labels + 1)
        of_queries += 3 * teacher.num_queries * teacher.width**2
        both_ways = 2 * teacher.head_macs - of_queries + 2 * masks * teacher.num_labels
        return config.fit.steps * both_ways
    recirculates = config.student.source and config.fit.alpha
    return teacher.head_macs if word == "segments" and recirculates else 0


def join_gmacs(teacher: EomtShape, views: int) -> float:
    """Logits of so many views to one grid: a kernel's product along rows, and one along columns."""
    maps = teacher.num_queries or teacher.num_labels
    known = 2**teacher.num_upscale_blocks
    wanted = max(known, DENSITY)
    height, width = teacher.grid
    macs = wanted * height * known * width * (known * height + wanted * width)
    return views * maps * macs / 1e9


def align_gmacs(teacher: EomtShape) -> float:
    """Turning the tokens of each calibrated layer into its strongest directions and back."""
    layers = len(calibrated_layers(teacher.layers, teacher.num_blocks))
    rank = min(DIRECTIONS, teacher.width)
    return layers * 2 * teacher.patches * teacher.width * rank / 1e9


def kernel_gmacs(grid: Grid, feature_dim: int, solve: bool = False) -> float:
    """The kernel matrix over a grid's positions and its product with their tokens, which is what
    the alignment and "kernel" cost; with `solve` an LU solve too, which is "ridge"."""
    n = grid[1] * grid[2]
    macs = 2 * n**2 * feature_dim + (n**3 // 3 + n**2 * feature_dim if solve else 0)
    return macs / 1e9

"""Every default of the method: student, fit, adaptation, presets, variants. Standard library alone,
so that a mistyped configuration is answered at once."""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from lqn_seg.errors import InputError, nearest

# What stands in for a student as a control: alignment alone, the views' field alone, both, a kernel
# smoother, kernel ridge regression.
CONTROLS = ("restore", "views", "field", "kernel", "ridge")
NO_STUDENT = ("teacher", "restore", "views", "field")
VARIANTS = ("lqn", "lqn-src", "apm", "teacher", *CONTROLS)
ALIASES = {"two-word": "lqn"}
# Features of a location that say whether it is a source or a destination.
FLAG_FEATURES = 2
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")


def axis_features(position_dim: int, axes: int) -> tuple[int, ...]:
    """How the d_p - 2 features of the code fall to i, j (and l): sin-cos pairs, the same number for
    each, the remainder to the last. An `InputError` where an axis would have none."""
    if position_dim % 2:
        raise InputError(f"position_dim must be even (sin-cos pairs), got {position_dim}")
    pairs = (position_dim - FLAG_FEATURES) // 2
    if pairs < axes:
        least = 2 * axes + FLAG_FEATURES
        raise InputError(f"position_dim must be at least {least} for {axes} axes: {position_dim}")
    each = pairs // axes
    return (2 * each,) * (axes - 1) + (2 * (pairs - each * (axes - 1)),)


@dataclass(frozen=True)
class StudentConfig:
    """Architecture of a student; the defaults are Table 4's."""

    input_size: int = 448  # s, side of the student's own square image, in pixels
    stride: int = 14  # and kernel size, of the one convolution filter
    widths: tuple[int, ...] = (4096, 4096, 4096, 2048, 1024)  # hidden
    position_dim: int = 768  # d_p, features of a location: its code and the flag
    source: bool = (
        True  # whether it reads a source location (LQN) or only a destination (LQN-[src])
    )
    axes: Literal[2, 3] = 3  # of addresses: (i, j, l), or (i, j) (APM)
    guide: float = 0.0  # relative depth of the layer whose token it reads at dest too; 0 reads none
    # N(0, 0.01^2) as in the paper, or He's with a last layer ten times smaller. Biases are 0.
    init: Literal["normal", "he"] = "normal"

    def __post_init__(self) -> None:
        if self.stride < 1 or self.input_size < self.stride or self.input_size % self.stride:
            raise InputError(
                f"student: input_size {self.input_size} must be a multiple of stride {self.stride}"
            )
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"student: widths must be positive, and at least one: {self.widths}")
        if not 0 <= self.guide <= 1:
            raise InputError(f"student: guide must be a share of the depth, got {self.guide}")
        if self.axes not in (2, 3):
            raise InputError(f"student: axes must be 2 or 3, got {self.axes!r}")
        nearest(self.init, ("normal", "he"), "init")
        axis_features(self.position_dim, self.axes)

    @property
    def image_features(self) -> int:
        """h/s * w/s, the length of the flattened convolution."""
        return (self.input_size // self.stride) ** 2

    @property
    def later_layers(self) -> list[str]:
        """Names of the layers after the first."""
        return [f"hidden{k}" for k in range(1, len(self.widths))] + ["output"]

    def weights(self, feature_dim: int) -> dict[str, tuple[tuple[int, ...], float]]:
        """Name -> shape, (inputs, outputs), and standard deviation of the initial values.

        The first matrix is kept as blocks of its inputs: image, source, destination, guide.
        """
        blocks = {"image": self.image_features, "destination": self.position_dim}
        blocks |= {"source": self.position_dim} if self.source else {}
        blocks |= {"guide": feature_dim} if self.guide else {}
        first, conv = self.widths[0], 3 * self.stride**2

        def deviation(fan_in: int, scale: float = 1.0) -> float:
            return scale * math.sqrt(2 / fan_in) if self.init == "he" else 0.01

        spread = deviation(sum(blocks.values()))
        table: dict[str, tuple[tuple[int, ...], float]] = {
            "conv.weight": ((conv,), deviation(conv)),
            "conv.bias": ((1,), 0.0),
            **{f"first.{n}": ((k, first), spread) for n, k in blocks.items()},
            "first.bias": ((first,), 0.0),
        }
        for name, (k, m) in zip(self.later_layers, pairwise((*self.widths, feature_dim))):
            table[f"{name}.weight"] = (k, m), deviation(k, 0.1 if name == "output" else 1.0)
            table[f"{name}.bias"] = (m,), 0.0
        return table


@dataclass(frozen=True)
class FitConfig:
    """How a student is fitted; the defaults are the paper's.

    Variants: "lqn" (both losses), "lqn-src" (no source, no recirculation), "apm" (last layer, 2-D
    addresses, no source), "teacher" (no student) and `CONTROLS`. Change it by `with_variant`.
    """

    variant: str = "lqn"
    steps: int = 15  # N, Adam updates
    learning_rate: float = 1e-4
    alpha: float = 0.7  # weight of the recirculation loss
    positions_per_step: int | float = 196  # n; a float in (0, 1] is a fraction of the fitted tokens
    # Fitted layers, 1-based; None is all. The others can be queried. "apm" fits the last one.
    layers: tuple[int, ...] | Literal["last"] | None = None
    # "layer" standardises targets per layer and feature over positions, and undoes it in a query.
    target_norm: Literal["none", "layer"] = "none"
    # Of the products after the first layer, over float32 weights; "auto" is bfloat16 where the
    # hardware has it.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        nearest(self.variant, VARIANTS, "variant")
        nearest(self.target_norm, ("none", "layer"), "target_norm")
        nearest(self.precision, ("auto", "float32", "bfloat16"), "precision")
        if isinstance(self.layers, str):
            nearest(self.layers, ("last",), "layers")
        if self.steps < 0:
            raise InputError(f"steps must not be negative, got {self.steps}")
        amount = self.positions_per_step
        if isinstance(amount, float) and not 0.0 < amount <= 1.0:
            raise InputError(f"positions_per_step: a fraction must be in (0, 1], got {amount}")
        if not isinstance(amount, float) and amount < 1:
            raise InputError(f"positions_per_step: a count must be at least 1, got {amount}")

    def fitted_layers(self, depth: int) -> tuple[int, ...]:
        """Ascending.

        Raises:
            InputError: there is none, or one is not in 1..depth.
        """
        if self.layers == "last" or self.variant == "apm":
            return (depth,)
        layers = tuple(sorted(set(range(1, depth + 1) if self.layers is None else self.layers)))
        if not layers or layers[0] < 1 or layers[-1] > depth:
            raise InputError(f"layers must be among 1..{depth}, got {self.layers}")
        return layers

    def visited(self, grid: tuple[int, int, int]) -> int:
        """n, the positions of a grid (L, H, W) that one step visits."""
        amount, fitted = self.positions_per_step, (len(self.fitted_layers(grid[0])), *grid[1:])
        return max(1, round(amount * math.prod(fitted))) if isinstance(amount, float) else amount


@dataclass(frozen=True)
class AdaptConfig:
    """What happens before the fit and after it; the defaults are the paper's: nothing."""

    align: bool = False  # token statistics, while a calibrated teacher runs: `core.alignment`
    # Mix the student's tokens in with weight = noise fraction of the last layer (0 without a
    # calibration); otherwise they replace the teacher's.
    mix_by_noise: bool = False
    # Views of the image, each with a pass of the teacher: itself, and moved by half a patch.
    views: Literal[1, 2, 4] = 1

    def __post_init__(self) -> None:
        if self.views not in (1, 2, 4):
            raise InputError(f"views must be 1, 2 or 4, got {self.views!r}")


@dataclass(frozen=True)
class LQNConfig:
    """A student, how it is fitted, what is done with its tokens; and an ablation, by name
    (`lqn_seg.adapt.methods`).

    Raises:
        InputError: the student's inputs are not those of the variant (`with_variant` sets both).
    """

    student: StudentConfig = field(default_factory=StudentConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    ablation: str = "none"

    @property
    def views(self) -> int:
        """How many views are seen: ablations and the teacher itself have one."""
        alone = self.ablation != "none" or self.fit.variant == "teacher"
        return 1 if alone else self.adapt.views

    @property
    def aligns(self) -> bool:
        """Whether the teacher's tokens are aligned, where it has been calibrated."""
        return self.adapt.align and self.fit.variant not in ("teacher", "views")

    def __post_init__(self) -> None:
        variant = self.fit.variant
        expected = {"lqn": (True, 3), "lqn-src": (False, 3), "apm": (False, 2)}.get(variant)
        if expected and expected != (self.student.source, self.student.axes):
            raise InputError(
                f"variant {variant!r} needs a student with source={expected[0]} and "
                f"axes={expected[1]}; use with_variant(config, {variant!r})"
            )


def with_variant(config: LQNConfig, name: str) -> LQNConfig:
    """The same recipe as another variant ("two-word" is "lqn"); an `InputError` of another name."""
    name = nearest(ALIASES.get(name, name), (*VARIANTS, *ALIASES), "variant")
    student = replace(config.student, source=name == "lqn", axes=2 if name == "apm" else 3)
    adapt = config.adapt
    if name == "restore":
        adapt = replace(adapt, align=True, views=1)
    elif name in ("views", "field"):
        adapt = replace(adapt, align=name == "field", views=max(adapt.views, 2))
    return replace(config, student=student, fit=replace(config.fit, variant=name), adapt=adapt)


_SLIM = StudentConfig(widths=(4096, 2048, 1024))

PRESETS: dict[str, LQNConfig] = {
    # The paper's recipe to the letter: Table 4, N(0, 0.01^2), 15 steps of 1e-4, teacher's units.
    "paper": LQNConfig(),
    # The same without the two 4096 x 4096 layers: about the 25 M parameters the text speaks of.
    "slim": LQNConfig(student=_SLIM),
    # A recipe whose student learns its image: standardised targets, He initialisation, larger and
    # more steps. It becomes the teacher again, and so gains nothing.
    "distill": LQNConfig(
        student=replace(_SLIM, init="he"),
        fit=FitConfig(steps=250, learning_rate=1e-3, target_norm="layer"),
    ),
    # The one to switch on: statistics alignment, two views, and a student of all their layers,
    # guided by an early one and mixed in by the noise fraction. Without recirculation: it did not
    # help, and it triples the passes (REPORT.md).
    "default": LQNConfig(
        student=StudentConfig(widths=(1024, 1024), init="he", guide=0.125),
        fit=FitConfig(steps=40, learning_rate=1e-3, alpha=0.0, target_norm="layer"),
        adapt=AdaptConfig(align=True, mix_by_noise=True, views=2),
    ),
}


def preset(name: str) -> LQNConfig:
    """The preset of that name; an `InputError` suggests the nearest one."""
    return PRESETS[nearest(name, tuple(PRESETS), "preset")]

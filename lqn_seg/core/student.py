"""The student of Table 4: one small MLP per image, B of them side by side.

    [conv(x) | P(src), flag 0 | P(dest), flag 1] -> Linear + ReLU, ... -> Linear -> token at dest

Two facts about the first layer save most of its work. It is linear, so it can be applied to the
three parts of its input apart; and conv(x) is the same for every query, while P is separable
(positions.py), so each part has a handful of distinct rows: one for the image, one per axis value
for either location. Those rows are projected once, and a query's first hidden layer is the sum of
the rows it names. The concatenation is never formed.

All weights of B students live in one flat (B, P) buffer, their gradients in another.
Shapes: B students, n queries, R table rows, d_p = position_dim, d_c = feature_dim.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lqn_seg.core.config import StudentConfig
from lqn_seg.core.fast.products import linear, product
from lqn_seg.core.positions import AddressTable
from lqn_seg.core.random import CounterRandom
from lqn_seg.core.sampling import Draw

# Floats to which every parameter is aligned in the flat buffer: 64 bytes, a cache line.
_ALIGNMENT = 16
_CHANNELS = 3


def parameter_count(config: StudentConfig, feature_dim: int) -> int:
    """Parameters of one student, in closed form (Table 4's products, and the biases)."""
    inputs = first_inputs(config, feature_dim)
    sizes = (inputs, *config.widths, feature_dim)
    linear = sum(n_in * n_out + n_out for n_in, n_out in pairwise(sizes))
    return _CHANNELS * config.stride**2 + 1 + linear


def first_inputs(config: StudentConfig, feature_dim: int) -> int:
    """Features that the first layer reads: image, locations and guide."""
    guide = feature_dim if config.guide else 0
    return config.image_features + config.locations * config.position_dim + guide


def parameter_shapes(config: StudentConfig, feature_dim: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the flat buffer.

    The first layer's matrix is kept as its column blocks: "first.image", "first.source",
    "first.destination".
    """
    first, last = config.widths[0], config.widths[-1]
    shapes: dict[str, tuple[int, ...]] = {
        "conv.weight": (_CHANNELS * config.stride**2,),
        "conv.bias": (1,),
        "first.image": (first, config.image_features),
        "first.destination": (first, config.position_dim),
    }
    if config.locations == 2:
        shapes["first.source"] = (first, config.position_dim)
    if config.guide:
        shapes["first.guide"] = (first, feature_dim)
    shapes["first.bias"] = (first,)
    for index, (n_in, n_out) in enumerate(pairwise(config.widths), start=1):
        shapes[f"hidden{index}.weight"] = (n_out, n_in)
        shapes[f"hidden{index}.bias"] = (n_out,)
    shapes["output.weight"] = (feature_dim, last)
    shapes["output.bias"] = (feature_dim,)
    return shapes


class Students:
    """B independent students over flat float32 storage, differentiable in `parameters`.

    Attributes:
        parameters: (B, P) leaf tensor; P is padded so that every weight starts on a cache line.
        weights: name -> (B, *shape), views of `parameters`.
        gradients: (B, P), what a backward pass writes and returns.
        dtype: of the matrix products of the layers after the first, and of the sums over queries on
            the way back; the first layer is small and its products are float32. Weights are
            lowered to it once per forward pass, gradients raised from it once per backward pass,
            in storage that stays: fresh memory of that size costs as much as the conversion.
    """

    def __init__(
        self,
        config: StudentConfig,
        feature_dim: int,
        batch: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.feature_dim, self.batch, self.dtype = config, feature_dim, batch, dtype
        self._later_layers = [f"hidden{k}" for k in range(1, len(config.widths))] + ["output"]
        shapes = parameter_shapes(config, feature_dim)
        sizes = {name: -(-math.prod(s) // _ALIGNMENT) * _ALIGNMENT for name, s in shapes.items()}
        total = sum(sizes.values())
        self.parameters = torch.zeros(batch, total, device=device, requires_grad=True)
        self.gradients = torch.zeros(batch, total, device=device)
        self.weights = _views(self.parameters.detach(), shapes, sizes)
        # What the products read and write: of the layers after the first, which come last in the
        # flat buffers, lowered copies.
        later = {n: s for n, s in sizes.items() if n.split(".")[0] in self._later_layers}
        later_total = sum(later.values())
        self._lowered, self._lowered_gradients = (
            _Lowered(flat[:, total - later_total :], dtype)
            for flat in (self.parameters.detach(), self.gradients)
        )
        self._operands = self.weights | _views(self._lowered.low, shapes, later)
        self._gradients = _views(self.gradients, shapes, sizes)
        self._gradients |= _views(self._lowered_gradients.low, shapes, later)

    def reset(self, random: CounterRandom) -> None:
        """Fresh weights: nothing of the last image is left."""
        flat = self.parameters.detach()
        random.normal((flat.shape[1],), draw=Draw.WEIGHTS, out=flat)
        for name, weight in self.weights.items():
            weight.mul_(initial_deviation(self.config, name, self.feature_dim))

    def rows(self, table: AddressTable, source: Tensor | None, destination: Tensor) -> Tensor:
        """Queries as rows of the stacked first layer: image | source table | destination table.

        Args:
            source, destination: (..., axes) int64 rows of the address table.

        Returns:
            (..., 1 + k axes) int64 for k locations.
        """
        parts = [torch.zeros_like(destination[..., :1])]
        if source is not None:
            parts.append(source + 1)
            destination = destination + len(table.source)
        parts.append(destination + 1)
        return torch.cat(parts, dim=-1)

    def __call__(
        self, patches: Tensor, table: AddressTable, rows: Tensor, guide: Tensor | None = None
    ) -> Tensor:
        """Predicted tokens of n queries per student.

        Differentiable in `parameters` only; a graph holds one call and is walked back once, since
        all calls share the buffer `gradients`.

        Args:
            patches: (B, h/s * w/s, 3 s s), from `image_patches`.
            table: the address table that `rows` refer to.
            rows: (B, n, .), from `self.rows`.
            guide: (B, m, d_c) tokens that guide the queries; n is a multiple of m, and the queries
                m apart share one.

        Returns:
            (B, n, d_c) float32.
        """
        tokens: Tensor = _Students.apply(self.parameters, self, patches, table, rows, guide)
        return tokens

    def forward(
        self, patches: Tensor, table: AddressTable, rows: Tensor, guide: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The tokens; conv(x); and the input of every layer but the first, for the way back."""
        self._lowered.lower()
        w = self._operands
        convolved = torch.baddbmm(w["conv.bias"][:, None], patches, w["conv.weight"][..., None])
        stack = [linear(convolved.mT, w["first.image"], w["first.bias"])]
        stack += [
            product(codes.expand(self.batch, -1, -1), w[name].mT)
            for codes, name in self._locations(table)
        ]
        stacked = torch.cat(stack, dim=1)  # (B, 1 + k R, widths[0])
        first = torch.arange(self.batch, device=rows.device) * stacked.shape[1]
        look_ups = (rows + first[:, None, None]).flatten(0, 1)
        hidden = F.embedding_bag(look_ups, stacked.flatten(0, 1), mode="sum")
        hidden = hidden.unflatten(0, (self.batch, -1))
        if guide is not None:
            guided = product(guide, w["first.guide"].mT)
            hidden.unflatten(1, (-1, guide.shape[1])).add_(guided[:, None])
        inputs = [hidden.relu_().to(self.dtype)]
        for name in self._later_layers:
            hidden = linear(inputs[-1], w[f"{name}.weight"], w[f"{name}.bias"])
            inputs.append(hidden.relu_() if name != "output" else hidden)
        return inputs.pop().float(), convolved, inputs

    def backward(
        self,
        gradient: Tensor,
        patches: Tensor,
        table: AddressTable,
        rows: Tensor,
        guide: Tensor | None,
        convolved: Tensor,
        inputs: list[Tensor],
    ) -> Tensor:
        """`gradients` (B, P), from the loss's gradient (B, n, d_c) by the tokens."""
        w, g = self._operands, self._gradients
        delta = gradient.to(self.dtype)
        for name, layer_input in zip(reversed(self._later_layers), reversed(inputs)):
            product(delta.mT, layer_input, out=g[f"{name}.weight"])
            torch.sum(delta, dim=1, out=g[f"{name}.bias"])
            delta = product(delta, w[f"{name}.weight"])
            delta = torch.ops.aten.threshold_backward(delta, layer_input, 0)  # ReLU's
        self._lowered_gradients.restore()
        self._first_layer_backward(delta, patches, table, rows, guide, convolved)
        return self.gradients

    def _first_layer_backward(
        self,
        delta: Tensor,
        patches: Tensor,
        table: AddressTable,
        rows: Tensor,
        guide: Tensor | None,
        convolved: Tensor,
    ) -> None:
        """Gradients of the first layer and the filter, from (B, n, widths[0]) `delta`."""
        w, g = self._operands, self._gradients
        # A query's first hidden layer is the sum of its rows, so a row's gradient is the sum over
        # its queries: a product with the 0/1 matrix of who reads what, the same sum on every run.
        locations = self._locations(table)
        sizes = [1] + [len(table.source)] * len(locations)
        reads = delta.new_zeros(*rows.shape[:2], sum(sizes)).scatter_(2, rows, 1.0)
        delta_image, *deltas = product(reads.mT, delta).float().split(sizes, dim=1)
        if guide is not None:
            shared = delta.float().unflatten(1, (-1, guide.shape[1])).sum(1)
            product(shared.mT, guide, out=g["first.guide"])
        for (codes, name), delta_codes in zip(locations, deltas):
            product(delta_codes.mT, codes.expand(self.batch, -1, -1), out=g[name])
        if self.config.source and self.config.combine == "add":
            g["first.destination"].add_(deltas[0].mT @ table.source)
        g["first.bias"].copy_(delta_image.squeeze(1))
        torch.mul(delta_image.mT, convolved.mT, out=g["first.image"])
        delta_convolved = delta_image @ w["first.image"]  # (B, 1, h/s * w/s)
        g["conv.weight"].copy_((delta_convolved @ patches).squeeze(1))
        g["conv.bias"].copy_(delta_convolved.sum(dim=2))

    def _locations(self, table: AddressTable) -> list[tuple[Tensor, str]]:
        """The codes of each location that is read, and the weights that read them."""
        locations = [(table.destination, "first.destination")]
        if self.config.source:
            added = self.config.combine == "add"
            locations.insert(0, (table.source, "first.destination" if added else "first.source"))
        return locations


class _Students(torch.autograd.Function):
    """`Students.forward` and `.backward` as one differentiable function of the flat parameters.

    By hand, because the gradients then go straight to their places in the flat buffer: no zeroing,
    no accumulation, no graph of thirty nodes, which is what a small student's step otherwise spends
    beside its matrix products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        parameters: Tensor,
        students: Students,
        patches: Tensor,
        table: AddressTable,
        rows: Tensor,
        guide: Tensor | None,
    ) -> Tensor:
        tokens, convolved, inputs = students.forward(patches, table, rows, guide)
        ctx.students, ctx.saved = students, (patches, table, rows, guide, convolved, inputs)
        return tokens

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.students.backward(gradient, *ctx.saved), None, None, None, None, None


class _Lowered:
    """A (B, Q) float32 buffer, and `low`, its copy in another dtype (itself in the same)."""

    def __init__(self, full: Tensor, dtype: torch.dtype) -> None:
        self.full = full
        self.low = full if dtype == full.dtype else torch.zeros_like(full, dtype=dtype)

    def lower(self) -> None:
        if self.low is not self.full:
            self.low.copy_(self.full)

    def restore(self) -> None:
        if self.low is not self.full:
            self.full.copy_(self.low)


def _views(
    flat: Tensor, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int]
) -> dict[str, Tensor]:
    """The pieces of a flat buffer by the names of `sizes`, each (B, *shape)."""
    pieces = zip(sizes, flat.split(list(sizes.values()), dim=1))
    return {
        name: piece[:, : math.prod(shapes[name])].unflatten(1, shapes[name])
        for name, piece in pieces
    }


def image_patches(images: Tensor, stride: int) -> Tensor:
    """(B, 3, s, s) images as the convolution sees them: (B, h/s * w/s, 3 * stride * stride)."""
    return F.unfold(images, kernel_size=stride, stride=stride).mT.contiguous()


def initial_deviation(config: StudentConfig, name: str, feature_dim: int) -> float:
    """Standard deviation of a parameter's initial values."""
    layer, kind = name.split(".")
    if kind == "bias":
        return 0.0
    if config.init == "normal":
        return 0.01
    fan_in = {
        "conv": _CHANNELS * config.stride**2,
        "first": first_inputs(config, feature_dim),
        "output": config.widths[-1],
    }.get(layer)
    if fan_in is None:
        fan_in = config.widths[int(layer.removeprefix("hidden")) - 1]
    return math.sqrt(2.0 / fan_in) * (0.1 if layer == "output" else 1.0)

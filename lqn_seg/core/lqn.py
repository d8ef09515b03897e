"""The Layer Query Network, from the paper: addresses, student, binding, recirculation, fit, query.

    reset S; N times: sample dest, src1, src2; loss L_B + alpha L_R; one Adam step     (Algorithm 1)
    query: S(src0, (i, j, L), x) for all (i, j)

An *address* is (i, j, l) = (row, column, layer), 1-based; l = 1..L are the outputs of the teacher's
blocks. 0 is off the grid: src0 = (0, 0, 0) is the constant source of binding and query. Queries may
be fractional. B images have B independent students, fitted side by side; nothing that depends on an
image outlives it.

Shapes: L x H x W grid of tokens Y, D = d_c features; n addresses a step, N steps; d_p features of
an encoded address; R rows of an address table; w hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lqn_seg.core.config import LQNConfig, axis_features
from lqn_seg.core.precision import DTYPES, operand_precision, resolve_precision
from lqn_seg.core.random import RandomKey, Stream, generator
from lqn_seg.core.view import View
from lqn_seg.errors import InputError

Grid = tuple[int, int, int]  # (L, H, W)
Sampler = Callable[[int, RandomKey], Tensor]  # see `StudentFitter.uniform`
Loss = Callable[[Tensor, Tensor], Tensor]  # see `mean_square`
ANCHOR = (0.0, 0.0, 0.0)  # src0
SOURCE, DESTINATION = 0, 1  # the flags of Eq. 2
QUERY_FLOATS = 1 << 26  # of hidden layer that a query holds at one go


def axis_code(values: Tensor, features: int) -> Tensor:
    """(...) coordinates to (..., features) sinusoidal codes (Vaswani et al., 2017): pair k of K is
    (sin, cos) of value x 10000^(-k / K)."""
    pairs = features // 2
    k = torch.arange(pairs, dtype=torch.float64, device=values.device)
    angles = values.float()[..., None] * (10000.0 ** (-k / pairs)).float()
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


class Table(NamedTuple):
    """Codes of the coordinates that some addresses have, for the role of source or destination.

    The code of an address (Eq. 2) concatenates the codes of i, j, l and the flag, so what is linear
    in it is the *sum* of three rows, one for each coordinate, each computed once.

    codes: (R_i, ...), (R_j, ...) and (R_l, ...) of the values along each axis. Nothing in them is
        learnt.
    flag: (1, 2) its sin and cos; it counts with the rows of i.
    values: along each axis, ascending.
    """

    codes: Sequence[Tensor]
    flag: Tensor
    values: Sequence[Tensor]

    @classmethod
    def of(cls, values: Sequence[Tensor], position_dim: int, flag: int) -> Table:
        """Of the values along each axis, in the role of the flag."""
        widths = axis_features(position_dim, len(values))
        codes = [axis_code(axis, width) for axis, width in zip(values, widths)]
        return cls(codes, codes[0].new_tensor([[math.sin(flag), math.cos(flag)]]), values)

    def rows(self, weight: Tensor) -> Tensor:
        """(B, R, w) of all coordinates, what a layer with (B, d_p, w) weights makes of them."""
        codes = [*self.codes, self.flag]
        blocks = weight.split([code.shape[1] for code in codes], 1)
        i, *others, flag = (code @ block for code, block in zip(codes, blocks))
        return torch.cat([i + flag, *others], 1)

    def names(self, addresses: Tensor) -> Tensor:
        """(B, n, 3) addresses to (B, n, R): 1 at the rows that add up to what is made of each."""
        columns, first = [], 0
        for axis, values in enumerate(self.values):
            columns.append(first + torch.searchsorted(values, addresses[..., axis].contiguous()))
            first += len(values)
        rows = torch.stack(columns, -1)  # (B, n, axes)
        return self.flag.new_zeros(*rows.shape[:2], first).scatter_(2, rows, 1.0)


class Students:
    """B students S(src, dest, x), each an MLP with weights of its own (Table 4):

        [conv(x) | P(src) | P(dest) | guide] -> Linear + ReLU, ... -> Linear -> token at dest

    Attributes:
        weights: name -> (B, *shape) float32; the first matrix in blocks of its inputs.
        dtype: of the matrix products after the first layer.
    """

    def __init__(self, fitter: StudentFitter, keys: Sequence[RandomKey]) -> None:
        self.config, self.dtype = fitter.config.student, DTYPES[fitter.precision]
        random = [generator(key, Stream.WEIGHTS, fitter.device) for key in keys]
        self.weights = {}
        for name, (shape, deviation) in self.config.weights(fitter.feature_dim).items():
            drawn = [torch.randn(shape, generator=g, device=fitter.device) for g in random]
            self.weights[name] = torch.stack(drawn).mul_(deviation).requires_grad_()

    def tables(self, sources: Sequence[Tensor], dests: Sequence[Tensor]) -> list[Table]:
        """Of the locations that the students read, by their values along each axis: src, unless
        they have none, and dest."""
        roles = [(SOURCE, sources), (DESTINATION, dests)][not self.config.source :]
        return [Table.of(values, self.config.position_dim, flag) for flag, values in roles]

    def __call__(
        self,
        patches: Tensor,
        tables: Sequence[Table],
        source: Tensor,
        dest: Tensor,
        guide: Tensor | None,
    ) -> Tensor:
        """Tokens (B, n, D) at (B, n, 3) addresses.

        Args:
            patches: (B, h/s * w/s, 3 s s) of the images.
            tables: of all coordinates of the addresses.
            guide: (B, m, D) tokens; n is a multiple of m, and the addresses m apart share one.
        """
        w, k = self.weights, len(tables)
        x = torch.baddbmm(w["conv.bias"][:, None], patches, w["conv.weight"][..., None])
        image = torch.baddbmm(w["first.bias"][:, None], x.mT, w["first.image"])  # (B, 1, w)
        blocks = ("first.source", "first.destination")[-k:]
        rows = [table.rows(w[block]) for table, block in zip(tables, blocks)]  # (B, R, w) each
        named = [table.names(where) for table, where in zip(tables, (source, dest)[-k:])]
        names = F.pad(torch.cat(named, -1), (1, 0), value=1.0)  # (B, n, 1 + k R)
        hidden = names @ torch.cat([image, *rows], 1)  # (B, n, w)
        if guide is not None:
            shared = (guide @ w["first.guide"])[:, None]  # (B, 1, m, w)
            hidden = (hidden.unflatten(1, (-1, guide.shape[1])) + shared).flatten(1, 2)
        for name in self.config.later_layers:
            weight, bias = (w[f"{name}.{kind}"].to(self.dtype) for kind in ("weight", "bias"))
            hidden = torch.baddbmm(bias[:, None], hidden.relu().to(self.dtype), weight)
        return hidden.float()


def mean_square(tokens: Tensor, targets: Tensor) -> Tensor:
    """(B, n, D) to (B,): L_B of S(src0, dest, x) and Y[dest], L_R of S(src1, dest, x) and
    S(src2, dest, x) (Eqs. 3, 4). Means, not sums (section 3.2.2): one scale for every n and D."""
    return F.mse_loss(tokens, targets, reduction="none").mean((1, 2))


class StudentFitter:
    """Fits students to token fields of one shape (L, H, W) with `feature_dim` = D features.

    Raises:
        InputError: the variant has no student, or the recipe names layers the grid does not have.
    """

    def __init__(
        self, config: LQNConfig, grid: Grid, feature_dim: int, device: torch.device | str = "cpu"
    ) -> None:
        if config.fit.variant not in ("lqn", "lqn-src", "apm"):
            raise InputError(f"variant {config.fit.variant!r} has no student to be fitted")
        self.config, self.grid, self.feature_dim = config, grid, feature_dim
        self.device = torch.device(device)
        self.layers = config.fit.fitted_layers(grid[0])  # m
        self.precision = resolve_precision(config.fit.precision, self.device)
        self.recirculates = config.student.source and config.fit.alpha > 0

    def fit(
        self,
        images: Tensor,
        fields: Tensor,
        keys: Sequence[RandomKey],
        views: Sequence[tuple[Tensor, Tensor, Sequence[Tensor]]] = (),
        sampler: Sampler | None = None,
        binding: Loss = mean_square,
        coordinates: Sequence[Tensor] = (),
        students: type[Students] = Students,
    ) -> FittedStudents:
        """Fit B fresh students, one per image (Algorithm 1).

        Args:
            images: (B, 3, s, s), normalised, s the student's `input_size`.
            fields: (B, L, H, W, D) tokens of the teacher.
            keys: B random keys.
            views: images, fields and coordinates of further views; step k sees view k mod their
                number.
            sampler: what the steps visit, in place of `uniform`.
            binding: L_B of tokens and targets.
            coordinates: of the grid's rows (H,) and columns (W,); empty for 1..H and 1..W.

        Raises:
            InputError: a shape does not fit.
            RuntimeError: called under `torch.inference_mode()`.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("a fit needs gradients, which torch.inference_mode forbids")
        shape, fit = (len(keys), *self.grid, self.feature_dim), self.config.fit
        seen = [
            View.of(x.to(self.device), y.to(self.device), self.config, self.layers, shape, where)
            for x, y, where in ((images, fields, coordinates), *views)
        ]
        fitted = FittedStudents(self, students(self, keys), seen)
        weights = list(dict.fromkeys(fitted.students.weights.values()))
        fused = self.device.type != "meta"  # which only counts
        adam = torch.optim.Adam(weights, fit.learning_rate, fit.betas, fit.eps, fused=fused)
        visits = [(sampler or self.uniform)(b, key) for b, key in enumerate(keys)]
        losses = [torch.zeros(len(keys), 0, device=self.device)]
        with torch.enable_grad(), operand_precision(self.device):
            for step, indices in enumerate(torch.stack(visits, 2).unbind(1)):  # (1 or 3, B, n)
                loss = fitted.loss(seen[step % len(seen)], indices, binding)
                adam.zero_grad()
                loss.sum().backward()
                adam.step()
                losses.append(loss.detach()[:, None])
        fitted.loss_curve = torch.cat(losses, 1)
        return fitted

    def uniform(self, student: int, key: RandomKey) -> Tensor:
        """(1 or 3, N, n) indices among the m H W fitted tokens, uniform, with replacement, fresh
        each step: dest and, to recirculate, src1 and src2."""
        sources = (Stream.SOURCE_1, Stream.SOURCE_2) if self.recirculates else ()
        shape = (self.config.fit.steps, self.config.fit.visited(self.grid))
        streams = [generator(key, kind, self.device) for kind in (Stream.DESTINATION, *sources)]
        high, device = len(self.layers) * self.grid[1] * self.grid[2], self.device
        drawn = [torch.randint(high, shape, generator=g, device=device) for g in streams]
        return torch.stack(drawn)


class FittedStudents:
    """B students, each fitted to one image. `loss_curve` is (B, N), the loss before each update."""

    loss_curve: Tensor

    def __init__(self, fitter: StudentFitter, students: Students, views: Sequence[View]) -> None:
        self.fitter, self.students, self.views, self.view = fitter, students, views, views[0]
        layers = torch.arange(1, fitter.grid[0] + 1.0, device=fitter.device)
        rows, columns = self.view.rows, self.view.columns
        if len(views) > 1:
            rows, columns = (
                torch.cat([getattr(v, axis) for v in views]).unique()
                for axis in ("rows", "columns")
            )
        values = (rows, columns, layers)[: fitter.config.student.axes]
        dests = [axis.sort()[0] for axis in values]
        # Without recirculation src0 is the only source.
        sources = [F.pad(v, (1, 0)) if fitter.recirculates else v.new_zeros(1) for v in dests]
        self.tables = students.tables(sources, dests)

    @property
    def finite(self) -> Tensor:
        """(B,) bool on the CPU, whether a student's losses and weights all are."""
        values = (self.loss_curve, *self.students.weights.values())
        return torch.stack([x.flatten(1).sum(1) for x in values]).isfinite().all(0).cpu()

    def loss(self, view: View, indices: Tensor, binding: Loss = mean_square) -> Tensor:
        """(B,) L_B + alpha L_R (Eq. 5) at (1 or 3, B, n) indices among the fitted tokens."""
        dest, *sources = view.addresses[indices].unbind(0)  # (B, n, 3) each
        source = torch.cat([torch.zeros_like(dest), *sources], 1)  # src0, src1, src2
        where = (source, dest.repeat(1, len(indices), 1))
        tokens = self.students(view.patches, self.tables, *where, view.guide_at(indices[0]))
        from_anchor, *from_sources = tokens.unflatten(1, (len(indices), -1)).unbind(1)
        value = binding(from_anchor, view.targets_at(indices[0]))
        if from_sources:
            value = value + self.fitter.config.fit.alpha * mean_square(*from_sources)
        return value

    @torch.no_grad()
    def query(self, addresses: Tensor, source: Tensor | Sequence[float] = ANCHOR) -> Tensor:
        """Tokens (B, Q, D) in the teacher's units at (Q, 3) or (B, Q, 3) addresses (i, j, l),
        fractional allowed. A student without a layer axis (APM) ignores l.

        Raises:
            InputError: another shape.
        """
        batch, shape = len(self.view.patches), addresses.shape
        if shape[-1:] != (3,) or len(shape) < 2 or shape[:-2] not in ((), (batch,)):
            raise InputError(f"addresses must be (Q, 3) or ({batch}, Q, 3), got {tuple(shape)}")
        dest = addresses.to(self.fitter.device, torch.float32).expand(batch, -1, 3)
        guide = self.view.guide_between(dest)
        # Tables grow with scattered coordinates.
        return self._query(self.view, dest, source, guide, 1024)

    @torch.no_grad()
    def query_layer(
        self, layer: float, source: Tensor | Sequence[float] = ANCHOR, view: int = 0
    ) -> Tensor:
        """Tokens (B, H, W, D) of a whole layer, which may be fractional or not fitted, where those
        of a view lie.

        Raises:
            InputError: a student without a layer axis was fitted to another layer.
        """
        fitted = self.fitter.layers
        if self.students.config.axes == 2 and layer not in fitted:
            raise InputError(f"this student knows only layer {fitted[0]}, not layer {layer}")
        seen = self.views[view]
        dest = seen.layer(layer).expand(len(seen.patches), -1, 3)
        return self._query(seen, dest, source, seen.guide).unflatten(1, self.fitter.grid[1:])

    def _query(
        self, view: View, dest: Tensor, source: Any, guide: Any, most: int = QUERY_FLOATS
    ) -> Tensor:
        """(B, Q, D) at (B, Q, 3) addresses, at most so many in a piece that memory can hold."""
        config, pieces = self.students.config, []
        source = torch.as_tensor(source, device=dest.device, dtype=torch.float32).expand_as(dest)
        size = max(1, min(most, QUERY_FLOATS // (len(dest) * max(config.widths))))
        guides = [None] * dest.shape[1] if guide is None else guide.split(size, 1)
        with operand_precision(dest.device):
            for src, to, near in zip(source.split(size, 1), dest.split(size, 1), guides):
                # Sources beside all destinations: else one image's would decide how another's are
                # summed.
                known = [
                    [x[..., k].unique() for k in range(config.axes)]
                    for x in (torch.cat((src, to)), to)
                ]
                tables = self.students.tables(*known)
                pieces.append(self.students(view.patches, tables, src, to, near))
        return view.in_units(torch.cat(pieces, 1), dest[..., 2])

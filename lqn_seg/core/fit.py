"""Test-time training: fit a fresh student to the token field of one image (Algorithm 1).

    reset the student; N times: sample dest, src1, src2; loss L_B + alpha L_R; one Adam step
    query dest = (i, j, L) from src = (0, 0, 0)

B images are fitted side by side by B independent students in flat (B, P) buffers; B = 1 is the same
code. The buffers, and what depends on the grid alone, outlive an image; nothing that depends on an
image does.

Shapes: B students, L x H x W grid, D features, n positions per step, N steps, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lqn_seg.core.config import (
    CONTROLS,
    FitConfig,
    LQNConfig,
    positions_per_step,
)
from lqn_seg.core.fast.graphs import Replay, constant
from lqn_seg.core.kernel import guiding_tokens
from lqn_seg.core.losses import binding_loss, entropy_loss, recirculation_loss, total_loss
from lqn_seg.core.positions import (
    ANCHOR,
    AddressTable,
    Places,
    grid_positions,
    grid_rows,
    grid_table,
    placed,
    tabulate,
)
from lqn_seg.core.precision import DTYPES, own_precision, resolve_precision
from lqn_seg.core.random import CounterRandom, RandomKey
from lqn_seg.core.sampling import Draw, sample_apart, sample_positions
from lqn_seg.core.student import Students, image_patches
from lqn_seg.core.timing import Clock
from lqn_seg.errors import InputError

Grid = tuple[int, int, int]
Classify = Callable[[Tensor], Tensor]

# Rows whose addresses are drawn at one go, and floats of hidden layer a query may hold at one go.
_ROWS_AT_ONCE = 1 << 18
_QUERY_FLOATS = 1 << 26
_INITIAL_LOSS_SCALE = 2.0**16


class Adam:
    """torch.optim.Adam's update, in place on flat (B, P) buffers, one row per student."""

    def __init__(self, parameters: Tensor, config: FitConfig) -> None:
        self.parameters, self.config = parameters, config
        self.exp_avg = torch.zeros_like(parameters)
        self.exp_avg_sq = torch.zeros_like(parameters)
        self.steps = parameters.new_zeros(len(parameters))  # updates made, (B,)

    def reset(self) -> None:
        """Forget everything: moments and step counts of zero."""
        for buffer in (self.exp_avg, self.exp_avg_sq, self.steps):
            buffer.zero_()

    def step(self, gradients: Tensor) -> None:
        """One update of all students."""
        self.steps += 1
        self._update(gradients, slice(None), self.steps[0])

    def scaled_step(self, gradients: Tensor, scale: Tensor) -> None:
        """One update from gradients that are (B,) `scale` times too large.

        As torch's GradScaler does, but each student for itself: one whose gradients overflowed
        keeps its weights and halves its scale. (No fit is long enough for a scale to grow.)
        """
        overflow = (~torch.isfinite(gradients).all(dim=1)).float()
        self.steps += 1
        for b in range(len(self.parameters)):
            scaling = {"grad_scale": scale[b], "found_inf": overflow[b]}
            self._update(gradients, slice(b, b + 1), self.steps[b], **scaling)
        self.steps -= overflow
        scale.mul_(1 - 0.5 * overflow)

    def _update(self, gradients: Tensor, rows: slice, count: Tensor, **scaling: Tensor) -> None:
        torch._fused_adam_(
            [self.parameters[rows]],
            [gradients[rows]],
            [self.exp_avg[rows]],
            [self.exp_avg_sq[rows]],
            [],
            [count],
            lr=self.config.learning_rate,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            weight_decay=0.0,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
            **scaling,
        )


@dataclass
class _Targets:
    """The fitted layers of B fields, (standardised) and ready to be sampled.

    Attributes:
        layers: the m fitted layers, ascending, (m,).
        tokens: (B * m * H * W, D).
        mean, deviation: (B, m, D) statistics, None if the targets are in the teacher's units.
    """

    layers: Tensor
    tokens: Tensor
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def restore(self, tokens: Tensor, layer: Tensor) -> Tensor:
        """Tokens (B, n, D) at (n,) or (B, n) layers, back in the teacher's units.

        Statistics are linear between neighbouring *fitted* layers and constant beyond the first and
        the last: a layer that was held out of the fit lends nothing, its statistics included.
        """
        if self.mean is None or self.deviation is None:
            return tokens
        known = self.layers.float()
        layer = layer.float().clamp(known[0], known[-1])
        above = torch.searchsorted(known, layer.contiguous()).clamp_(min=min(1, len(known) - 1))
        below = (above - 1).clamp_(min=0)
        gap = (known[above] - known[below]).clamp_(min=1.0)
        weight = ((layer - known[below]) / gap)[..., None]

        def between(statistic: Tensor) -> Tensor:
            lower, upper = (
                statistic.gather(1, index.expand(len(tokens), -1)[..., None].expand_as(tokens))
                for index in (below, above)
            )
            return torch.lerp(lower, upper, weight)

        return torch.addcmul(between(self.mean), tokens, between(self.deviation))


@dataclass(frozen=True)
class _Inputs:
    """What B students read beside addresses.

    Attributes:
        patches: of the images, (B, h/s * w/s, 3 s s).
        table: encodings of the grid's addresses.
        places: where the grid's rows and columns lie, if not at 1..H and 1..W.
        guide: (B, H, W, D) tokens of the guiding layer, or None.
        segments: (B, H, W) int64, which positions belong together, or None. (It guides the
            drawing; the students do not read it.)
    """

    patches: Tensor
    table: AddressTable
    places: Places | None
    guide: Tensor | None
    segments: Tensor | None = None

    def guide_rows(self, places: Tensor) -> Tensor | None:
        """(B, n, D) guide at (B * n,) rows of the B grids' positions, one grid after the other."""
        if self.guide is None:
            return None
        rows = self.guide.flatten(0, 2).index_select(0, places)
        return rows.unflatten(0, (len(self.guide), -1))

    def guide_at(self, positions: Tensor) -> Tensor | None:
        """(B, Q, D) guide at (Q, 3) or (B, Q, 3) addresses, bilinear in between."""
        if self.guide is None:
            return None
        height, width = self.guide.shape[1:3]
        size = constant((width, height), positions.device)
        where = (2 * positions[..., :2].flip(-1) - 1) / size - 1  # grid_sample's x, y in -1..1
        where = where.expand(len(self.guide), -1, 2)[:, None]
        sampled = F.grid_sample(
            self.guide.movedim(3, 1), where, padding_mode="border", align_corners=False
        )
        return sampled.squeeze(2).mT.contiguous()


class StudentFitter:
    """Fits students to token fields of one shape; owns their storage.

    Args:
        config: the recipe.
        grid: (L, H, W) of the teacher's token field.
        feature_dim: D, width of the teacher's tokens (d_c in Table 4).
        device: where to fit.
        capture: run a fit as one CUDA graph, captured once per shape (`core.fast.graphs`); by
            default on a GPU. A fit with a classifier or with places of its own is never captured.

    Raises:
        InputError: the variant is "teacher", or the recipe names layers the grid does not have.
    """

    def __init__(
        self,
        config: LQNConfig,
        grid: Grid,
        feature_dim: int,
        device: torch.device | str = "cpu",
        capture: bool | None = None,
    ) -> None:
        if config.fit.variant in ("teacher", *CONTROLS):
            raise InputError(
                f"variant {config.fit.variant!r} has no student, so there is nothing to fit"
            )
        self.config, self.grid, self.feature_dim = config, grid, feature_dim
        self.device = torch.device(device)
        self.layers = fitted_layers(config.fit, grid[0])
        self.positions = visited_positions(config.fit, grid)
        self.precision = resolve_precision(config.fit.precision, self.device)
        self.fits = 0  # made so far; a FittedStudents remembers which one it is
        self._table = grid_table(
            grid, config.student.position_dim, config.student.axes, self.device
        )
        self._storage: tuple[Students, Adam] | None = None
        self.capture = self.device.type == "cuda" if capture is None else capture
        self._replay = Replay(self.fit_tensors)

    def fit(
        self,
        images: Tensor,
        fields: Tensor,
        keys: Sequence[RandomKey],
        classify: Classify | None = None,
        views: Sequence[tuple[Tensor, Tensor]] = (),
        segments: Tensor | None = None,
        places: Places | None = None,
    ) -> FittedStudents:
        """Fit B fresh students, one per image.

        Works under `torch.no_grad()`. The result is good until the next call.

        Args:
            images: (B, 3, s, s), normalised, s the student's `input_size`.
            fields: (B, L, H, W, D) tokens of the teacher.
            keys: B random keys (`image_key`).
            classify: the last layer's tokens (B, H * W, D), row by row in the teacher's units, to
                logits (B, m, C) of m pixels, patches or images; differentiable.
            views: images and fields of further views, as `images` and `fields`, `views` - 1 of
                them; each is standardised by its own statistics.
            segments: (B, H, W) int64, the segment that each position lies in.
            Of these, each is required by the recipe that it belongs to, and refused by others.
            places: coordinates of the grid's rows (H,) and columns (W,), for fields that are put
                together from overlapping windows; by default 1..H and 1..W. Addresses are still
                counted in rows and columns.

        Raises:
            InputError: a shape does not fit, or something is missing or superfluous.
            RuntimeError: called under `torch.inference_mode()`.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "fitting a student needs gradients, which torch.inference_mode() forbids for good; "
                "call it under torch.no_grad() or outside"
            )
        for seen in ((images, fields), *views):
            self._check(*seen, keys)
        self._check_extras(classify, len(views), segments)
        self.fits += 1
        clock = Clock(self.device)
        random = CounterRandom(keys, self.device)
        students, _ = self._allocated(len(keys))
        tensors = [random.key_words, images, fields, *(x for view in views for x in view)]
        if segments is not None:
            tensors.append(segments)
        if self.capture and classify is None and places is None:
            looks, curve = self._replay(self.device, *tensors)
            curve = curve.clone()
        else:
            looks, curve = self.fit_tensors(*tensors, classify=classify, places=places)
        finite = torch.isfinite(curve).all(dim=1) & torch.isfinite(students.parameters.sum(dim=1))
        finite = finite.cpu()
        fit_ms = clock.lap()
        inputs, targets = looks[0]
        return FittedStudents(self, students, random, inputs, targets, curve, finite, fit_ms)

    def fit_tensors(
        self,
        words: Tensor,
        *tensors: Tensor,
        classify: Classify | None = None,
        places: Places | None = None,
    ) -> tuple[list[tuple[_Inputs, _Targets]], Tensor]:
        """All of a fit that the device does: the same kernels at the same places for any images.

        Args:
            words: of the random numbers.
            tensors: images and fields of every view, and the segments if they are needed.

        Returns:
            What each view shows, and the loss curve (B, N).
        """
        random = CounterRandom(words, self.device)
        segments = tensors[-1] if self.needs_segments else None
        views = 2 * self.config.fit.views
        seen = zip(tensors[0:views:2], tensors[1:views:2])
        students, adam = self._allocated(len(words))
        students.reset(random)
        adam.reset()
        with torch.no_grad():
            looks = [
                (self._inputs(image, field, segments, places), self._targets(field))
                for image, field in seen
            ]
        with torch.enable_grad(), own_precision(self.device):
            curve = self._train(students, adam, random, looks, classify)
        return looks, curve

    def _check(self, images: Tensor, fields: Tensor, keys: Sequence[RandomKey]) -> None:
        batch, side = len(keys), self.config.student.input_size
        if batch == 0:
            raise InputError("there is no image to fit: no random keys were given")
        for name, tensor, shape in (
            ("images", images, (batch, 3, side, side)),
            ("fields", fields, (batch, *self.grid, self.feature_dim)),
        ):
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")

    def _check_extras(
        self, classify: Classify | None, further: int, segments: Tensor | None
    ) -> None:
        if (classify is not None) != (self.config.fit.objective == "entropy"):
            raise InputError(
                f"objective {self.config.fit.objective!r} and a classifier: the entropy objective "
                "needs `classify`, and no other takes one"
            )
        if further != self.config.fit.views - 1:
            raise InputError(f"{self.config.fit.views} views were asked for, {1 + further} given")
        if (segments is not None) != self.needs_segments:
            raise InputError(
                f"sampling {self.config.fit.sampling!r} and segments: a student with recirculation "
                "that samples by segments needs them, and no other takes them"
            )
        if segments is not None and tuple(segments.shape[1:]) != self.grid[1:]:
            raise InputError(f"segments must be (B, {self.grid[1]}, {self.grid[2]})")

    def _allocated(self, batch: int) -> tuple[Students, Adam]:
        """Storage for so many students: the same as long as their number is."""
        if self._storage is None or self._storage[0].batch != batch:
            dtype = DTYPES[self.precision]
            students = Students(self.config.student, self.feature_dim, batch, self.device, dtype)
            self._storage = students, Adam(students.parameters.detach(), self.config.fit)
        return self._storage

    def _targets(self, fields: Tensor) -> _Targets:
        fields = fields.to(self.device)
        if len(self.layers) < self.grid[0]:
            fields = fields.index_select(1, constant(self.layers, self.device) - 1)
        tokens = fields.flatten(2, 3).float()  # (B, m, H * W, D)
        layers = constant(self.layers, self.device)
        if self.config.fit.target_norm == "none":
            return _Targets(layers, tokens.flatten(0, 2))
        variance, mean = torch.var_mean(tokens, dim=2, correction=0, keepdim=True)
        deviation = variance.sqrt_().clamp_(min=1e-6)
        tokens = (tokens - mean).div_(deviation)
        return _Targets(layers, tokens.flatten(0, 2), mean.squeeze(2), deviation.squeeze(2))

    def _inputs(
        self, images: Tensor, fields: Tensor, segments: Tensor | None, places: Places | None
    ) -> _Inputs:
        student, table = self.config.student, self._table
        if places is not None:
            table = grid_table(self.grid, student.position_dim, student.axes, self.device, places)
        guide = guiding_tokens(fields.to(self.device), student.guide) if student.guide else None
        patches = image_patches(images.to(self.device, torch.float32), student.stride)
        segments = None if segments is None else segments.to(self.device)
        return _Inputs(patches, table, places, guide, segments)

    def _train(
        self,
        students: Students,
        adam: Adam,
        random: CounterRandom,
        looks: Sequence[tuple[_Inputs, _Targets]],
        classify: Classify | None,
    ) -> Tensor:
        """The loop of Algorithm 1 over what each view shows; returns the loss curve (B, N)."""
        config, n = self.config.fit, self.positions
        curve = torch.zeros(config.steps, len(random), device=self.device)
        loss_scale = curve.new_full((len(random),), _INITIAL_LOSS_SCALE)
        for step, rows, destinations, chosen, places in self._schedule(students, random, *looks[0]):
            inputs, targets = looks[step % len(looks)]
            # (B, passes * n, D)
            tokens = students(inputs.patches, inputs.table, rows, inputs.guide_rows(places))
            from_anchor, *from_sources = tokens.unflatten(1, (-1, n)).unbind(1)
            if classify is None:
                target = targets.tokens.index_select(0, chosen).view_as(from_anchor)
                loss = binding_loss(from_anchor, target)
            else:
                loss = entropy_loss(classify(targets.restore(from_anchor, destinations)))
            if from_sources:
                loss = total_loss(loss, recirculation_loss(*from_sources), config.alpha)
            if self.precision == "float16":
                (gradients,) = torch.autograd.grad((loss * loss_scale).sum(), students.parameters)
                adam.scaled_step(gradients, loss_scale)
            else:
                (gradients,) = torch.autograd.grad(loss.sum(), students.parameters)
                adam.step(gradients)
            curve[step] = loss.detach()
        return curve.T

    def _schedule(
        self, students: Students, random: CounterRandom, inputs: _Inputs, targets: _Targets
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
        """What each step looks at, drawn for many steps at a time.

        Yields:
            the step, the students' input rows (B, passes * n, .), the layers of the destinations
            (B, n), and what the destinations are (B * n,): rows of `targets.tokens`, and places
            among the B grids of one layer.
        """
        batch, passes = len(random), self.passes
        student = torch.arange(batch, device=self.device)[:, None, None]
        chunk = max(1, _ROWS_AT_ONCE // (batch * passes * self.positions))
        for first in range(0, self.config.fit.steps, chunk):
            last = min(first + chunk, self.config.fit.steps)
            steps = torch.arange(first, last, device=self.device)
            destination = self._destinations(random, steps)  # (B, S, n, 3)
            rows = self._input_rows(students, random, inputs.segments, steps, destination)
            i, j, layer = destination.movedim(-1, 0).contiguous()
            # Of every student in turn: its layers and its grid, one behind another.
            fitted = student * len(self.layers) + torch.searchsorted(targets.layers, layer)
            chosen, places = (
                ((before * self.grid[1] + i - 1) * self.grid[2] + j - 1)
                .transpose(0, 1)
                .flatten(1)
                .contiguous()
                for before in (fitted, student)
            )
            for index in range(last - first):
                yield first + index, rows[index], layer[:, index], chosen[index], places[index]

    def _destinations(self, random: CounterRandom, steps: Tensor) -> Tensor:
        """(B, S, n, 3) what the steps ask for: random positions; all of the last layer to classify
        it."""
        if self.config.fit.objective == "entropy":
            whole = grid_positions(*self.grid[1:], self.grid[0], self.device).long()
            return whole.expand(len(random), len(steps), -1, -1)
        return self._sample(random, steps, Draw.DESTINATION)

    def _sample(self, random: CounterRandom, step: Tensor, draw: Draw) -> Tensor:
        return sample_positions(random, self.grid, self.positions, self.layers, step, draw)

    def _sources(
        self, random: CounterRandom, segments: Tensor | None, steps: Tensor, destination: Tensor
    ) -> list[Tensor]:
        """Src1 and Src2, (B, S, n, 3) each."""
        draws = (Draw.SOURCE_1, Draw.SOURCE_2)
        if segments is None:
            return [self._sample(random, steps, draw) for draw in draws]
        taken = [destination]
        for draw in draws:
            apart = sample_apart(random, self.grid, segments, taken, self.layers, steps, draw)
            taken.append(apart)
        return taken[1:]

    def _input_rows(
        self,
        students: Students,
        random: CounterRandom,
        segments: Tensor | None,
        steps: Tensor,
        destination: Tensor,
    ) -> Tensor:
        """(S, B, passes * n, .) input rows; the passes of a step share its destinations."""
        grid, axes = self.grid, self.config.student.axes
        source = None
        if self.config.student.source:
            source = torch.zeros_like(destination)  # Src0, the anchor
            if self.passes == 3:
                drawn = self._sources(random, segments, steps, destination)
                source = torch.cat((source, *drawn), dim=2)
                destination = destination.repeat(1, 1, 3, 1)
            source = grid_rows(source, grid, axes)
        rows = students.rows(self._table, source, grid_rows(destination, grid, axes))
        return rows.transpose(0, 1).contiguous()

    @property
    def passes(self) -> int:
        """Forward passes over a step's destinations: from Src0; to recirculate, Src1 and Src2."""
        return 3 if self.config.student.source and self.config.fit.alpha else 1

    @property
    def needs_segments(self) -> bool:
        """Whether `fit` wants to know which positions belong together."""
        return self.config.fit.sampling == "segments" and self.passes == 3


class FittedStudents:
    """B students, each fitted to one image; good until their fitter fits again.

    Attributes:
        loss_curve: (B, N), the loss before each update.
        finite: (B,) bool on the CPU, whether a student's losses and weights all are.
        fit_ms: milliseconds of the batch, from fresh weights to the last step.
    """

    def __init__(
        self,
        fitter: StudentFitter,
        students: Students,
        random: CounterRandom,
        inputs: _Inputs,
        targets: _Targets,
        loss_curve: Tensor,
        finite: Tensor,
        fit_ms: float,
    ) -> None:
        self._fitter, self._students, self._fit = fitter, students, fitter.fits
        self._random, self._inputs, self._targets = random, inputs, targets
        self.loss_curve, self.finite, self.fit_ms = loss_curve, finite, fit_ms

    @property
    def weights(self) -> dict[str, Tensor]:
        """Name to (B, *shape), views of the fitter's own storage."""
        return self._students.weights

    @torch.no_grad()
    def query(self, positions: Tensor) -> Tensor:
        """Predicted tokens at any addresses.

        Args:
            positions: (Q, 3), the same for all students, or (B, Q, 3): (i, j, l), fractional
                allowed. A student without a layer axis (APM) ignores l.

        Returns:
            (B, Q, D) float32 in the teacher's units.

        Raises:
            InputError: another shape.
            RuntimeError: the fitter has been used again, and these students are gone.
        """
        fitter, batch = self._fitter, self._students.batch
        self._check_alive()
        shape, count = tuple(positions.shape), positions.shape[-2] if positions.dim() > 1 else 0
        if shape not in ((count, 3), (batch, count, 3)):
            raise InputError(f"positions must be (Q, 3) or ({batch}, Q, 3), got {shape}")
        return self._query(positions.to(fitter.device, torch.float32))

    @torch.no_grad()
    def query_layer(self, layer: float) -> Tensor:
        """(B, H, W, D) predicted tokens of a whole layer, which may be fractional or unfitted.

        Raises:
            InputError: a student without a layer axis was fitted to another layer.
        """
        fitter = self._fitter
        depth, height, width = fitter.grid
        if fitter.config.student.axes == 2 and layer not in fitter.layers:
            raise InputError(f"this student knows only layer {depth}, not layer {layer}")
        self._check_alive()
        positions = grid_positions(height, width, layer, fitter.device)
        source = fitter.config.fit.readout_source
        on_grid = layer in range(depth + 1) and isinstance(source, str)
        return self._query(positions, on_grid).unflatten(1, (height, width))

    def _sources(self, count: int) -> Tensor:
        """(Q, 3) or (B, Q, 3) source addresses of a query."""
        source, fitter = self._fitter.config.fit.readout_source, self._fitter
        if source == "random":
            drawn = sample_positions(
                self._random, fitter.grid, count, fitter.layers, draw=Draw.READOUT
            )
            return drawn.float()
        address = ANCHOR if source == "anchor" else source
        return constant(tuple(address), fitter.device, torch.float32).expand(count, 3)

    def _query(self, positions: Tensor, on_grid: bool = False) -> Tensor:
        """(B, Q, D) at (Q, 3) or (B, Q, 3) float32 positions.

        Args:
            on_grid: positions and sources are whole and inside. The fit's own table has them, and
                the device need not be waited for to learn which addresses there are.
        """
        sources = self._sources(positions.shape[-2])
        if positions.dim() != sources.dim():
            positions, sources = (x.expand(len(self._random), -1, 3) for x in (positions, sources))
        widest = max(self._fitter.config.student.widths)
        chunk = max(1, _QUERY_FLOATS // (len(self._random) * widest))
        pieces = [
            self._query_piece(*piece, on_grid)
            for piece in zip(positions.split(chunk, -2), sources.split(chunk, -2))
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _query_piece(self, positions: Tensor, sources: Tensor, on_grid: bool) -> Tensor:
        config, students, inputs = self._fitter.config.student, self._students, self._inputs
        addresses = torch.stack((sources, positions))
        if on_grid:
            table, looked_up = inputs.table, addresses.long()
            source, destination = grid_rows(looked_up, self._fitter.grid, config.axes)
        else:
            addresses = placed(addresses, inputs.places)
            table, (source, destination) = tabulate(addresses, config.position_dim, config.axes)
        rows = students.rows(table, source if config.source else None, destination)
        with own_precision(self._fitter.device):
            rows = rows.expand(students.batch, *rows.shape[-2:])
            tokens = students(inputs.patches, table, rows, inputs.guide_at(positions))
        return self._targets.restore(tokens, positions[..., 2])

    def _check_alive(self) -> None:
        if self._fit != self._fitter.fits:
            raise RuntimeError(
                "these students are gone: their fitter has fitted other images since; query before "
                "the next fit, or use another fitter"
            )


def fit_student(
    image: Tensor,
    field: Tensor,
    key: RandomKey,
    config: LQNConfig,
    classify: Classify | None = None,
) -> FittedStudents:
    """Fit one student to one image: `StudentFitter.fit` with B = 1 and a fitter of its own.

    Args:
        image: (3, s, s), normalised.
        field: (L, H, W, D) tokens of the teacher; the fit runs where it lies.
    """
    if field.dim() != 4:
        raise InputError(f"field must have shape (L, H, W, D), got {tuple(field.shape)}")
    layers, rows, columns, features = field.shape
    fitter = StudentFitter(config, (layers, rows, columns), features, field.device)
    return fitter.fit(image[None], field[None], [key], classify)


def visited_positions(config: FitConfig, grid: Grid) -> int:
    """n, the positions that one step visits; a fraction is of the fitted layers only."""
    if config.objective == "entropy":
        return grid[1] * grid[2]
    fitted = (len(fitted_layers(config, grid[0])), *grid[1:])
    return positions_per_step(config.positions_per_step, fitted)


def fitted_layers(config: FitConfig, depth: int) -> tuple[int, ...]:
    """The layers to fit on, ascending."""
    if config.layers == "last" or config.variant == "apm":
        return (depth,)
    if config.layers is None:
        return tuple(range(1, depth + 1))
    layers = tuple(sorted(set(config.layers)))
    if not layers or layers[0] < 1 or layers[-1] > depth:
        raise InputError(f"layers must be among 1..{depth}, got {config.layers}")
    return layers

"""What a call costs, counted while it runs: multiply-adds each way, and memory at its peak.

Unit: GMACs, as in `lqn_seg.lab.cost.flops`; PyTorch's rules count a multiply-add as two and are
halved. fvcore counts the forward passes of teachers once more. A matrix product, convolution or
attention without a rule is an error, not a zero.
"""

from __future__ import annotations

import logging
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import _scoped_library
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lqn_seg.core.config import LQNConfig
from lqn_seg.core.lqn import Grid, StudentFitter
from lqn_seg.core.random import RandomKey
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.flops import EomtShape
from lqn_seg.teachers.modules import ONE_DNN

_MATMUL_WORDS = frozenset(
    ("matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "tensordot")
    + ("linear", "bilinear", "conv", "conv1d", "conv2d", "conv3d", "convolution", "einsum")
    + ("attention", "lstm", "gru", "rnn")
)


class UncountedOperatorError(RuntimeError):
    """A matrix product, convolution or attention ran that the counter has no rule for."""


@dataclass(frozen=True)
class Cost:
    """What one call costs; GMACs are those outside and inside of backward passes."""

    forward_gmacs: float
    backward_gmacs: float
    peak_bytes: int  # of tensors made during the call; no kernel's scratch space
    uncounted: tuple[str, ...] = ()  # operators without a rule

    @property
    def gmacs(self) -> float:
        return self.forward_gmacs + self.backward_gmacs


def measure(function: Callable[[], Any]) -> Cost:
    """Cost of ``function()``; an error if an operator that multiplies matrices has no rule."""
    with plain_attention(), _Meter() as meter:
        function()
    uncounted = _without_products(meter.uncounted)
    return Cost(meter.macs[False] / 1e9, meter.macs[True] / 1e9, meter.peak, uncounted)


def fit_cost(config: LQNConfig, grid: Grid, feature_dim: int) -> Cost:
    """One image's fit on a field of (L, H, W), storage included, counted on the meta device."""
    # Other precisions do the same products on the meta device, which has no autocast to choose one.
    config = replace(config, fit=replace(config.fit, precision="float32"))
    side, meta = config.student.input_size, torch.device("meta")
    image = torch.empty(1, 3, side, side, device=meta)
    field = torch.empty(1, *grid, feature_dim, device=meta)
    build = partial(StudentFitter, config, grid, feature_dim, meta)
    return measure(lambda: build().fit(image, field, [RandomKey(0)]))


@contextmanager
def plain_attention() -> Iterator[None]:
    """The fused attention layer of torch.nn has no rule in any counter; its parts have."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _without_products(operators: set[str]) -> tuple[str, ...]:
    """The operators, sorted; an error if one multiplies matrices, by the words of its name."""
    missed = [x for x in sorted(operators) if _MATMUL_WORDS & set(re.split(r"[^a-z0-9]+|_", x))]
    if missed:
        raise UncountedOperatorError(f"Not counted, but not free: {', '.join(missed)}.")
    return tuple(sorted(operators))


# Rules that PyTorch's registry lacks, in some releases or in all: (out, *arguments) to 2 x MACs.
_aten = torch.ops.aten
_RULES: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q.shape, k.shape, v.shape)
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: flop_counter.sdpa_backward_flop_count(
            gradient.shape, q.shape, k.shape, v.shape
        )
    ),
    _aten.mv: lambda matrix, *_, **__: 2 * matrix.numel(),
    _aten.dot: lambda vector, *_, **__: 2 * vector.numel(),
}
if ONE_DNN is not None:
    _RULES[ONE_DNN] = lambda inputs, weight, *_, **__: 2 * inputs.numel() * len(weight)


class _Meter(TorchDispatchMode):
    """Counts what reaches a kernel and follows the storages that come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = {False: 0.0, True: 0.0}  # in a backward pass?
        self.uncounted: set[str] = set()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        before = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **kwargs)
        rule = _RULES.get(packet, flop_counter.flop_registry.get(packet))
        if rule is not None:
            backward = torch._C._current_autograd_node() is not None
            self.macs[backward] += rule(*args, **kwargs, out_val=out) / 2
        else:
            self.uncounted.add(str(packet))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _storage(tensor) not in before:
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.held -= size
        self._known.discard(key)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


# ---- teachers without weights, by both counters --------------------------------------------------


@dataclass(frozen=True)
class FlopCount:
    """fvcore's count: GMACs per operator, and the operators that were not counted."""

    by_operator: dict[str, float]
    uncounted: tuple[str, ...]

    @property
    def gmacs(self) -> float:
        return sum(self.by_operator.values())


def count_eomt(config: Any) -> dict[str, Cost | FlopCount]:
    """transformers' EoMT of a configuration, masked attention off, on the meta device, by
    counter."""
    from transformers.models.auto.modeling_auto import AutoModelForUniversalSegmentation

    with torch.device("meta"):
        model = AutoModelForUniversalSegmentation.from_config(config).eval()
    # Read by the forward pass to decide on masked attention, so it needs a value: 0 = off.
    model.attn_mask_probs = torch.zeros(config.num_blocks)
    sides = EomtShape.from_config(config).image_size
    image = torch.empty(1, config.num_channels, *sides, device="meta")

    def logits(image: Tensor) -> tuple[Tensor, Tensor]:
        output = model(pixel_values=image)
        return output.masks_queries_logits, output.class_queries_logits

    return _count(_Traceable(model, logits), image)


def clip_on_meta(name: str, image_size: int = 0) -> Any:
    """open_clip's model of that name, without weights; an InputError if there is none."""
    import open_clip

    if name not in open_clip.list_models():
        raise InputError(f"open_clip has no model {name!r}; one of them is ViT-B-16-quickgelu")
    size = {"force_image_size": image_size} if image_size else {}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that a model without weights has none
    try:
        with torch.device("meta"):
            return open_clip.create_model(name, pretrained=None, device="meta", **size).eval()
    finally:
        logging.disable(before)


def count_clip(model: Any) -> dict[str, dict[str, Cost | FlopCount]]:
    """One image's ("teacher") and one "prompt"'s pass through a `clip_on_meta`, by counter."""
    image = torch.empty(1, 3, *model.visual.image_size, device="meta")
    prompt = torch.zeros(1, model.context_length, dtype=torch.int64, device="meta")
    return {
        "teacher": _count(_Traceable(model, model.encode_image), image),
        "prompt": _count(_Traceable(model, model.encode_text), prompt),
    }


def _count(module: nn.Module, given: Tensor) -> dict[str, Cost | FlopCount]:
    with torch.no_grad(), plain_attention():
        return {"fvcore": count_fvcore(module, (given,)), "torch": measure(lambda: module(given))}


class _Traceable(nn.Module):
    def __init__(self, model: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, given: Tensor) -> Any:
        return self.function(given)


def count_fvcore(model: nn.Module, inputs: tuple[Any, ...]) -> FlopCount:
    """`model(*inputs)` by fvcore, norms, attention and two-factor einsums included."""
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
    with torch.no_grad(), _traceable_meta_convolutions() if on_meta else nullcontext():
        by_operator = {name: count / 1e9 for name, count in analysis.by_operator().items()}
        uncounted = set(analysis.unsupported_ops())
    return FlopCount(by_operator, _without_products(uncounted))


def _sdpa_handle(inputs: list[Any], outputs: list[Any]) -> int:
    """softmax(q k^T) v: (..., N, E), (..., S, E), (..., S, V); the softmax is not counted."""
    query, key, value = (v.type().sizes() for v in inputs[:3])
    return prod(query) * key[-2] + prod(query[:-1]) * value[-2] * value[-1]


def _einsum_handle(inputs: list[Any], outputs: list[Any]) -> int:
    """Two factors: the product of all index sizes. (fvcore's own rule rounds to four digits.)"""
    equation = inputs[0].toIValue().replace(" ", "")
    factors = equation.split("->")[0].split(",")
    if len(factors) != 2 or "." in equation:
        raise UncountedOperatorError(f"No rule to count einsum '{equation}'.")
    shapes = [v.type().sizes() for v in inputs[1].node().inputs()]
    sizes = {i: n for letters, shape in zip(factors, shapes) for i, n in zip(letters, shape)}
    return prod(sizes.values())


@contextmanager
def _traceable_meta_convolutions() -> Iterator[None]:
    """Lets `torch.jit` trace convolutions of meta tensors: PyTorch's meta kernel checks shapes in
    Python, and bypasses `aten::_convolution`, the only convolution fvcore knows."""

    def convolution(*arguments: Any) -> Any:
        return torch.ops.aten._convolution(*arguments, False, False, False, False)

    def empty_convolution(x: Tensor, weight: Tensor, _: Any, *geometry: Any) -> Tensor:
        stride, padding, dilation, transposed, output_padding, groups = geometry[:6]
        size, kernel = [int(n) for n in x.shape], [int(n) for n in weight.shape]
        axes = zip(size[2:], kernel[2:], stride, padding, dilation, output_padding)
        if transposed:
            out = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + o for n, k, s, p, d, o in axes]
            return x.new_empty(size[0], kernel[1] * groups, *out)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in axes]
        return x.new_empty(size[0], kernel[0], *out)

    with _scoped_library("aten", "IMPL") as library:
        library.impl("convolution", convolution, "Meta", allow_override=True)
        library.impl("_convolution", empty_convolution, "Meta", allow_override=True)
        yield

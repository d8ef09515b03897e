"""What a call costs, counted while it runs: multiply-adds each way, and memory at its peak.

Unit: GMACs, as in `lqn_seg.lab.cost.flops`; the rules are those of `torch.utils.flop_counter`,
which count a multiply-add as two and are halved. A matrix product, convolution or attention without
a rule is an error, not a zero.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lqn_seg.core.config import LQNConfig
from lqn_seg.core.lqn import Grid, StudentFitter
from lqn_seg.core.random import RandomKey
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.flops import EomtShape
from lqn_seg.teachers.modules import INT8_PRODUCT, ONE_DNN

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
if INT8_PRODUCT is not None:  # whose fifth argument holds a scale for each row of the weight
    _RULES[INT8_PRODUCT] = lambda inputs, _s, _z, _w, scales, *_, **__: (
        2 * inputs.numel() * len(scales)
    )


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
        before = {_storage(x) for x in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        rule = _RULES.get(packet, flop_counter.flop_registry.get(packet))
        if rule is not None:
            backward = torch._C._current_autograd_node() is not None
            self.macs[backward] += rule(*args, **kwargs, out_val=out) / 2
        else:
            self.uncounted.add(str(packet))
        for tensor in _tensors(out):
            if _storage(tensor) not in before:
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


def _tensors(tree: Any) -> list[Tensor]:
    """Those of a call that have a storage: oneDNN's own weights show none."""
    leaves = [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return [x for x in leaves if x.layout != torch._mkldnn]  # type: ignore[attr-defined]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


# ---- teachers without weights -------------------------------------------------------------------


def count_eomt(config: Any) -> Cost:
    """transformers' EoMT of a configuration, masked attention off, on the meta device."""
    from transformers.models.auto.modeling_auto import AutoModelForUniversalSegmentation

    with torch.device("meta"):
        model = AutoModelForUniversalSegmentation.from_config(config).eval()
    # Read by the forward pass to decide on masked attention, so it needs a value: 0 = off.
    model.attn_mask_probs = torch.zeros(config.num_blocks)
    sides = EomtShape.from_config(config).image_size
    image = torch.empty(1, config.num_channels, *sides, device="meta")
    with torch.no_grad():
        return measure(lambda: model(pixel_values=image))


def clip_on_meta(name: str, image_size: int = 0) -> Any:
    """open_clip's model of that name, without weights; an InputError if there is none."""
    import open_clip

    if name not in open_clip.list_models():
        raise InputError(
            f"open_clip has no model {name!r}; it has, for example, ViT-B-16-quickgelu"
        )
    size = {"force_image_size": image_size} if image_size else {}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that a model without weights has none
    try:
        with torch.device("meta"):
            return open_clip.create_model(name, pretrained=None, device="meta", **size).eval()
    finally:
        logging.disable(before)


def count_clip(model: Any) -> dict[str, Cost]:
    """One image's ("teacher") and one "prompt"'s pass through a `clip_on_meta`."""
    image = torch.empty(1, 3, *model.visual.image_size, device="meta")
    prompt = torch.zeros(1, model.context_length, dtype=torch.int64, device="meta")
    with torch.no_grad():
        return {
            "teacher": measure(lambda: model.encode_image(image)),
            "prompt": measure(lambda: model.encode_text(prompt)),
        }

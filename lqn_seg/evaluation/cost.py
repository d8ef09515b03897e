"""What one call costs, measured while it runs: multiply-adds each way, and memory at its peak.

Unit: GMACs, 1e9 multiply-adds, as in `lqn_seg.evaluation.flops`; a matrix product, convolution or
attention without a rule is an error, not a zero. Memory is what tensors made during the call held
at once, in bytes: inputs and weights that were there before are not in it, nor is a kernel's own
scratch space.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from lqn_seg.evaluation.flops import FLOP_RULES, refuse_uncounted

# PyTorch's counter has rules for most products of matrices; these are of a matrix with a vector.
_RULES = {
    **{operator: shape_wrapper(rule) for operator, rule in FLOP_RULES.items()},
    torch.ops.aten.mv: lambda matrix, vector, **_: 2 * matrix.numel(),
    torch.ops.aten.dot: lambda a, b, **_: 2 * a.numel(),
}


@dataclass(frozen=True)
class Cost:
    """Attributes:
    forward_gmacs, backward_gmacs: outside and inside of backward passes.
    peak_bytes: of tensors made during the call.
    """

    forward_gmacs: float
    backward_gmacs: float
    peak_bytes: int


def measure(function: Callable[[], Any]) -> Cost:
    """Cost of ``function()``.

    Raises:
        UncountedOperatorError: an operator that multiplies matrices has no rule.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused attention layer of torch.nn has no rule; its parts have.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Meter() as meter:
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    refuse_uncounted(tuple(sorted(meter.uncounted)))
    return Cost(meter.macs[False] / 1e9, meter.macs[True] / 1e9, meter.peak)


class _Meter(TorchDispatchMode):
    """Counts what reaches a kernel and follows the storages that come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = {False: 0.0, True: 0.0}  # in a backward pass?
        self.uncounted: set[str] = set()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        before = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **kwargs)
        rule = _RULES.get(packet, flop_registry.get(packet))
        if rule is not None:
            backward = torch._C._current_autograd_node() is not None
            flops = rule(*args, **kwargs, out_val=out)
            self.macs[backward] += flops / 2  # the registry counts a multiply-add as two
        else:
            self.uncounted.add(str(packet))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _storage(tensor) not in before:
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.held -= size
        self._known.discard(key)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata

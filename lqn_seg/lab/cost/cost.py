"""What one call costs, measured while it runs: multiply-adds each way, and memory at its peak.

Unit: GMACs, 1e9 multiply-adds, as in `lqn_seg.lab.cost.flops`; a matrix product, convolution or
attention without a rule is an error, not a zero. Memory is what tensors made during the call held
at once, in bytes: inputs and weights that were there before are not in it, nor is a kernel's own
scratch space.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from lqn_seg.core.config import LQNConfig
from lqn_seg.core.fit import Grid, StudentFitter
from lqn_seg.lab.cost.flops import FLOP_RULES, plain_attention, refuse_uncounted

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
    with plain_attention(), _Meter() as meter:
        function()
    refuse_uncounted(tuple(sorted(meter.uncounted)))
    return Cost(meter.macs[False] / 1e9, meter.macs[True] / 1e9, meter.peak)


def fit_cost(config: LQNConfig, grid: Grid, feature_dim: int) -> Cost:
    """What one image's fit costs, storage for the student included, counted on the meta device: no
    memory and no arithmetic, at any size.

    Args:
        grid: (L, H, W) of the teacher's token field.
    """
    # Other precisions do the same products on the meta device, which has no autocast to choose one.
    config = replace(config, fit=replace(config.fit, precision="float32"))
    side, meta = config.student.input_size, torch.device("meta")
    words = torch.zeros(1, 3, dtype=torch.int64, device=meta)
    image = torch.empty(1, 3, side, side, device=meta)
    field = torch.empty(1, *grid, feature_dim, device=meta)

    def fit() -> None:
        StudentFitter(config, grid, feature_dim, meta).fit_tensors(words, image, field)

    return measure(fit)


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

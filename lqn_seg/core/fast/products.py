"""Matrix products, a teacher's and those of B students, by the fastest way that PyTorch carries.

On a CPU a product that is worth it is made student by student. `torch.bmm` would first copy every
weight, since a student's weights lie one behind the other and not beside another student's; and it
gives float32 products to MKL, which uses half the width of an AMD processor's vector units, where
oneDNN uses all of it (measured: 206 against 92 GFLOP/s on one Zen 5 core). Elsewhere this is
`torch.bmm`. The rule looks at one student's product alone, so that the batch size cannot change a
result.

Shapes: B students, n rows, k inputs, m outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# A product below so many multiply-adds is over before oneDNN has looked up its kernel.
_WORTH_A_LOOK_UP = 1 << 20
# oneDNN's float32 product allocates what it returns. A larger piece would be mapped afresh by the C
# library each time, which costs a quarter of the product itself.
_OUTPUTS_AT_ONCE = 1 << 22
# None where PyTorch was built without it.
ONE_DNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """(B, n, k) times (B, k, m), in `out` if given."""
    if not _one_by_one(left, right):
        return torch.bmm(left, right, out=out)
    if out is None:
        return _stacked([_linear(x, y.mT) for x, y in zip(left, right)])
    rows = max(1, _OUTPUTS_AT_ONCE // right.shape[2])
    for x, y, result in zip(left, right, out):
        if not _by_one_dnn(x):
            torch.mm(x, y, out=result)
            continue
        for piece, where in zip(x.split(rows), result.split(rows)):
            where.copy_(_linear(piece, y.mT))
    return out


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, n, k) inputs to (B, n, m): times (B, m, k) weights, plus (B, m) biases."""
    if _one_by_one(inputs, weight.mT):
        return _stacked([_linear(*one) for one in zip(inputs, weight, bias)])
    return torch.baddbmm(bias[:, None], inputs, weight.mT)


def dense(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of (..., k) inputs and an (m, k) weight; not recorded for gradients where it is
    worth the look-up."""
    usual = (
        torch.jit.is_tracing()  # a tracer knows no oneDNN product, and what it records must be F's
        or inputs.device.type != "cpu"
        or inputs.dtype != weight.dtype
        or inputs.numel() * len(weight) < _WORTH_A_LOOK_UP
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad))
    )
    return F.linear(inputs, weight, bias) if usual else _linear(inputs, weight, bias)


def _one_by_one(left: Tensor, right: Tensor) -> bool:
    if left.device.type != "cpu" or torch.jit.is_tracing():
        return False
    return left.shape[1] * left.shape[2] * right.shape[2] >= _WORTH_A_LOOK_UP


def _by_one_dnn(inputs: Tensor) -> bool:
    """Whether it has to be asked for oneDNN: lower precisions go there by themselves."""
    return ONE_DNN_LINEAR is not None and inputs.dtype == torch.float32


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., k) inputs times the transpose of (m, k) weights."""
    if not _by_one_dnn(inputs):
        return F.linear(inputs, weight, bias)
    result: Tensor = ONE_DNN_LINEAR(inputs, weight, bias, "none", [], "")
    return result


def _stacked(results: list[Tensor]) -> Tensor:
    return results[0][None] if len(results) == 1 else torch.stack(results)

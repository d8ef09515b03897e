"""A teacher's layers at their fastest: the same classes, weights and answers, other products.

PyTorch's own lose time on a CPU: by float32 products that use half of an AMD processor's vector
units (`dense`), weights that autocast lowers anew for every image, an attention that turns (B, T,
D) round and then copies its weights for every token, and a product of queries and keys in small
pieces (`attend`).
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lqn_seg.core.precision import DTYPES, has_bfloat16, operand_precision

# A product below so many multiply-adds is over before oneDNN has looked up its kernel.
_WORTH_A_LOOK_UP = 1 << 20
# None where PyTorch was built without it.
ONE_DNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
INT8_PRODUCT: Any = getattr(torch.ops.onednn, "qlinear_pointwise", None)
# Attention weights that `attend` holds at once: 2 MiB in bfloat16.
_PIECE = 1 << 20


def _recorded(*tensors: Tensor) -> bool:
    """Whether what is computed of them is recorded, for gradients or by a tracer: it must then be
    PyTorch's own products."""
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return learns or torch.jit.is_tracing()


def dense(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of (..., k) inputs and an (m, k) weight, in float32 on a CPU by oneDNN: 1.3 times
    as fast as MKL on a Zen 4 core, twice on a Zen 5. Not recorded for gradients there."""
    usual = (
        _recorded(inputs, weight)
        or ONE_DNN is None
        or inputs.device.type != "cpu"
        or not inputs.dtype == weight.dtype == torch.float32
        or inputs.numel() * len(weight) < _WORTH_A_LOOK_UP
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
    if usual:
        return F.linear(inputs, weight, bias)
    result: Tensor = ONE_DNN(inputs, weight, bias, "none", [], "")
    return result


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`F.scaled_dot_product_attention` of (B, h, T, d), in bfloat16 on a CPU as plain products of a
    few heads or rows at a time: 1.6 times as fast on a Zen 4 core. Not recorded for gradients
    there.

    Its logits are rounded to bfloat16, and the mean key would use up their digits. Without it the
    softmax is the same (Zhang et al., SageAttention, ICLR 2025). A DINOv2's tokens then differ from
    float32's by 1.1 times as much as with PyTorch's own, with it by 2.0 times.
    """
    lowered = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    usual = (
        mask is not None
        or q.device.type != "cpu"
        or not (lowered or q.dtype == k.dtype == v.dtype == torch.bfloat16)
        or not _plain_products_pay()
        or _recorded(q, k, v)
        or torch.compiler.is_compiling()
    )
    if usual:
        return F.scaled_dot_product_attention(q, k, v, mask)
    with operand_precision(q.device):
        q = (q * q.shape[-1] ** -0.5).bfloat16().contiguous()
        k = (k - k.mean(2, keepdim=True)).bfloat16().contiguous().mT
        return _attend_by_pieces(q, k, v.bfloat16().contiguous())


def _plain_products_pay() -> bool:
    # With AMX, PyTorch's own packs its pieces for it.
    return has_bfloat16(torch.device("cpu")) and not torch.cpu._is_amx_tile_supported()


def _attend_by_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k) v of (B, h, T, d) queries and values and (B, h, d, T) keys."""
    count, heads, length, width = q.shape
    result = q.new_empty(count, length, heads, width)  # as the next product wants it
    at_once = max(_PIECE // length**2, 1)
    rows = math.ceil(length / math.ceil(length**2 / _PIECE))
    for image in range(count):
        for first in range(0, heads, at_once):
            some = slice(first, first + at_once)
            for row in range(0, length, rows):
                part = slice(row, row + rows)
                weights = torch.softmax(q[image, some, part] @ k[image, some], -1)
                result[image, part, some] = (weights @ v[image, some]).transpose(0, 1)
    return result.transpose(1, 2)


def products_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Products in one of `DTYPES`; float32 leaves a caller's autocast in force."""
    dtype = DTYPES[precision]
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return dense(input, self.weight, self.bias)


class _Int8Linear(_Linear):
    """Of (B, T, k) inputs in int8: weights by output, inputs by image, which then do not depend on
    one another. Where gradients are recorded or the weights learnt, it is the `_Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        if _recorded(input, self.weight) or self.weight.dtype != torch.bfloat16:
            return super().forward(input)
        weight, scales, zeros = _in_int8(self.weight)
        bias = None if self.bias is None else self.bias.float()
        images = []
        for image in input.flatten(1, -2):
            if not image.isfinite().all():  # which no step stands for: it stays so, and is seen
                images.append(super().forward(image.bfloat16()))
                continue
            rows, scale, zero = _rounded(image)
            images.append(
                INT8_PRODUCT(
                    *(rows, scale, zero, weight, scales, zeros, bias),
                    *(1.0, 0, torch.bfloat16, "none", [], "none"),
                )
            )
        return torch.stack(images).unflatten(1, input.shape[1:-1])


def _rounded(values: Tensor) -> tuple[Tensor, float, int]:
    """Values to the 256 steps between the smallest and the largest: (value / scale + zero)."""
    low, high = (float(x) for x in torch.aminmax(values))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    zero = round(-low / scale)
    steps = values.float().mul(1 / scale).round_().add_(zero).clamp_(0, 255)
    return steps.to(torch.uint8), scale, zero


# Beside the weights and not in their place: models are saved, copied and learnt with plain ones.
_INT8: Any = WeakTensorKeyDictionary()


def _in_int8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An (m, k) weight as oneDNN wants it, its (m,) scales and zeros; made once."""
    state = weight.data_ptr(), weight._version
    known, made = _INT8.get(weight, (None, None))
    if known != state:
        scales = weight.abs().amax(1).float().div_(127).clamp_(min=1e-30)
        steps = (weight / scales[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(steps, None)
        made = packed, scales, torch.zeros(len(weight), dtype=torch.int32)
        _INT8[weight] = state, made
    return made


class _SelfAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` of (B, T, D) with itself, whatever its `batch_first` says."""

    def forward(self, query: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> Any:
        packed = dense(query, self.in_proj_weight, self.in_proj_bias)
        heads = packed.unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3)  # (B, h, 3, T, d)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        q, k, v = heads.unbind(2)
        mixed = attend(q, k, v, attn_mask).transpose(1, 2).flatten(2)
        return dense(mixed, self.out_proj.weight, self.out_proj.bias), None


def accelerate(model: nn.Module) -> None:
    """Exchange the classes of a frozen model's layers, in place. Attentions must be given (B, T,
    D), and the same tensor as query, key and value."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is nn.MultiheadAttention:
            module.__class__ = _SelfAttention


def quantise(layers: Iterable[nn.Module]) -> None:
    """Exchange the classes of a frozen teacher's linear layers for those that compute in int8."""
    for layer in layers:
        for module in layer.modules():
            if type(module) in (nn.Linear, _Linear):
                module.__class__ = _Int8Linear


def lower_weights(model: nn.Module, precision: str) -> None:
    """Convert for good what autocast would convert for every image, in place."""
    if precision == "float32":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(DTYPES[precision])
        elif isinstance(module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "in_proj_bias"):
                parameter = getattr(module, name)
                parameter.data = parameter.data.to(DTYPES[precision])

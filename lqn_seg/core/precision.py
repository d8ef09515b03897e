"""Precisions of matrix products: their names, and whose is in force."""

from contextlib import AbstractContextManager, nullcontext

import torch

from lqn_seg.core.config import PRECISIONS
from lqn_seg.errors import InputError

# int8 is for the linear products of a teacher's layers; all others are then in bfloat16.
DTYPES = {
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16},
    "int8": torch.bfloat16,
}


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bfloat16 where matrix products have hardware for it. An
    `InputError` where it is none of `PRECISIONS`, or int8 and the device has no products for it."""
    if precision not in PRECISIONS:
        raise InputError(f"a precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "int8" and not (
        device.type == "cpu" and torch.cpu._is_vnni_supported() and has_bfloat16(device)
    ):
        raise InputError(
            "int8 needs a CPU with AVX-512 VNNI and bfloat16: choose another precision"
        )
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def mixed_precision(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    """Products in bfloat16, for a training, where the hardware has them: emulated, an iteration of
    seconds takes minutes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 have hardware."""
    return resolve_precision("auto", device) == "bfloat16"


def operand_precision(device: torch.device) -> AbstractContextManager[None]:
    """Products in the precision of their operands, even if the caller is under autocast."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device
        return nullcontext()
    return torch.autocast(device.type, enabled=False)

"""Arithmetic that keeps its own precision, whatever the caller's is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def own_precision(device: torch.device) -> AbstractContextManager[None]:
    """Products in the precision of their operands, even if the caller is under autocast."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device
        return nullcontext()
    return torch.autocast(device.type, enabled=False)

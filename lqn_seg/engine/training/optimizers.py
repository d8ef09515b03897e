"""Optimisers and their rates at every step: from a random start, or from a pretrained backbone."""

import math
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

NEW = "new"  # the part of what no backbone brings
POWER = 0.9  # of the decay, as EoMT's

# A parameter's name -> the part that it belongs to, and how many blocks lie above it.
PartOf = Callable[[str], tuple[str, int]]


def optimizers_from_scratch(learner: nn.Module, solver: CfgNode) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, at 20 times the rate (its step is orthogonal), AdamW
    for the rest: the same loss in about half the steps, which on a CPU is what counts."""
    named = dict(learner.named_parameters())
    inside = [name for name, x in named.items() if "layers." in name and x.ndim == 2]
    matrices = [named.pop(name) for name in inside]
    rate, decay = solver.BASE_LR, solver.WEIGHT_DECAY
    return [
        torch.optim.Muon(matrices, lr=20 * rate, weight_decay=decay),
        torch.optim.AdamW(named.values(), lr=rate, weight_decay=decay, betas=(0.9, 0.98)),
    ]


def optimizer_from_backbone(
    learner: nn.Module, part_of: PartOf, cfg: CfgNode
) -> torch.optim.Optimizer:
    """EoMT's AdamW (tue-mps/eomt), one group for each part. A parameter with k blocks above it has
    the rate ``BASE_LR * LAYER_DECAY ** k``. New parts warm up over ``WARMUP_ITERS`` steps, the
    backbone over the ``BACKBONE_WARMUP`` after them (see `two_stage_factor`); all decays."""
    solver, train = cfg.SOLVER, cfg.MODEL.LQN.TRAIN
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in learner.named_parameters():
        part, above = part_of(name)
        start, warmup = (0, solver.WARMUP_ITERS)
        if part != NEW:
            start, warmup = solver.WARMUP_ITERS, train.BACKBONE_WARMUP
        rate = solver.BASE_LR * train.LAYER_DECAY**above
        group = {"params": [], "lr": rate, "name": part, "start": start, "warmup": warmup}
        groups.setdefault(part, group)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), weight_decay=solver.WEIGHT_DECAY)


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def two_stage_factor(step: int, start: int, warmup: int, total: int) -> float:
    """Of the rate: 0 until ``start``, up on a line for ``warmup`` steps, then down to 0 at
    ``total`` as a polynomial. Before ``start`` weights stand still, but Adam's moments do not: they
    follow gradients from the first step, as in EoMT's training."""
    if step < start:
        return 0.0
    if step < start + warmup:
        return (step - start) / warmup
    left = total - start - warmup
    return (1 - (step - start - warmup) / max(left, 1)) ** POWER

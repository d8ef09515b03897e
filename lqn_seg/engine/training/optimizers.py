"""Optimisers of an EoMT and their rates at every step: from a random start, or from a DINOv2."""

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from lqn_seg.teachers.eomt_model import VIT_PARTS

POWER = 0.9  # of the decay, as EoMT's


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


def optimizer_from_backbone(learner: Any, cfg: CfgNode) -> torch.optim.Optimizer:
    """EoMT's AdamW. Block k of n has the rate ``BASE_LR * LAYER_DECAY ** (n - 1 - k)``, patch and
    position embeddings that of block 0, all else ``BASE_LR``. A group's ``start`` is the step
    until which it stands still (see `two_stage_factor`)."""
    solver, train = cfg.SOLVER, cfg.MODEL.LQN.TRAIN
    blocks = len(learner.model.layers)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in learner.named_parameters():
        part, depth = part_of(name.removeprefix("model."), blocks)
        rate = solver.BASE_LR * train.LAYER_DECAY**depth
        start = 0 if part == "new" else solver.WARMUP_ITERS
        group = {"params": [], "lr": rate, "initial_lr": rate, "name": part, "start": start}
        groups.setdefault(part, group)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), weight_decay=solver.WEIGHT_DECAY)


def part_of(name: str, blocks: int) -> tuple[str, int]:
    """The part that a parameter of an EoMT belongs to, and how many blocks lie above it."""
    if not name.startswith(VIT_PARTS):
        return "new", 0
    words = name.split(".")
    if words[0] == "layers":
        return f"block {words[1]}", blocks - 1 - int(words[1])
    return words[0], blocks - 1 if words[0] == "embeddings" else 0


def two_stage_factor(step: int, start: int, warmup: int, total: int) -> float:
    """Of the rate: 0 until ``start``, up on a line for ``warmup`` steps, then down to 0 at
    ``total`` as a polynomial."""
    if step < start:
        return 0.0
    if step < start + warmup:
        return (step - start) / warmup
    left = total - start - warmup
    return (1 - (step - start - warmup) / max(left, 1)) ** POWER


def stand_still(groups: Sequence[dict[str, Any]], step: int) -> None:
    """Compute no gradients for groups that have not started: a third of a step's cost."""
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(step >= group.get("start", 0))

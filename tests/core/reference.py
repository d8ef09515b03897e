"""The student as one would write it down from the paper: slow, plain, in float64.

Inputs are concatenated, layers are torch.nn's, the optimizer is torch.optim.Adam.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def encode(position: list[float], position_dim: int, flag: int, axes: int) -> list[float]:
    """One location's features, number by number."""
    pairs = (position_dim - 2) // 2
    split = [pairs // axes] * (axes - 1)
    split.append(pairs - sum(split))
    code = []
    for value, count in zip(position, split):
        for k in range(count):
            angle = value / 10000 ** (k / count)
            code += [math.sin(angle), math.cos(angle)]
    return [*code, math.sin(flag), math.cos(flag)]


def encode_all(positions: Tensor, position_dim: int, flag: int, axes: int) -> Tensor:
    rows = [encode(row, position_dim, flag, axes) for row in positions.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


class Student(nn.Module):
    """Table 4, for one image. `config` is lqn_seg's StudentConfig."""

    def __init__(self, config, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(3, 1, config.stride, config.stride)
        locations = 2 if config.source and config.combine == "concatenate" else 1
        inputs = (config.input_size // config.stride) ** 2 + locations * config.position_dim
        inputs += feature_dim if config.guide else 0
        sizes = [inputs, *config.widths, feature_dim]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.double()

    def forward(
        self, image: Tensor, source: Tensor, destination: Tensor, guide: Tensor | None = None
    ) -> Tensor:
        """(3, s, s), (n, 3), (n, 3) and the guiding tokens (n, D), if any, to (n, D)."""
        c = self.config
        dest = encode_all(destination, c.position_dim, 1, c.axes)
        parts = [dest]
        if c.source:
            src = encode_all(source, c.position_dim, 0, c.axes)
            parts = [src, dest] if c.combine == "concatenate" else [src + dest]
        if c.guide:
            parts.append(guide)
        flat = self.conv(image[None]).flatten()
        hidden = torch.cat([flat.expand(len(dest), -1), *parts], dim=1)
        for linear in self.linears[:-1]:
            hidden = torch.relu(linear(hidden))
        return self.linears[-1](hidden)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters under lqn_seg's names; the first matrix in its column blocks (views)."""
        return self._named({n: p.data for n, p in self.named_parameters()})

    def gradients(self) -> dict[str, Tensor]:
        return self._named({n: p.grad for n, p in self.named_parameters()})

    def _named(self, t: dict[str, Tensor]) -> dict[str, Tensor]:
        c = self.config
        image = (c.input_size // c.stride) ** 2
        first = t["linears.0.weight"]
        if c.guide:  # its block comes last
            features = len(t[f"linears.{len(c.widths)}.bias"])
            first, guide = first[:, :-features], first[:, -features:]
        named = {
            "conv.weight": t["conv.weight"].view(-1),
            "conv.bias": t["conv.bias"],
            "first.image": first[:, :image],
            "first.destination": first[:, -c.position_dim :],
            "first.bias": t["linears.0.bias"],
        }
        if c.source and c.combine == "concatenate":
            named["first.source"] = first[:, image : image + c.position_dim]
        if c.guide:
            named["first.guide"] = guide
        for k in range(1, len(self.linears)):
            name = f"hidden{k}" if k < len(c.widths) else "output"
            named[f"{name}.weight"] = t[f"linears.{k}.weight"]
            named[f"{name}.bias"] = t[f"linears.{k}.bias"]
        return named

    def load(self, weights: dict[str, Tensor], student: int = 0) -> Student:
        """Take the weights of one of lqn_seg's students."""
        own = self.tensors()
        assert own.keys() == weights.keys()
        for name, tensor in own.items():
            tensor.copy_(weights[name][student])
        return self


def standardised(layer: Tensor) -> Tensor:
    """(H, W, D) tokens of one layer as they guide: feature by feature, over the positions."""
    features = [(x - x.mean()) / x.std(correction=0) for x in layer.double().unbind(-1)]
    return torch.stack(features, -1)


def fit(
    student: Student, looks, steps, config, guide: Tensor | None = None, classify=None
) -> list[float]:
    """Algorithm 1 at given positions; `steps` yields (dest, src1, src2), (n, 3) each.

    `looks` are (image, field) of each view, taken in turn. `guide` is (H, W, D), where the student
    reads one. With `classify`, tokens (n, D) to logits, its entropy is in the binding loss's place.
    """
    adam = torch.optim.Adam(
        student.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.eps
    )
    curve = []
    for step, (dest, src1, src2) in enumerate(steps):
        image, field = looks[step % len(looks)]
        i, j, layer = dest.unbind(1)
        anchor = torch.zeros_like(dest)
        near = None if guide is None else guide[i - 1, j - 1]
        predicted = student(image, anchor, dest, near)
        loss = ((predicted - field[layer - 1, i - 1, j - 1]) ** 2).mean()
        if classify:
            loss = torch.distributions.Categorical(logits=classify(predicted)).entropy().mean()
        if student.config.source:
            both = [student(image, source, dest, near) for source in (src1, src2)]
            loss_r = (both[0] - both[1]) ** 2
            loss = loss + config.alpha * loss_r.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        curve.append(loss.item())
    return curve

"""The algorithm as one would write it down from the paper, for one image, in float64 unless asked.

Inputs are concatenated for every query. The tests hold `core.lqn` against it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def encode(positions: Tensor, position_dim: int, flag: int, axes: int) -> Tensor:
    """(n, 3) addresses to (n, d_p) float64: a block per axis, sines and cosines; a flag."""
    pairs = (position_dim - 2) // 2
    split = [pairs // axes] * (axes - 1)
    split.append(pairs - sum(split))
    blocks = []
    for value, count in zip(positions.double().unbind(1), split):
        k = torch.arange(count, dtype=torch.float64, device=positions.device)
        angles = value[:, None] / 10000 ** (k / count)
        blocks.append(torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1))
    role = torch.full((len(positions),), float(flag), dtype=torch.float64, device=positions.device)
    return torch.cat([*blocks, role.sin()[:, None], role.cos()[:, None]], dim=1)


class Student(nn.Module):
    """Table 4, for one image. `config` is lqn_seg's StudentConfig."""

    def __init__(self, config, feature_dim: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(3, 1, config.stride, config.stride)
        locations = 2 if config.source else 1
        inputs = (config.input_size // config.stride) ** 2 + locations * config.position_dim
        inputs += feature_dim if config.guide else 0
        sizes = [inputs, *config.widths, feature_dim]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.to(dtype)

    @torch.no_grad()
    def reset(self) -> None:
        """N(0, 0.01^2) for every weight."""
        for parameter in self.parameters():
            parameter.normal_(0, 0.01)

    def forward(
        self, image: Tensor, source: Tensor, destination: Tensor, guide: Tensor | None = None
    ) -> Tensor:
        """(3, s, s), (n, 3), (n, 3) and the guiding tokens (n, D), if any, to (n, D)."""
        c = self.config
        flat = self.conv(image[None]).flatten()
        dest = encode(destination, c.position_dim, 1, c.axes).to(flat.dtype)
        parts = [dest]
        if c.source:
            src = encode(source, c.position_dim, 0, c.axes).to(flat.dtype)
            parts = [src, dest]
        if c.guide and guide is not None:
            parts.append(guide)
        hidden = torch.cat([flat.expand(len(dest), -1), *parts], dim=1)
        for linear in self.linears[:-1]:
            hidden = torch.relu(linear(hidden))
        return self.linears[-1](hidden)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters under lqn_seg's names; the first matrix in its column blocks (views)."""
        return self._named({n: p.data for n, p in self.named_parameters()})

    def gradients(self) -> dict[str, Tensor]:
        return self._named({n: p.grad for n, p in self.named_parameters() if p.grad is not None})

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
            "first.image": first[:, :image].T,
            "first.destination": first[:, -c.position_dim :].T,
            "first.bias": t["linears.0.bias"],
        }
        if c.source:
            named["first.source"] = first[:, image : image + c.position_dim].T
        if c.guide:
            named["first.guide"] = guide.T
        for k in range(1, len(self.linears)):
            name = f"hidden{k}" if k < len(c.widths) else "output"
            named[f"{name}.weight"] = t[f"linears.{k}.weight"].T
            named[f"{name}.bias"] = t[f"linears.{k}.bias"]
        return named

    def load(self, weights: dict[str, Tensor], student: int = 0) -> Student:
        """Take the weights of one of lqn_seg's students."""
        tensors = self.tensors()
        assert tensors.keys() == weights.keys()
        for name, tensor in tensors.items():
            tensor.copy_(weights[name][student])
        return self


def standardised(layer: Tensor) -> Tensor:
    """(H, W, D) tokens of one layer as they guide: feature by feature, over the positions."""
    features = [(x - x.mean()) / x.std(correction=0) for x in layer.double().unbind(-1)]
    return torch.stack(features, -1)


def fit(
    student: Student, views, steps, config, guide: Tensor | None = None, classify=None
) -> list[float]:
    """Algorithm 1 at (n, 3) positions: `steps` yields dest and, to recirculate, src1 and src2.

    `views` are (image, field) of each view, taken in turn. `guide` is (H, W, D), where the student
    reads one. With `classify`, tokens (n, D) to logits, its entropy is in the binding loss's place.
    """
    adam = torch.optim.Adam(
        student.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.eps
    )
    curve = []
    for step, (dest, *others) in enumerate(steps):
        image, field = views[step % len(views)]
        i, j, layer = dest.long().unbind(1)  # a view moved by half a token: rounded down
        sources = [torch.zeros_like(dest), *others]
        near = None if guide is None else guide[i - 1, j - 1].repeat(len(sources), 1)
        destinations = dest.repeat(len(sources), 1)
        tokens = student(image, torch.cat(sources), destinations, near)
        predicted, *both = tokens.split(len(dest))
        loss = ((predicted - field[layer - 1, i - 1, j - 1]) ** 2).mean()
        if classify:
            loss = torch.distributions.Categorical(logits=classify(predicted)).entropy().mean()
        if both:
            loss = loss + config.alpha * ((both[0] - both[1]) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        curve.append(loss.item())
    return curve


def fit_as_apm(
    student: Student,
    adam: torch.optim.Adam,
    image: Tensor,
    last_layer: Callable[[], Tensor],
    destinations: list[Tensor],
) -> None:
    """The loop of APM's release: what it costs, and its habits, which are not ours.

    The teacher runs in every iteration (`last_layer` gives (H, W, D)); gradients are zeroed once
    per image and pile up; the optimizer is the caller's, moments and all, from image to image.
    """
    adam.zero_grad()
    for dest in destinations:
        i, j, _ = dest.unbind(1)
        target = last_layer()[i - 1, j - 1]
        loss = ((student(image, dest, dest) - target) ** 2).mean()
        loss.backward()
        adam.step()

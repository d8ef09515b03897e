"""A recipe run as we run it, and as APM's release does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lqn_seg.adapt.journey import over_variance
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.lqn import FittedStudents, StudentFitter
from lqn_seg.core.random import RandomKey
from lqn_seg.core.view import View
from lqn_seg.lab.benchmark.teachers import Scene
from lqn_seg.lab.cost.cost import measure


def with_fit(config: LQNConfig, **changes: Any) -> LQNConfig:
    return replace(config, fit=replace(config.fit, **changes))


class Run:
    """A recipe's students on one image, `batch` times side by side."""

    def __init__(self, scene: Scene, config: LQNConfig, batch: int = 1) -> None:
        self.config, self.device = config, scene.field.device
        self.grid, self.width = scene.grid, scene.teacher.width
        self.fields = scene.field.expand(batch, *self.grid, self.width)
        side = config.student.input_size
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, side, side, generator=generator)
        self.images, self.keys = images.to(self.device), [RandomKey(0, b) for b in range(batch)]
        self.fitter = self.new_fitter(config)
        self.fitted: FittedStudents | None = None

    def new_fitter(self, config: LQNConfig) -> StudentFitter:
        return StudentFitter(config, self.grid, self.width, self.device)

    def fit(self) -> FittedStudents:
        self.fitted = self.fitter.fit(self.images, self.fields, self.keys)
        return self.fitted

    def query(self) -> Tensor:
        return (self.fitted or self.fit()).query_layer(self.grid[0])

    def peak_bytes(self) -> int:
        """Of two steps with storage of their own, and a query: more steps hold no more."""
        short = with_fit(self.config, steps=min(2, self.config.fit.steps))

        def once() -> None:
            fitter = self.new_fitter(short)
            fitter.fit(self.images, self.fields, self.keys).query_layer(self.grid[0])

        return measure(once).peak_bytes


def drifts(runs: Mapping[str, Run], tokens: Tensor) -> dict[str, float]:
    """By precision, the squared difference of a student's last layer to its answer in float32, over
    the variance of the teacher's `tokens` (B, H, W, D); empty without float32."""
    if "float32" not in runs:
        return {}
    exact = runs["float32"].query()
    return {name: over_variance(run.query() - exact, tokens) for name, run in runs.items()}


class ApmReference:
    """The loop of APM's release, for as many steps: the teacher runs in each, and gradients are
    zeroed once an image and pile up."""

    def __init__(self, scene: Scene, config: LQNConfig) -> None:
        self.scene, self.config = scene, with_fit(config, precision="float32")

    def run(self) -> FittedStudents:
        ours = Run(self.scene, self.config)
        fitter, fit = ours.fitter, self.config.fit
        start = ours.new_fitter(with_fit(self.config, steps=0))
        fitted = start.fit(ours.images, ours.fields, ours.keys)
        weights = list(dict.fromkeys(fitted.students.weights.values()))
        adam = torch.optim.Adam(weights, fit.learning_rate, fit.betas, fit.eps)
        shape = tuple(ours.fields.shape)
        for indices in fitter.uniform(0, ours.keys[0])[:, :, None].unbind(1):  # (1, 1, n)
            field, _ = self.scene.encode()
            seen = View.of(ours.images, field.float(), self.config, fitter.layers, shape)
            fitted.loss(seen, indices).sum().backward()
            adam.step()
        return fitted

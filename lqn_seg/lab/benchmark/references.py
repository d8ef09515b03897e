"""A recipe run as we run it, as the paper would be written down, and as APM's release does it."""

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
from lqn_seg.lab.benchmark import plain_port
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


class PlainReference:
    """The plain port, from our students' weights, at our students' positions."""

    def __init__(self, scene: Scene, config: LQNConfig) -> None:
        self.scene, self.config = scene, with_fit(config, precision="float32")
        self.ours = Run(scene, self.config)
        start = self.ours.new_fitter(with_fit(self.config, steps=0))
        fitted = start.fit(self.ours.images, self.ours.fields, self.ours.keys)
        weights = fitted.students.weights
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        # (n, 3) destinations and both sources of every step.
        indices = self.ours.fitter.uniform(0, self.ours.keys[0])
        self.positions = [list(fitted.addresses[step].long()) for step in indices.unbind(1)]
        self.curve: list[float] = []

    def student(self) -> Any:
        """Our students' weights, after fresh ones are drawn, to be comparable."""
        student = plain_port.Student(self.config.student, self.ours.width, torch.float32)
        student.to(self.ours.device).reset()
        return student.load(self.weights)

    def run(self) -> None:
        view = [(self.ours.images[0], self.scene.field[0].float())]
        self.curve = plain_port.fit(self.student(), view, self.positions, self.config.fit)

    def loss_difference(self, ours: Run | None) -> float | None:
        """The largest relative difference to the loss curve of our students in float32."""
        if not self.curve:
            return None
        fitted = (ours or self.ours).fitted or self.ours.fit()
        plain = torch.tensor(self.curve)
        return float(((fitted.loss_curve[0].cpu() - plain) / plain).abs().max())


class ApmReference(PlainReference):
    """The loop of APM's release, with the teacher in it, for as many steps."""

    def run(self) -> None:
        student, fit = self.student(), self.config.fit
        adam = torch.optim.Adam(student.parameters(), fit.learning_rate, fit.betas, fit.eps)
        plain_port.fit_as_apm(
            student,
            adam,
            self.ours.images[0],
            lambda: self.scene.encode()[0][0, -1].float(),
            [destination for destination, *_ in self.positions],
        )

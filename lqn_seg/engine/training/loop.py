"""The loop that trains either teacher: rates, steps, progress, Ctrl-C, and what is said of it."""

import json
import math
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from lqn_seg.engine.interruption import patient
from lqn_seg.engine.store import make_writable
from lqn_seg.errors import InputError


def learning_rate_factor(iteration: int, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(total - warmup, 1)))


class _NoScalars(nullcontext[None]):
    def add_scalar(self, *_: object) -> None:
        pass


def scalar_writer(folder: Path) -> Any:
    """TensorBoard's writer of loss and rates into a folder, where the package is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return _NoScalars()
    return SummaryWriter(str(folder))


class Trainer(ABC):
    """``SOLVER.MAX_ITER`` iterations on the one data set of ``DATASETS.TRAIN``. A sub-class sets
    `model` and `optimizers`, whose first rates `learning_rate_factor` scales."""

    model: Any
    optimizers: list[torch.optim.Optimizer]

    def __init__(self, cfg: CfgNode) -> None:
        if len(cfg.DATASETS.TRAIN) != 1:
            raise InputError("DATASETS.TRAIN must name exactly one data set")
        self.cfg, self.solver = cfg, cfg.SOLVER
        self.seed = max(cfg.SEED, 0)
        self.output = Path(cfg.OUTPUT_DIR)
        self.iteration, self.seconds = 0, 0.0
        self.losses: list[float] = []

    @abstractmethod
    def batch(self) -> Any:
        """What the next iteration learns from."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor: ...

    def rate_factor(self, group: dict[str, Any]) -> float:
        """What a group's first rate is multiplied by in this iteration."""
        solver = self.solver
        return learning_rate_factor(self.iteration, solver.WARMUP_ITERS, solver.MAX_ITER)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimisers' parameter groups."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def checkpoint(self) -> None:  # noqa: B027 (not every training can be resumed)
        """Keep the state of an unfinished training."""

    def step(self) -> float:
        """One iteration; returns its loss."""
        solver, groups = self.solver, self.groups
        for group in groups:
            rate = group.setdefault("initial_lr", group["lr"])
            group["lr"] = rate * self.rate_factor(group)
        loss = self.loss(self.batch())
        loss.backward()
        if solver.CLIP_GRADIENTS.ENABLED:
            trained = [parameter for group in groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, solver.CLIP_GRADIENTS.CLIP_VALUE)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.iteration += 1
        return loss.item()

    def run(self) -> bool:
        """Iterate to the end; False if Ctrl-C came first, after the iteration that it came in. An
        `InputError` if the loss is not finite any more, or ``OUTPUT_DIR`` cannot be written to."""
        make_writable(self.output)
        self.model.train()
        total, before, start = self.solver.MAX_ITER, self.seconds, time.perf_counter()
        scalars = scalar_writer(self.output)
        bar = tqdm(total=total, initial=self.iteration, desc="training", unit="iteration")
        with patient() as stop, bar, scalars:
            while self.iteration < total:
                loss = self.step()
                if not math.isfinite(loss):
                    raise InputError(
                        f"training diverged at iteration {self.iteration}: lower SOLVER.BASE_LR"
                    )
                self.losses.append(round(loss, 4))
                self.seconds = before + time.perf_counter() - start
                bar.set_postfix(loss=f"{np.mean(self.losses[-20:]):.3f}", refresh=False)
                bar.update()
                scalars.add_scalar("train/loss", loss, self.iteration)
                for number, group in enumerate(self.groups):
                    name = group.get("name", str(number))
                    scalars.add_scalar(f"rate/{name}", group["lr"], self.iteration)
                if self.iteration % self.solver.CHECKPOINT_PERIOD == 0:
                    self.checkpoint()
                if stop():
                    break
        return self.iteration == total

    def write_about(self, folder: Path, images: int, **more: Any) -> None:
        """Write ``training.json``, how the teacher in a folder was made."""
        about = {
            "dataset": self.cfg.DATASETS.TRAIN[0],
            "images": images,
            "iterations": self.iteration,
            **more,
            "seed": self.seed,
            "loss_first_100": round(float(np.mean(self.losses[:100])), 4),
            "loss_last_100": round(float(np.mean(self.losses[-100:])), 4),
            "minutes": round(self.seconds / 60, 1),
            "torch": torch.__version__,
        }
        (folder / "training.json").write_text(json.dumps(about, indent=2) + "\n")

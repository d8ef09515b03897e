"""The loop that trains either teacher: rates, steps, averages, checkpoints, Ctrl-C, and what is
said of it."""

import json
import math
import os
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from lqn_seg.core.precision import has_bfloat16
from lqn_seg.engine.interruption import patient
from lqn_seg.engine.store import make_writable, say
from lqn_seg.engine.training.optimizers import learning_rate_factor, two_stage_factor
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Size
from lqn_seg.teachers.files import named

_TIMED = 5  # iterations, after the first, that the expected duration is told from


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(50), duration(700), duration(9000)
    ('about 50 seconds', 'about 12 minutes', 'about 2.5 hours')
    """
    if seconds < 100:
        return f"about {seconds:.0f} seconds"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"


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
    """``SOLVER.MAX_ITER`` iterations on the one data set of ``DATASETS.TRAIN``, resumable.

    A sub-class says what it trains and calls `set_up` when that is built.

    Attributes:
        kind: what is trained, for messages.
        start: what it starts from.
        shape: of the model, as text: two runs must share it for one to go on from the other.
        size: (height, width) of its images in pixels.
        learner: the module that is trained.
        average: the moving average of its weights; None where ``TRAIN.EMA`` is 0.
        random: what the batches may be drawn from; its state is kept in checkpoints.
    """

    kind: ClassVar[str]
    learner: Any
    start: str
    shape: str
    size: Size

    def __init__(self, cfg: CfgNode) -> None:
        if len(cfg.DATASETS.TRAIN) != 1:
            raise InputError("DATASETS.TRAIN must name exactly one data set")
        self.cfg, self.solver = cfg, cfg.SOLVER
        self.seed = max(cfg.SEED, 0)
        self.random = torch.Generator().manual_seed(self.seed)
        self.output = Path(cfg.OUTPUT_DIR)
        self.checkpoint_path = self.output / "checkpoint.pt"
        self.iteration, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def set_up(self, learner: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Train a module by optimisers whose rates as they are now are scaled at every step."""
        self.learner, self.optimizers = learner, optimizers
        for group in self.groups:
            group["initial_lr"] = group["lr"]
        decay = self.cfg.MODEL.LQN.TRAIN.EMA
        average = get_ema_multi_avg_fn(decay)
        self.average = AveragedModel(learner, multi_avg_fn=average) if decay else None

    @classmethod
    def precision(cls, cfg: CfgNode) -> str:
        """Of the matrix products, in words."""
        if not cfg.SOLVER.AMP.ENABLED:
            return "float32"
        if has_bfloat16(torch.device(cfg.MODEL.DEVICE)):
            return "mixed, matrix products in bfloat16"
        return (
            f"float32; SOLVER.AMP.ENABLED has no effect, because this {cfg.MODEL.DEVICE} has no "
            "hardware for bfloat16"
        )

    @property
    @abstractmethod
    def image_count(self) -> int:
        """Number of images that are trained on."""

    @abstractmethod
    def batch(self) -> Any:
        """What the next iteration learns from."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor: ...

    @abstractmethod
    def export(self, learner: Any, folder: Path) -> None:
        """Write the finished teacher, without ``training.json``."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimisers' parameter groups."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def rate(self, group: dict[str, Any]) -> float:
        """Learning rate of a group in this iteration."""
        step, total = self.iteration, self.solver.MAX_ITER
        if "start" in group:
            factor = two_stage_factor(step, group["start"], group["warmup"], total)
        else:
            factor = learning_rate_factor(step, self.solver.WARMUP_ITERS, total)
        return group["initial_lr"] * factor

    def step(self) -> float:
        """One iteration; returns its loss."""
        groups, clip = self.groups, self.solver.CLIP_GRADIENTS
        for group in groups:
            group["lr"] = self.rate(group)
        loss = self.loss(self.batch())
        loss.backward()
        if clip.ENABLED:
            trained = [parameter for group in groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, clip.CLIP_VALUE)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.iteration += 1
        return loss.item()

    def train(self, resume: bool = False) -> Path:
        """Train to ``SOLVER.MAX_ITER``; returns the directory of the finished teacher. At Ctrl-C a
        checkpoint is written after the last whole iteration, and a `KeyboardInterrupt` says so."""
        if resume:
            self.load_checkpoint()
        self.announce()
        is_whole = self.run()
        self.checkpoint()
        if not is_whole:
            raise KeyboardInterrupt(
                f"{self.iteration} of {self.solver.MAX_ITER} iterations are in "
                f"{self.checkpoint_path}; continue with --resume"
            )
        folder = self.output / "teacher"
        self.export(self.average.module if self.average else self.learner, folder)
        self.write_about(folder)
        return folder

    def announce(self) -> None:
        """Say what is known of model and data once they are built."""
        solver, count = self.solver, self.image_count
        height, width = self.size
        total = solver.MAX_ITER * solver.IMS_PER_BATCH
        parameters = sum(x.numel() for x in self.learner.parameters()) / 1e6
        print(
            f"{self.kind} of {parameters:.1f} M parameters, from {self.start}, on {count} images "
            f"of {self.cfg.DATASETS.TRAIN[0]} at {height}x{width} pixels: {total / count:.1f} "
            f"epochs; starting at iteration {self.iteration}",
            flush=True,
        )

    def run(self) -> bool:
        """Iterate to the end; False if Ctrl-C came first, after the iteration that it came in. An
        `InputError` if the loss is not finite any more, or ``OUTPUT_DIR`` cannot be written to."""
        make_writable(self.output)
        self.learner.train()
        total, before, start = self.solver.MAX_ITER, self.seconds, time.perf_counter()
        timed = range(self.iteration + 1, self.iteration + 1 + _TIMED)
        began = start
        scalars = scalar_writer(self.output)
        bar = tqdm(total=total, initial=self.iteration, desc="training", unit="iteration")
        with patient() as stop, bar, scalars:
            while self.iteration < total:
                loss = self.step()
                if not math.isfinite(loss):
                    raise InputError(
                        f"training diverged at iteration {self.iteration}; lower SOLVER.BASE_LR"
                    )
                if self.average:
                    self.average.update_parameters(self.learner)
                self.losses.append(round(loss, 4))
                now = time.perf_counter()
                self.seconds = before + now - start
                if self.iteration == timed.start:  # the first one is slower
                    began = now
                elif self.iteration == timed.stop < total:
                    each = (now - began) / _TIMED
                    say(f"{each:.2g} s per iteration, {duration(each * (total - timed.stop))} left")
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

    def recipe(self) -> str:
        """What two runs must share for one to go on from the other's checkpoint."""
        cfg = self.cfg
        return repr(
            (cfg.SEED, cfg.DATASETS.TRAIN, cfg.SOLVER, cfg.MODEL.LQN.TRAIN, self.start, self.shape)
        )

    def checkpoint(self) -> None:
        """Write the whole training state; a kill in the middle leaves the previous one."""
        state = {
            "learner": self.learner.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": (self.random.get_state(), torch.get_rng_state()),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": self.losses,
            "average": self.average and self.average.state_dict(),
            "recipe": self.recipe(),
        }
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint_path)

    def load_checkpoint(self) -> None:
        """Go on from the checkpoint in the output folder, if there is one."""
        if not self.checkpoint_path.is_file():
            return
        with named(f"{self.checkpoint_path} cannot be read"):
            state = torch.load(self.checkpoint_path, weights_only=True)
        if state["recipe"] != self.recipe():
            raise InputError(
                f"{self.checkpoint_path} is of another configuration: choose another OUTPUT_DIR, "
                "or start again without --resume"
            )
        self.learner.load_state_dict(state["learner"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        if self.average:
            self.average.load_state_dict(state["average"])
        batches, everywhere = state["random"]
        self.random.set_state(batches)
        torch.set_rng_state(everywhere)
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.losses = state["losses"]

    def write_about(self, folder: Path) -> None:
        """Write ``training.json``, how the teacher in a folder was made."""
        about = {
            "dataset": self.cfg.DATASETS.TRAIN[0],
            "images": self.image_count,
            "start": self.start,
            "iterations": self.iteration,
            "batch_size": self.solver.IMS_PER_BATCH,
            "learning_rate": self.solver.BASE_LR,
            "seed": self.seed,
            "loss_first_100": round(float(np.mean(self.losses[:100])), 4),
            "loss_last_100": round(float(np.mean(self.losses[-100:])), 4),
            "minutes": round(self.seconds / 60, 1),
            "torch": torch.__version__,
        }
        (folder / "training.json").write_text(json.dumps(about, indent=2) + "\n")

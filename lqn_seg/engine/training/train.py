"""Train an EoMT teacher on the native engine, resumable; its losses are in `eomt_training`."""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lqn_seg.config.nodes import augmentation_config, get_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.interruption import patient
from lqn_seg.engine.store import make_writable
from lqn_seg.engine.training.eomt_training import anneal, eomt_losses, untrained_eomt
from lqn_seg.engine.training.pixel_classifier import PixelClassifier
from lqn_seg.engine.training.training_images import TrainingImages
from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt_model import image_size_of
from lqn_seg.teachers.preprocessing import write_preprocessor


@dataclass(frozen=True)
class TrainingState:
    """What ``training.json`` says about how a teacher was made."""

    dataset: str
    images: int
    iterations: int
    batch_size: int
    learning_rate: float
    seed: int
    loss_first_100: float
    loss_last_100: float
    minutes: float
    torch: str


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, Tensor) else [v.to(device) for v in value]
        for key, value in batch.items()
    }


def learning_rate_factor(iteration: int, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(total - warmup, 1)))


def build_optimizers(
    model: nn.Module, learning_rate: float, weight_decay: float, others: Iterable[nn.Module] = ()
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else and for ``others``.

    Muon's step is an orthogonal matrix, so its rate is on another scale: 20 times AdamW's. It
    reaches the same loss in about half the steps here, which on a CPU is what counts.
    """
    matrices = [p for name, p in model.named_parameters() if "layers." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for module in (model, *others) for p in module.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=20 * learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98)),
    ]


class TeacherTrainer:
    """Trains one EoMT from a config; every batch follows from (seed, iteration) alone."""

    def __init__(self, cfg: CfgNode) -> None:
        if len(cfg.DATASETS.TRAIN) != 1:
            raise InputError("DATASETS.TRAIN must name exactly one data set")
        if cfg.SEED < 0:
            raise InputError("SEED must be given and not negative: training is reproducible")
        self.cfg = cfg
        self.output = Path(cfg.OUTPUT_DIR)
        dataset = get_dataset(cfg.DATASETS.TRAIN[0])
        torch.manual_seed(cfg.SEED)
        self.model, self.preprocessing = untrained_eomt(cfg, dataset.metadata.class_names)
        # Depth-wise convolutions run several times faster in this layout on a CPU.
        self.model.upscale_block.to(memory_format=torch.channels_last)
        self.model.to(cfg.MODEL.DEVICE)
        self.augmentation = augmentation_config(cfg)
        self.images = TrainingImages(
            dataset, image_size_of(self.model.config), self.augmentation, self.preprocessing
        )
        self.pixel_weight: float = cfg.MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT
        self.auxiliary = nn.ModuleList()  # trained and kept in checkpoints, but never exported
        if self.pixel_weight:
            self.auxiliary.append(PixelClassifier(self.model).to(cfg.MODEL.DEVICE))
        self.optimizers = build_optimizers(
            self.model, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, self.auxiliary
        )
        self.base_rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.iteration = 0
        self.seconds = 0.0
        self.losses: list[float] = []

    def recipe(self) -> str:
        """What two runs must share for one to go on from the other's checkpoint."""
        cfg, train = self.cfg, self.cfg.MODEL.LQN.TRAIN
        shared = (cfg.SEED, cfg.DATASETS.TRAIN, cfg.SOLVER, self.model.config.to_json_string())
        # Left out at its defaults: checkpoints from before there was such a key go on.
        return repr(shared if train == get_cfg().MODEL.LQN.TRAIN else (*shared, train))

    @property
    def checkpoint_path(self) -> Path:
        return self.output / "checkpoint.pt"

    def save_checkpoint(self) -> None:
        """Write the whole training state; a kill in the middle leaves the previous one."""
        state = {
            "model": self.model.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": self.losses,
            "recipe": self.recipe(),
        }
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint_path)

    def load_checkpoint(self) -> None:
        """Go on from the checkpoint in the output folder, if there is one."""
        if not self.checkpoint_path.is_file():
            return
        try:
            state = torch.load(self.checkpoint_path, weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"{self.checkpoint_path} cannot be read ({error})") from error
        if state["recipe"] != self.recipe():
            raise InputError(
                f"{self.checkpoint_path} was made by another configuration: choose another "
                "OUTPUT_DIR, or leave --resume out to start again"
            )
        self.model.load_state_dict(state["model"])
        self.auxiliary.load_state_dict(state.get("auxiliary", {}))
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.losses = state["losses"]

    def batch_indices(self, iteration: int) -> tuple[list[int], list[bool]]:
        """Indices and flips of one iteration: consecutive slices of one shuffle per epoch."""
        size, total = self.cfg.SOLVER.IMS_PER_BATCH, len(self.images)
        indices = []
        for position in range(iteration * size, (iteration + 1) * size):
            epoch, offset = divmod(position, total)
            indices.append(int(self._shuffle(epoch)[offset]))
        draws = np.random.default_rng([self.cfg.SEED, 1, iteration]).random(size)
        flips = draws < self.augmentation.flip
        return indices, flips.tolist()

    def _shuffle(self, epoch: int) -> np.ndarray:
        cached = getattr(self, "_shuffled", None)
        if cached is None or cached[0] != epoch:
            rng = np.random.default_rng([self.cfg.SEED, 0, epoch])
            self._shuffled = cached = epoch, rng.permutation(len(self.images))
        return cached[1]

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Set-prediction loss of a batch, and the weighted per-pixel one where it is asked for."""
        used = self.auxiliary if self.pixel_weight else ()
        return torch.stack(
            list(eomt_losses(self.model, batch, used, self.pixel_weight).values())
        ).sum()

    def step(self) -> float:
        """One iteration; returns its loss."""
        solver = self.cfg.SOLVER
        factor = learning_rate_factor(self.iteration, solver.WARMUP_ITERS, solver.MAX_ITER)
        for optimizer, rate in zip(self.optimizers, self.base_rates):
            optimizer.param_groups[0]["lr"] = rate * factor
        anneal(self.model, self.iteration / solver.MAX_ITER)
        seed = (self.cfg.SEED, 2, self.iteration)
        batch = self.images.batch(*self.batch_indices(self.iteration), seed)
        # The matching and the point sampling draw random numbers: keyed, so a resume repeats them.
        torch.manual_seed(self.cfg.SEED * 1_000_003 + self.iteration)
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=solver.AMP.ENABLED):
            loss = self.loss(_to_device(batch, device))
        loss.backward()
        if solver.CLIP_GRADIENTS.ENABLED:
            trained = [*self.model.parameters(), *self.auxiliary.parameters()]
            nn.utils.clip_grad_norm_(trained, solver.CLIP_GRADIENTS.CLIP_VALUE)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.iteration += 1
        return loss.item()

    def train(self, resume: bool = False) -> Path:
        """Train to ``SOLVER.MAX_ITER``; returns the directory of the finished teacher.

        Raises:
            KeyboardInterrupt: Ctrl-C; a checkpoint has been written after the last whole iteration.
            InputError: the loss is not finite any more, the checkpoint is another run's, or
                ``OUTPUT_DIR`` cannot be written to.
        """
        make_writable(self.output)
        if resume:
            self.load_checkpoint()
        self.model.train()
        solver = self.cfg.SOLVER
        started = time.perf_counter()
        already, first = self.seconds, self.iteration
        with patient() as stop:
            while self.iteration < solver.MAX_ITER:
                self._checked_step()
                elapsed = time.perf_counter() - started
                self.seconds = already + elapsed
                if self.iteration % 20 == 0 or self.iteration == solver.MAX_ITER:
                    self._tell(elapsed / (self.iteration - first))
                if self.iteration % solver.CHECKPOINT_PERIOD == 0:
                    self.save_checkpoint()
                if stop():
                    self.save_checkpoint()
                    raise KeyboardInterrupt(
                        f"{self.iteration} of {solver.MAX_ITER} iterations are in "
                        f"{self.checkpoint_path}; go on with --resume"
                    )
        self.save_checkpoint()
        return self.export()

    def _checked_step(self) -> None:
        loss = self.step()
        if not math.isfinite(loss):
            raise InputError(
                f"training diverged at iteration {self.iteration}: lower SOLVER.BASE_LR"
            )
        self.losses.append(round(loss, 4))

    def _tell(self, pace: float) -> None:
        """How far the training is; ``pace`` is in seconds per iteration."""
        total = self.cfg.SOLVER.MAX_ITER
        print(
            f"iteration {self.iteration}/{total}  loss {np.mean(self.losses[-20:]):.3f}  "
            f"{pace:.2f} s/iteration  eta {(total - self.iteration) * pace / 60:.0f} min",
            flush=True,
        )

    def export(self) -> Path:
        """Write the teacher as transformers does (safetensors) beside how it was made."""
        folder = self.output / "teacher"
        self.model.eval()
        self.model.attn_mask_probs.zero_()
        self.model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        write_preprocessor(folder, self.preprocessing, image_size_of(self.model.config))
        solver = self.cfg.SOLVER
        state = TrainingState(
            dataset=self.cfg.DATASETS.TRAIN[0],
            images=len(self.images) - len(self.images.left_out),
            iterations=self.iteration,
            batch_size=solver.IMS_PER_BATCH,
            learning_rate=solver.BASE_LR,
            seed=self.cfg.SEED,
            loss_first_100=round(float(np.mean(self.losses[:100])), 4),
            loss_last_100=round(float(np.mean(self.losses[-100:])), 4),
            minutes=round(self.seconds / 60, 1),
            torch=torch.__version__,
        )
        (folder / "training.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        return folder

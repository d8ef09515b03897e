"""Train an EoMT teacher on the native engine, resumable; its losses are in `eomt_training`."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lqn_seg.config.nodes import augmentation_config
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.training.eomt_training import EomtLosses, anneal, untrained_eomt
from lqn_seg.engine.training.loop import Trainer
from lqn_seg.engine.training.training_images import TrainingImages
from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt_model import image_size_of
from lqn_seg.teachers.files import named
from lqn_seg.teachers.preprocessing import write_preprocessor


def build_optimizers(learner: nn.Module, solver: CfgNode) -> list[torch.optim.Optimizer]:
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


class TeacherTrainer(Trainer):
    """Trains one EoMT from a config; every batch follows from (seed, iteration) alone."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        if cfg.SEED < 0:
            raise InputError("SEED must be given and not negative: training is reproducible")
        dataset = get_dataset(cfg.DATASETS.TRAIN[0])
        torch.manual_seed(cfg.SEED)
        self.model, self.preprocessing = untrained_eomt(cfg, dataset.metadata.class_names)
        # Depth-wise convolutions run several times faster in this layout on a CPU.
        self.model.upscale_block.to(memory_format=torch.channels_last)
        self.learner = EomtLosses(self.model, cfg.MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT)
        self.learner.to(cfg.MODEL.DEVICE)
        size = image_size_of(self.model.config)
        self.images = TrainingImages(dataset, size, augmentation_config(cfg), self.preprocessing)
        self.optimizers = build_optimizers(self.learner, self.solver)
        self.checkpoint_path = self.output / "checkpoint.pt"

    def recipe(self) -> str:
        """What two runs must share for one to go on from the other's checkpoint."""
        cfg, shape = self.cfg, self.model.config.to_json_string()
        return repr((cfg.SEED, cfg.DATASETS.TRAIN, cfg.SOLVER, cfg.MODEL.LQN.TRAIN, shape))

    def checkpoint(self) -> None:
        """Write the whole training state; a kill in the middle leaves the previous one."""
        state = {
            "learner": self.learner.state_dict(),
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
        with named(f"{self.checkpoint_path} cannot be read"):
            state = torch.load(self.checkpoint_path, weights_only=True)
        if state["recipe"] != self.recipe():
            raise InputError(
                f"{self.checkpoint_path} was made by another configuration: choose another "
                "OUTPUT_DIR, or leave --resume out to start again"
            )
        self.learner.load_state_dict(state["learner"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.losses = state["losses"]

    def batch_indices(self, iteration: int) -> list[int]:
        """Images of one iteration: consecutive slices of one shuffle per epoch."""
        size, total = self.solver.IMS_PER_BATCH, len(self.images)
        positions = [divmod(p, total) for p in range(iteration * size, (iteration + 1) * size)]
        shuffles = {
            epoch: np.random.default_rng([self.seed, 0, epoch]).permutation(total)
            for epoch in {epoch for epoch, _ in positions}
        }
        return [int(shuffles[epoch][offset]) for epoch, offset in positions]

    def batch(self) -> dict[str, Any]:
        seed = (self.seed, 2, self.iteration)
        batch = self.images.batch(self.batch_indices(self.iteration), seed)
        device = self.model.device
        return {
            key: value.to(device) if isinstance(value, Tensor) else [v.to(device) for v in value]
            for key, value in batch.items()
        }

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Of one batch."""
        amp = self.solver.AMP.ENABLED
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=amp):
            return torch.stack(list(self.learner.losses_of(batch).values())).sum()

    def step(self) -> float:
        anneal(self.model, self.iteration / self.solver.MAX_ITER)
        # The matching and the point sampling draw random numbers: keyed, so a resume repeats them.
        torch.manual_seed(self.seed * 1_000_003 + self.iteration)
        return super().step()

    def train(self, resume: bool = False) -> Path:
        """Train to ``SOLVER.MAX_ITER``; returns the directory of the finished teacher. At Ctrl-C a
        checkpoint is written after the last whole iteration, and a `KeyboardInterrupt` says so."""
        if resume:
            self.load_checkpoint()
        is_whole = self.run()
        self.checkpoint()
        if not is_whole:
            raise KeyboardInterrupt(
                f"{self.iteration} of {self.solver.MAX_ITER} iterations are in "
                f"{self.checkpoint_path}; go on with --resume"
            )
        return self.export()

    def export(self) -> Path:
        """Write the teacher as transformers does (safetensors) beside how it was made."""
        folder = self.output / "teacher"
        self.model.eval()
        self.model.attn_mask_probs.zero_()
        self.model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        write_preprocessor(folder, self.preprocessing, image_size_of(self.model.config))
        solver = self.solver
        more = {"batch_size": solver.IMS_PER_BATCH, "learning_rate": solver.BASE_LR}
        self.write_about(folder, len(self.images) - len(self.images.left_out), **more)
        return folder

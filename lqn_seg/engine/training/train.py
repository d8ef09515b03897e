"""Train an EoMT teacher on the native engine, resumable; its losses are in `eomt_training`."""

import os
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lqn_seg.config.nodes import augmentation_config
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.training.eomt_training import EomtLosses, anneal, untrained_eomt
from lqn_seg.engine.training.loop import Trainer
from lqn_seg.engine.training.optimizers import (
    optimizer_from_backbone,
    optimizers_from_scratch,
    stand_still,
    two_stage_factor,
)
from lqn_seg.engine.training.training_images import TrainingImages, batch_indices
from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt_model import image_size_of
from lqn_seg.teachers.files import named
from lqn_seg.teachers.preprocessing import write_preprocessor


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
        self.backbone, decay = cfg.MODEL.LQN.TRAIN.BACKBONE, cfg.MODEL.LQN.TRAIN.EMA
        if self.backbone:
            self.optimizers = [optimizer_from_backbone(self.learner, cfg)]
        else:
            self.optimizers = optimizers_from_scratch(self.learner, self.solver)
        average = get_ema_multi_avg_fn(decay)
        self.average = AveragedModel(self.learner, multi_avg_fn=average) if decay else None
        self.checkpoint_path = self.output / "checkpoint.pt"

    def announce(self) -> None:
        """Say what is about to be done."""
        solver, count = self.solver, len(self.images)
        height, width = self.images.size
        total = solver.MAX_ITER * solver.IMS_PER_BATCH
        print(
            f"training: an EoMT of {sum(x.numel() for x in self.model.parameters()) / 1e6:.1f} M "
            f"parameters, from {self.backbone or 'a random start'}, on {count} images of "
            f"{self.images.metadata.name} at {height}x{width} pixels: {solver.MAX_ITER} iterations "
            f"of {solver.IMS_PER_BATCH}, {total / count:.1f} epochs; at iteration {self.iteration}",
            flush=True,
        )

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
                f"{self.checkpoint_path} was made by another configuration: choose another "
                "OUTPUT_DIR, or leave --resume out to start again"
            )
        self.learner.load_state_dict(state["learner"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        if self.average:
            self.average.load_state_dict(state["average"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.losses = state["losses"]

    def batch_indices(self, iteration: int) -> list[int]:
        size, total = self.solver.IMS_PER_BATCH, len(self.images)
        return batch_indices(self.seed, iteration, size, total)

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

    def rate_factor(self, group: dict[str, Any]) -> float:
        if not self.backbone:
            return super().rate_factor(group)
        solver, start = self.solver, group["start"]
        warmup = self.cfg.MODEL.LQN.TRAIN.BACKBONE_WARMUP if start else solver.WARMUP_ITERS
        return two_stage_factor(self.iteration, start, warmup, solver.MAX_ITER)

    def step(self) -> float:
        anneal(self.model, self.iteration / self.solver.MAX_ITER)
        stand_still(self.groups, self.iteration)
        # The matching and the point sampling draw random numbers: keyed, so a resume repeats them.
        torch.manual_seed(self.seed * 1_000_003 + self.iteration)
        loss = super().step()
        if self.average:
            self.average.update_parameters(self.learner)
        return loss

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
                f"{self.checkpoint_path}; go on with --resume"
            )
        return self.export()

    def export(self) -> Path:
        """Write the teacher as transformers does (safetensors) beside how it was made."""
        folder = self.output / "teacher"
        model: Any = self.average.module.model if self.average else self.model
        model.eval().attn_mask_probs.zero_()
        model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        write_preprocessor(folder, self.preprocessing, image_size_of(model.config))
        solver = self.solver
        more: dict[str, Any] = {"batch_size": solver.IMS_PER_BATCH, "learning_rate": solver.BASE_LR}
        more |= {"backbone": self.backbone} if self.backbone else {}
        self.write_about(folder, len(self.images) - len(self.images.left_out), **more)
        return folder

"""Train an EoMT teacher on the native engine; its losses are in `eomt_training`."""

from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from lqn_seg.config.nodes import augmentation_config
from lqn_seg.core.precision import mixed_precision
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.training.eomt_training import EomtLosses, anneal, part_of, untrained_eomt
from lqn_seg.engine.training.loop import Trainer
from lqn_seg.engine.training.optimizers import optimizer_from_backbone, optimizers_from_scratch
from lqn_seg.engine.training.training_images import TrainingImages, batch_indices
from lqn_seg.errors import InputError
from lqn_seg.teachers.eomt_model import image_size_of
from lqn_seg.teachers.preprocessing import write_preprocessor


class TeacherTrainer(Trainer):
    """Trains one EoMT from a config; every batch follows from (seed, iteration) alone."""

    kind = "an EoMT"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        if cfg.SEED < 0:
            raise InputError(
                "SEED must be set and not negative, so that the training can be reproduced"
            )
        dataset = get_dataset(cfg.DATASETS.TRAIN[0])
        torch.manual_seed(cfg.SEED)
        self.model, self.preprocessing = untrained_eomt(cfg, dataset.metadata.class_names)
        # Depth-wise convolutions run several times faster in this layout on a CPU.
        self.model.upscale_block.to(memory_format=torch.channels_last)
        learner = EomtLosses(self.model, cfg.MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT)
        learner.to(cfg.MODEL.DEVICE)
        self.size = image_size_of(self.model.config)
        self.shape = self.model.config.to_json_string()
        augmentation = augmentation_config(cfg)
        self.images = TrainingImages(dataset, self.size, augmentation, self.preprocessing)
        backbone, blocks = cfg.MODEL.LQN.TRAIN.BACKBONE, len(self.model.layers)
        self.start = backbone or "a random start"
        self.set_up(
            learner,
            [optimizer_from_backbone(learner, lambda name: part_of(name, blocks), cfg)]
            if backbone
            else optimizers_from_scratch(learner, self.solver),
        )

    @property
    def image_count(self) -> int:
        return len(self.images) - len(self.images.left_out)

    def batch_indices(self, iteration: int) -> list[int]:
        """Images of one iteration."""
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
        with mixed_precision(self.model.device, self.solver.AMP.ENABLED):
            return torch.stack(list(self.learner.losses_of(batch).values())).sum()

    def step(self) -> float:
        anneal(self.model, self.iteration / self.solver.MAX_ITER)
        # The matching and the point sampling draw random numbers: keyed, so a resume repeats them.
        torch.manual_seed(self.seed * 1_000_003 + self.iteration)
        return super().step()

    def export(self, learner: EomtLosses, folder: Path) -> None:
        """Write the teacher as transformers does (safetensors)."""
        model = learner.model
        model.eval().attn_mask_probs.zero_()
        model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        write_preprocessor(folder, self.preprocessing, self.size)

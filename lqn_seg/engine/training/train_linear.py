"""Train a linear head on a frozen DINOv2: the third teacher, and the quickest."""

import shutil
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lqn_seg.config.nodes import augmentation_config
from lqn_seg.data.catalog import get_dataset
from lqn_seg.engine.build import find_local
from lqn_seg.engine.training.eomt_training import IGNORE, pixel_labels
from lqn_seg.engine.training.loop import Trainer
from lqn_seg.engine.training.training_images import TrainingImages, batch_indices
from lqn_seg.errors import InputError
from lqn_seg.teachers.dinov2 import load_dinov2
from lqn_seg.teachers.files import WEIGHT_FILES, find_file
from lqn_seg.teachers.linear_head import LinearHead, StoredHead, write_linear_head

_KEY = "MODEL.LQN.TRAIN.BACKBONE"


class LinearTrainer(Trainer):
    """Trains a classifier of the last layer's tokens of the DINOv2 in ``MODEL.LQN.TRAIN.BACKBONE``,
    at ``MODEL.LQN.TEACHER.IMAGE_SIZE``, by a cross-entropy per pixel. The ViT stays as it is."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        teacher, device = cfg.MODEL.LQN.TEACHER, torch.device(cfg.MODEL.DEVICE)
        self.backbone = find_local(cfg.MODEL.LQN.TRAIN.BACKBONE)
        if not self.backbone:
            raise InputError(f"{_KEY} is empty: name the DINOv2 that the head is trained on")
        size = tuple(teacher.IMAGE_SIZE) or None
        self.teacher = load_dinov2(self.backbone, "", device, size, teacher.PRECISION)
        dataset = get_dataset(cfg.DATASETS.TRAIN[0])
        self.images = TrainingImages(
            *(dataset, self.teacher.image_size, augmentation_config(cfg)),
            self.teacher.preprocessing,
        )
        self.class_names = dataset.metadata.class_names
        torch.manual_seed(self.seed)
        model = self.teacher.model
        model.head = nn.Linear(self.teacher.width, len(self.class_names)).to(device)
        model.class_names = self.class_names
        self.model, self.head = model.head, LinearHead(model, self.teacher.precision)
        rate, decay = self.solver.BASE_LR, self.solver.WEIGHT_DECAY
        self.optimizers = [torch.optim.AdamW(self.model.parameters(), rate, weight_decay=decay)]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, h, w) and their labels (B, h, w), which follow from (seed,
        iteration) alone."""
        size, total = self.solver.IMS_PER_BATCH, len(self.images)
        indices = batch_indices(self.seed, self.iteration, size, total)
        batch = self.images.batch(indices, (self.seed, 2, self.iteration))
        labels = pixel_labels(batch["mask_labels"], batch["class_labels"])
        device = self.teacher.device
        return batch["pixel_values"].to(device), labels.to(device)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy over labelled pixels of one batch."""
        images, labels = batch
        field, _ = self.teacher.encode(images)
        logits = F.interpolate(self.head(field[:, -1])[0], labels.shape[1:], mode="bilinear")
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp(min=1)

    def train(self, resume: bool = False) -> Path:
        """Run all iterations; returns the directory of the finished teacher."""
        if resume:
            raise InputError("a linear head takes minutes and is trained anew: leave --resume out")
        height, width = self.images.size
        print(
            f"training: a linear head for {len(self.class_names)} classes on {self.backbone}, "
            f"which stays as it is, on {len(self.images)} images of {self.images.metadata.name} "
            f"at {height}x{width} pixels: {self.solver.MAX_ITER} iterations of "
            f"{self.solver.IMS_PER_BATCH}",
            flush=True,
        )
        if not self.run():
            done = f"{self.iteration} of {self.solver.MAX_ITER} iterations"
            raise KeyboardInterrupt(f"{done} were made; nothing was written")
        return self.export()

    def export(self) -> Path:
        """Write the teacher: the DINOv2's own files, the head, and how it was made."""
        folder = self.output / "teacher"
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(self.backbone)
        found = path if path.is_file() else find_file(self.backbone, WEIGHT_FILES, _KEY)
        weights = cast(Path, found)  # it was read
        shutil.copyfile(weights, folder / WEIGHT_FILES[weights.suffix != ".safetensors"])
        beside = str(path.parent) if path.is_file() else self.backbone
        if config := find_file(beside, ("config.json",), _KEY):
            shutil.copyfile(config, folder / "config.json")
        size = self.teacher.image_size
        head = StoredHead(self.model.weight, self.model.bias, self.class_names, size)
        write_linear_head(folder, head)
        solver = self.solver
        more = {"batch_size": solver.IMS_PER_BATCH, "learning_rate": solver.BASE_LR}
        count = len(self.images) - len(self.images.left_out)
        self.write_about(folder, count, **more, backbone=self.backbone)
        return folder

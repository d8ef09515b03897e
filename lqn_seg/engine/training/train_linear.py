"""Train a linear head on a frozen DINOv2: the third teacher, and the quickest."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lqn_seg.config.nodes import augmentation_config
from lqn_seg.core.precision import resolve_precision
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.shipped import find_local
from lqn_seg.engine.training.eomt_training import pixel_cross_entropy, pixel_labels
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

    kind = "a linear head on a frozen ViT,"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        teacher, device = cfg.MODEL.LQN.TEACHER, torch.device(cfg.MODEL.DEVICE)
        self.backbone = find_local(cfg.MODEL.LQN.TRAIN.BACKBONE)
        if not self.backbone:
            raise InputError(f"{_KEY} is empty; name the DINOv2 that the head is trained on")
        size = tuple(teacher.IMAGE_SIZE) or None
        self.teacher = load_dinov2(self.backbone, "", device, size, teacher.PRECISION)
        self.start, self.size = self.backbone, self.teacher.image_size
        dataset = get_dataset(cfg.DATASETS.TRAIN[0])
        self.images = TrainingImages(
            *(dataset, self.size, augmentation_config(cfg)), self.teacher.preprocessing
        )
        self.class_names = dataset.metadata.class_names
        self.shape = repr((self.teacher.width, self.class_names))
        torch.manual_seed(self.seed)
        model = self.teacher.model
        model.head = nn.Linear(self.teacher.width, len(self.class_names)).to(device)
        model.class_names = self.class_names
        self.head = LinearHead(model, self.teacher.precision)
        rate, decay = self.solver.BASE_LR, self.solver.WEIGHT_DECAY
        optimizer = torch.optim.AdamW(model.head.parameters(), rate, weight_decay=decay)
        self.set_up(model.head, [optimizer])

    @classmethod
    def precision(cls, cfg: CfgNode) -> str:
        stated = cfg.MODEL.LQN.TEACHER.PRECISION
        return f"ViT {resolve_precision(stated, torch.device(cfg.MODEL.DEVICE))}, head float32"

    @property
    def image_count(self) -> int:
        return len(self.images) - len(self.images.left_out)

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
        return pixel_cross_entropy(self.head(field[:, -1])[0], labels)

    def export(self, learner: Any, folder: Path) -> None:
        """Write the DINOv2's own files and the head."""
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(self.backbone)
        file = path if path.is_file() else find_file(self.backbone, WEIGHT_FILES, _KEY)
        weights = cast(Path, file)  # it was read
        shutil.copyfile(weights, folder / WEIGHT_FILES[weights.suffix != ".safetensors"])
        beside = str(path.parent) if path.is_file() else self.backbone
        if config := find_file(beside, ("config.json",), _KEY):
            shutil.copyfile(config, folder / "config.json")
        head = StoredHead(learner.weight, learner.bias, self.class_names, self.size)
        write_linear_head(folder, head)

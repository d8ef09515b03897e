"""What training an EoMT takes on either engine: its start, targets, losses and the annealing, block
by block to zero, of its masked attention, so that the finished teacher runs without it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lqn_seg.data.shipped import find_local
from lqn_seg.engine.training.optimizers import NEW
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import PaddedWindow
from lqn_seg.teachers.base import Preprocessing
from lqn_seg.teachers.dinov2 import eomt_from_dinov2
from lqn_seg.teachers.eomt_checkpoints import read_eomt_config
from lqn_seg.teachers.eomt_model import VIT_PARTS, build_eomt

# The annealing of block k of n runs over this part of the training, one block after the other, as
# in EoMT's configurations (Cityscapes: steps 3317 to 16585 of 19902).
ANNEALING_START, ANNEALING_END = 1 / 6, 5 / 6
IGNORE = -1  # what `pixel_labels` gives pixels of no segment


def annealed_mask_probabilities(progress: float, blocks: int) -> list[float]:
    """Probability of masked attention per query block after a fraction of the training: 1, then a
    0.9-power decay, then 0."""
    span = (ANNEALING_END - ANNEALING_START) / blocks
    starts = [ANNEALING_START + span * block for block in range(blocks)]
    return [(1 - min(max((progress - start) / span, 0.0), 1.0)) ** 0.9 for start in starts]


def anneal(model: Any, progress: float) -> None:
    probabilities = annealed_mask_probabilities(progress, model.config.num_blocks)
    model.attn_mask_probs.copy_(torch.tensor(probabilities))


def part_of(name: str, blocks: int) -> tuple[str, int]:
    """The part that a parameter of an `EomtLosses` belongs to, and how many of its ViT's blocks lie
    above it; patch and position embeddings count as the first block."""
    name = name.removeprefix("model.")
    if not name.startswith(VIT_PARTS):
        return NEW, 0
    words = name.split(".")
    if words[0] == "layers":
        return f"block {words[1]}", blocks - 1 - int(words[1])
    return words[0], blocks - 1 if words[0] == "embeddings" else 0


def sine_cosine_grid(grid: tuple[int, int], width: int) -> Tensor:
    """2-D sine-cosine position embeddings (rows * columns, width)."""
    quarter, (rows, columns) = width // 4, grid
    frequency = 1 / 100 ** (torch.arange(quarter) / quarter)
    axes = [torch.arange(n)[:, None] * frequency for n in grid]
    row, column = (torch.cat([axis.sin(), axis.cos()], 1) for axis in axes)
    both = torch.cat([row.repeat_interleave(columns, 0), column.repeat(rows, 1)], 1)
    return F.pad(both, (0, width - 4 * quarter))


@torch.no_grad()
def untrained_eomt(cfg: CfgNode, class_names: Sequence[str]) -> tuple[Any, Preprocessing]:
    """A new EoMT of the shape in MODEL.LQN.TEACHER.CONFIG, for these classes, and its input. Its
    ViT, and the input's mean and deviation, are of the DINOv2 of MODEL.LQN.TRAIN.BACKBONE, if one
    is named."""
    config = read_eomt_config(find_local(cfg.MODEL.LQN.TEACHER.CONFIG))
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    if backbone := cfg.MODEL.LQN.TRAIN.BACKBONE:
        model, input_ = eomt_from_dinov2(config, find_local(backbone))
        return model, Preprocessing(input_.mean, input_.std, source=input_.source)
    model = build_eomt(config)
    if config.model_type == "eomt":
        grid = sine_cosine_grid(model.grid_size, config.hidden_size)
        model.embeddings.position_embeddings.weight.copy_(grid)
    return model, Preprocessing()


class EomtLosses(nn.Module):
    """An EoMT in training: transformers' set-prediction loss, and a cross-entropy per pixel.

    Set prediction reaches the patch tokens through a matching that is random at first; a loss per
    pixel, of weight ``pixel_weight``, tells every token its class from the start. Its linear
    classifier is kept in checkpoints; the finished teacher is without it.
    """

    def __init__(self, model: Any, pixel_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.pixel_weight = model, pixel_weight
        if pixel_weight:
            self.classifier = nn.Linear(model.config.hidden_size, model.config.num_labels)

    def losses_of(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """By name, of a batch: ``pixel_values`` (B, 3, h, w) normalised, ``mask_labels`` and
        ``class_labels``, lists of (N, h, w) and (N,)."""
        output = self.model(**batch)
        losses = {"loss_set_prediction": output.loss}
        if self.pixel_weight:
            labels = pixel_labels(batch["mask_labels"], batch["class_labels"])
            loss = self.pixel_loss(output.last_hidden_state, labels)
            losses["loss_pixel"] = self.pixel_weight * loss
        return losses

    def pixel_loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """`pixel_cross_entropy` of (B, h, w) labels and the (B, Q + P + H W, D) last layer's
        queries, prefix and patches, normed."""
        rows, columns = self.model.grid_size
        logits = self.classifier(tokens[:, -rows * columns :]).float()
        return pixel_cross_entropy(logits.transpose(1, 2).unflatten(2, (rows, columns)), labels)


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the pixels of (B, h, w) labels but ``IGNORE``, 0 without any, of (B, C, H, W)
    logits, which are interpolated to their size."""
    logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear")
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def pixel_labels(masks: Sequence[Tensor], classes: Sequence[Tensor]) -> Tensor:
    """(B, h, w) int64 class of every pixel, `IGNORE` where no mask is, of each image's (N, h, w)
    masks, 1 inside and 0 outside, no two of which overlap, and (N,) classes."""
    # A sum of products, not an argmax and a look-up: several times faster on a CPU. (Not an einsum
    # either: autocast would run it in bfloat16, which cannot tell 256 from 257.)
    labels = [(m * (c.to(m) + 1)[:, None, None]).sum(0) for m, c in zip(masks, classes)]
    return torch.stack(labels).long() + IGNORE


def segment_targets(
    masks: Tensor | None,
    classes: Tensor | None,
    labels: Tensor | None,
    things: frozenset[int],
    ignore_label: int,
) -> tuple[Tensor, Tensor]:
    """(M, h, w) bool masks and (M,) classes from instances and a label map; one may be missing.

    Instances are segments as they are. A class of the label map is one segment, unless it has
    instances: a thing's pixels without one are a crowd's, which nothing is trained on.

    Args:
        masks, classes: (N, h, w) bool and (N,); None where the data has no instances.
        labels: (h, w) contiguous ids or ``ignore_label``.
        things: classes that have instances, where there are any.
    """
    some: Any = masks if masks is not None else labels
    kept: list[Tensor] = [] if masks is None else list(masks.bool())
    numbers: list[int] = [] if classes is None else classes.tolist()
    if labels is not None:
        covered = {*numbers, *(things if masks is not None else ()), ignore_label}
        present = sorted(set(labels.unique().long().tolist()) - covered)
        kept += [labels == label for label in present]
        numbers += present
    stacked = torch.stack([some.new_zeros(some.shape[-2:], dtype=torch.bool), *kept])[1:]
    is_there = stacked.flatten(1).any(1)
    return stacked[is_there], torch.tensor(numbers, dtype=torch.int64)[is_there.cpu()]


def mapped_targets(
    inputs: Mapping[str, Any], things: frozenset[int], ignore_label: int
) -> tuple[Tensor, Tensor]:
    """`segment_targets` of the ``instances``, the ``sem_seg`` or both that Detectron2's or
    Mask2Former's mapper gives; an InputError where it gives neither, or instances without masks."""
    instances, labels = inputs.get("instances"), inputs.get("sem_seg")
    masks = classes = None
    if instances is None and labels is None:
        raise InputError(
            "a training image has neither 'instances' nor 'sem_seg': EoMT learns from masks, which "
            "the data set or mapper must provide"
        )
    if instances is not None and not len(instances):
        masks = torch.zeros(0, *instances.image_size, dtype=torch.bool)
        classes = torch.zeros(0, dtype=torch.int64)
    elif instances is not None:
        if not instances.has("gt_masks"):
            raise InputError(
                "the instances of a training image have no masks: set MODEL.MASK_ON True and "
                "INPUT.MASK_FORMAT bitmask"
            )
        # Mask2Former's are plain tensors.
        masks = getattr(instances.gt_masks, "tensor", instances.gt_masks)
        classes = instances.gt_classes
        if not isinstance(masks, Tensor):
            raise InputError("training masks must be bitmaps: set INPUT.MASK_FORMAT bitmask")
    return segment_targets(masks, classes, labels, things, ignore_label)


def fit_targets(
    image: Tensor, masks: Tensor, classes: Tensor, size: tuple[int, int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """An image (3, h, w) uint8 and masks (N, h, w) bool in the teacher's window, as at test
    time: (3, *size) uint8 and (N, *size) float32, 0 or 1. An `InputError` where a mask or class
    is amiss."""
    if masks.shape[1:] != image.shape[1:]:
        raise InputError(
            f"the masks of an image of {tuple(image.shape[1:])} are {tuple(masks.shape[1:])} "
            "(height, width)"
        )
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise InputError(
            f"a segment has class {int(classes.max())}, but the model's are 0 .. {num_classes - 1}"
        )
    window = PaddedWindow.of((image.shape[1], image.shape[2]), size)
    crop = window.crops(image)[0]
    if not len(masks):
        return crop, torch.zeros(0, *size)  # F.interpolate takes no empty batch
    inside = F.interpolate(masks[None].float(), window.inside, mode="nearest-exact")[0]
    bottom, right = size[0] - window.inside[0], size[1] - window.inside[1]
    return crop, F.pad(inside, (0, right, 0, bottom))

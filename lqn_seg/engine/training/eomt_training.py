"""What training an EoMT takes on either engine: its start, targets, losses and mask annealing.

The loss is the one inside ``EomtForUniversalSegmentation`` (Hungarian matching, cross-entropy,
point-sampled mask and dice losses). The masked attention that EoMT trains with is annealed block by
block to zero, so that the finished teacher runs without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lqn_seg.engine.build import find_local
from lqn_seg.engine.training.training_images import pixel_labels
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import PaddedWindow
from lqn_seg.teachers.base import Preprocessing
from lqn_seg.teachers.dinov2 import start_from_dinov2
from lqn_seg.teachers.eomt_checkpoints import read_eomt_config
from lqn_seg.teachers.eomt_model import build_eomt

# The annealing of block k of n runs over this part of the training, one block after the other.
ANNEALING_START, ANNEALING_END = 0.15, 0.75


def annealed_mask_probabilities(progress: float, blocks: int) -> list[float]:
    """Probability of masked attention per query block: 1, then a 0.9-power decay, then 0.

    Args:
        progress: fraction of the training that is done, 0..1.
    """
    span = (ANNEALING_END - ANNEALING_START) / blocks
    starts = [ANNEALING_START + span * block for block in range(blocks)]
    return [(1 - min(max((progress - start) / span, 0.0), 1.0)) ** 0.9 for start in starts]


def anneal(model: Any, progress: float) -> None:
    """Set an EoMT's `annealed_mask_probabilities`, in place."""
    probabilities = annealed_mask_probabilities(progress, model.config.num_blocks)
    model.attn_mask_probs.copy_(torch.tensor(probabilities))


def sine_cosine_grid(rows: int, columns: int, width: int) -> Tensor:
    """2-D sine-cosine position embeddings (rows * columns, width); learned from there on."""
    quarter = width // 4
    frequency = 1 / 100 ** (torch.arange(quarter) / quarter)
    axes = [torch.arange(n)[:, None] * frequency for n in (rows, columns)]
    row, column = (torch.cat([axis.sin(), axis.cos()], 1) for axis in axes)
    grid = torch.cat(
        [row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=2
    )
    return F.pad(grid.flatten(0, 1), (0, width - 4 * quarter))


@torch.no_grad()
def untrained_eomt(cfg: CfgNode, class_names: Sequence[str]) -> tuple[Any, Preprocessing]:
    """A new EoMT of the shape in MODEL.LQN.TEACHER.CONFIG, for these classes.

    Its ViT starts from the DINOv2 of MODEL.LQN.TRAIN.BACKBONE where that is named, and else with a
    grid that it can tell apart.

    Returns:
        the model, and what its input will be: mean and deviation are the DINOv2's.

    Raises:
        InputError: a file is missing or does not fit.
    """
    config = read_eomt_config(find_local(cfg.MODEL.LQN.TEACHER.CONFIG))
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    model = build_eomt(config)
    backbone = cfg.MODEL.LQN.TRAIN.BACKBONE
    if backbone:
        said = start_from_dinov2(model, find_local(backbone))
        return model, Preprocessing(said.mean, said.std, source=said.source)
    if config.model_type == "eomt":
        rows, columns = model.grid_size
        grid = sine_cosine_grid(rows, columns, config.hidden_size)
        model.embeddings.position_embeddings.weight.copy_(grid)
    return model, Preprocessing()


def eomt_losses(
    model: Any,
    batch: Mapping[str, Any],
    classifiers: Iterable[nn.Module] = (),
    pixel_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Set-prediction loss of a batch, and the weighted per-pixel one of each classifier.

    Args:
        model: an EoMT in training mode.
        batch: ``pixel_values`` (B, 3, h, w) normalised, ``mask_labels`` and ``class_labels``, lists
            of (N, h, w) and (N,).
        classifiers: `PixelClassifier`, with the weight of their losses.
    """
    output = model(**batch)
    losses = {"loss_set_prediction": output.loss}
    for classifier in classifiers:
        labels = pixel_labels(batch["mask_labels"], batch["class_labels"])
        losses["loss_pixel"] = pixel_weight * classifier(output.last_hidden_state, labels)
    return losses


def segment_targets(
    masks: Tensor | None,
    classes: Tensor | None,
    labels: Tensor | None,
    things: frozenset[int],
    ignore_label: int,
) -> tuple[Tensor, Tensor]:
    """One mask a segment from instances and a label map, either of which may be missing.

    Instances are segments as they are. A class of the label map is one segment, unless it has
    instances: a thing's pixels without one are a crowd's, which nothing is trained on.

    Args:
        masks, classes: (N, h, w) bool and (N,); None where the data has no instances.
        labels: (h, w) contiguous ids or ``ignore_label``.
        things: classes that have instances, where there are any.

    Returns:
        (M, h, w) bool masks and (M,) int64 classes.
    """
    found_masks: list[Tensor] = [] if masks is None else list(masks.bool())
    found: list[int] = [] if classes is None else classes.tolist()
    if labels is not None:
        covered = set(found) | (set(things) if masks is not None else set())
        present = set(labels.unique().long().tolist()) - covered - {ignore_label}
        found_masks += [labels == label for label in sorted(present)]
        found += sorted(present)
    drawn = [k for k, mask in enumerate(found_masks) if mask.any()]
    if not drawn:
        some = masks if masks is not None else labels
        size = some.shape[-2:] if some is not None else (0, 0)
        return torch.zeros(0, *size, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    kept = torch.stack([found_masks[k] for k in drawn])
    return kept, torch.tensor([found[k] for k in drawn])


def mapped_targets(
    inputs: Mapping[str, Any], things: frozenset[int], ignore_label: int
) -> tuple[Tensor, Tensor]:
    """`segment_targets` of what Detectron2's or Mask2Former's mapper says of an image.

    Args:
        inputs: with ``instances`` (``gt_masks`` and ``gt_classes``), ``sem_seg``, or both.

    Raises:
        InputError: it has neither, or its instances have no masks.
    """
    instances, labels = inputs.get("instances"), inputs.get("sem_seg")
    if instances is None and labels is None:
        raise InputError(
            "a training image has neither 'instances' nor 'sem_seg': EoMT learns from masks, which "
            "its data set or mapper must give"
        )
    if instances is None:
        return segment_targets(None, None, labels, things, ignore_label)
    if not len(instances):
        none = torch.zeros(0, *instances.image_size, dtype=torch.bool)
        return segment_targets(none, torch.zeros(0).long(), labels, things, ignore_label)
    if not instances.has("gt_masks"):
        raise InputError(
            "the instances of a training image have no masks: set MODEL.MASK_ON True and "
            "INPUT.MASK_FORMAT bitmask"
        )
    masks = getattr(instances.gt_masks, "tensor", instances.gt_masks)  # Mask2Former's are plain
    if not isinstance(masks, Tensor):
        raise InputError("training masks must be bitmaps: set INPUT.MASK_FORMAT bitmask")
    return segment_targets(masks, instances.gt_classes, labels, things, ignore_label)


def fit_targets(
    image: Tensor, masks: Tensor, classes: Tensor, size: tuple[int, int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """An image and its masks in the teacher's window, as `PaddedWindow` shows it at test time.

    Args:
        image: (3, h, w) uint8 RGB.
        masks, classes: (N, h, w) bool and (N,).

    Returns:
        (3, *size) uint8 and (N, *size) float32, 0 or 1.

    Raises:
        InputError: a class is not one of the model's, or the masks are not of the image's size.
    """
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
        return crop, torch.zeros(0, *size)
    inside = F.interpolate(masks[None].float(), window.inside, mode="nearest-exact")[0]
    bottom, right = size[0] - window.inside[0], size[1] - window.inside[1]
    return crop, F.pad(inside, (0, right, 0, bottom))

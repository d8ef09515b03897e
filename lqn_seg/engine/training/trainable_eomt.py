"""An EoMT that a loop from elsewhere trains: losses in training, else the teacher's predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from lqn_seg.config.nodes import segmentation_config
from lqn_seg.engine.build import build_segmenter
from lqn_seg.engine.training.eomt_training import EomtLosses, anneal, fit_targets, untrained_eomt
from lqn_seg.errors import InputError
from lqn_seg.segmentation.meta_arch import LQNTTTMetaArch, read_input
from lqn_seg.segmentation.segmenter import Segmenter
from lqn_seg.teachers.base import normalise
from lqn_seg.teachers.eomt import EomtTeacher
from lqn_seg.teachers.eomt_head import EomtHead

_ALONE = {"teacher": None}


class TrainableEomt(EomtLosses):
    """Detectron2's contract around an EoMT whose weights are being trained.

    Args:
        segmenter: the teacher alone, in float32; its weights may be trained from now on.
        input_format: channel order of the images that come in, ``RGB`` or ``BGR``.
        pixel_weight: as of `EomtLosses`.
    """

    def __init__(
        self, segmenter: Segmenter, input_format: str = "RGB", pixel_weight: float = 0.0
    ) -> None:
        if segmenter.teacher.precision != "float32":
            raise InputError(
                "MODEL.LQN.TEACHER.PRECISION must be float32 for training; SOLVER.AMP.ENABLED "
                "True switches mixed precision on"
            )
        super().__init__(segmenter.teacher.model.requires_grad_(True), pixel_weight)
        self.segmenter, self.input_format = segmenter, input_format
        # The weights are worth nothing without these, which go into a checkpoint with them.
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, torch.tensor(getattr(segmenter.teacher, name)))
        self.train()  # as a new module is; the teacher's was in evaluation mode

    @property
    def device(self) -> torch.device:
        return self.model.device

    def losses(
        self,
        batched_inputs: Sequence[Mapping[str, Any]],
        targets: Sequence[tuple[Tensor, Tensor]],
        progress: float | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch by name; an `InputError` where an image, a mask or a class does not
        fit.

        Args:
            batched_inputs: dicts with ``image``, (3, h, w) in 0..255, of any size: padded into the
                teacher's window, as for a prediction.
            targets: masks (N, h, w) and classes (N,) of each, as from `segment_targets`.
            progress: fraction of the training that is done, which anneals the masked attention.
        """
        if progress is not None:
            anneal(self.model, progress)
        teacher, count = self.segmenter.teacher, self.model.config.num_labels
        images = [read_input(inputs, self.input_format) for inputs in batched_inputs]
        fitted = [
            fit_targets(image, masks.cpu(), classes, teacher.image_size, count)
            for image, (masks, classes) in zip(images, targets)
        ]
        pixels = torch.stack([crop for crop, _ in fitted]).to(self.device).float() / 255
        batch = {
            "pixel_values": normalise(pixels, teacher.pixel_mean, teacher.pixel_std),
            "mask_labels": [masks.to(self.device) for _, masks in fitted],
            "class_labels": [classes.to(self.device) for _, classes in targets],
        }
        return self.losses_of(batch)

    def predict(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`LQNTTTMetaArch.forward` of the teacher, with the weights as they are now."""
        cast(EomtTeacher, self.segmenter.teacher).refresh()
        return LQNTTTMetaArch(self.segmenter, self.input_format)(batched_inputs)


def trainable_segmenter(
    cfg: CfgNode, thing_ids: frozenset[int], class_names: Sequence[str]
) -> Segmenter:
    """The teacher of a configuration alone, or a new one where no weights are named."""
    if cfg.MODEL.LQN.TEACHER.WEIGHTS:
        return build_segmenter(cfg, thing_ids, len(class_names), _ALONE)
    model, preprocessing = untrained_eomt(cfg, class_names)
    model.to(cfg.MODEL.DEVICE)
    teacher, head = EomtTeacher(model, preprocessing=preprocessing), EomtHead(model)
    return Segmenter(teacher, head, _ALONE, thing_ids, segmentation_config(cfg))

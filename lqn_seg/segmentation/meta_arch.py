"""``LQNTTTMetaArch``: Detectron2's contract, list of dicts in, list of dicts out.

It is a plain ``nn.Module`` without Detectron2; the plugin adds ``from_config`` and turns the
instances into Detectron2's class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lqn_seg.errors import InputError
from lqn_seg.segmentation.segmenter import Segmenter


class LQNTTTMetaArch(nn.Module):
    """Adapts to every image it is given, one method, nothing kept between images.

    Args:
        segmenter: with exactly one method.
        input_format: channel order of the images that come in, ``RGB`` or ``BGR``.
    """

    def __init__(self, segmenter: Segmenter, input_format: str = "RGB") -> None:
        super().__init__()
        if len(segmenter.methods) != 1:
            raise InputError("LQNTTTMetaArch runs one method; MODEL.LQN.METHOD names it")
        if input_format not in ("RGB", "BGR"):
            raise InputError(f"INPUT.FORMAT must be RGB or BGR, not {input_format!r}")
        self.segmenter = segmenter
        self.teacher_model = segmenter.teacher.model  # so that .to() and state_dict() see it
        self.input_format = input_format
        (self.method,) = segmenter.methods

    @property
    def device(self) -> torch.device:
        return self.segmenter.teacher.device

    def train(self, mode: bool = True) -> LQNTTTMetaArch:
        """The teacher is frozen and always in evaluation mode; ``train()`` changes nothing."""
        return super().train(False)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predictions for a batch.

        Args:
            batched_inputs: dicts with ``image``, (3, h, w) in 0..255, and optionally ``height``
                and ``width``, the size that the outputs shall have (by default the image's own).

        Returns:
            dicts with ``sem_seg`` (C, height, width), ``panoptic_seg`` (id map, segments_info) and
            ``instances``, as configured, and ``lqn``: times in ms and how close the answer was.
        """
        images = [self._image(inputs["image"]) for inputs in batched_inputs]
        sizes = [
            (int(inputs.get("height", image.shape[1])), int(inputs.get("width", image.shape[2])))
            for inputs, image in zip(batched_inputs, images)
        ]
        predictions = self.segmenter(images, sizes)
        return [
            {**prediction[self.method].output, "lqn": prediction[self.method].stats}
            for prediction in predictions
        ]

    def _image(self, image: Tensor) -> Tensor:
        """uint8 RGB on the CPU, which the random key is computed from."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"'image' must be (3, height, width), got {tuple(image.shape)}")
        if image.dtype != torch.uint8:
            image = image.round().clamp(0, 255).to(torch.uint8)
        return (image.flip(0) if self.input_format == "BGR" else image).cpu().contiguous()

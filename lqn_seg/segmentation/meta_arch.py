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
        if torch.jit.is_tracing() and self.segmenter.methods[self.method] is not None:
            raise InputError(
                f"MODEL.LQN.METHOD {self.method} cannot be traced, for it fits a student to every "
                "image; METHOD teacher can, and lqn-seg flops --count counts the fit"
            )
        images = [read_input(inputs, self.input_format) for inputs in batched_inputs]
        sizes = [_output_size(inputs, image) for inputs, image in zip(batched_inputs, images)]
        predictions = [prediction[self.method] for prediction in self.segmenter(images, sizes)]
        if torch.jit.is_tracing():  # which takes tensors alone
            return [_tensors(one.output) for one in predictions]
        return [{**one.output, "lqn": one.stats} for one in predictions]


def read_input(inputs: Mapping[str, Any], input_format: str) -> Tensor:
    """A Detectron2 dict's image as (3, h, w) uint8 RGB on the CPU, where its random key is made.

    Raises:
        InputError: the image is missing, is no tensor, has another shape, no pixels, or values that
            are not in 0..255: the model normalises them itself.
    """
    if "image" not in inputs:
        raise InputError("an input of the model has no 'image', (3, height, width) in 0..255")
    image = inputs["image"]
    name = f"'image' of {inputs['file_name']}" if "file_name" in inputs else "'image'"
    if not isinstance(image, Tensor):
        raise InputError(f"{name} must be a tensor, (3, height, width), not {type(image).__name__}")
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise InputError(f"{name} must be (3, height, width), got {tuple(image.shape)}")
    if image.dtype != torch.uint8:
        least, most = float(image.min()), float(image.max())
        if not (least > -0.5 and most < 255.5) or 0 < most <= 1:
            raise InputError(
                f"{name} must hold 0..255, and holds {least:.4g} to {most:.4g}; the model scales "
                "and normalises it itself"
            )
        image = image.round().to(torch.uint8)
    return (image.flip(0) if input_format == "BGR" else image).cpu().contiguous()


def _tensors(output: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction without the numbers that describe its panoptic segments."""
    traced = dict(output)
    if "panoptic_seg" in traced:
        traced["panoptic_seg"] = (traced["panoptic_seg"][0], [])
    return traced


def _output_size(inputs: Mapping[str, Any], image: Tensor) -> tuple[int, int]:
    """(height, width) that a prediction shall have: what is asked for, else the image's own."""
    size = int(inputs.get("height", image.shape[1])), int(inputs.get("width", image.shape[2]))
    if min(size) < 1:
        raise InputError(f"'height' and 'width' of an input must be at least 1, not {size}")
    return size

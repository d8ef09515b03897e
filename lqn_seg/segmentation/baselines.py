"""Other people's models in the same table: Mask2Former, MaskFormer and OneFormer of transformers.

They need no teacher and no student. An image goes through them as in Mask2Former's own evaluation
(Cheng et al., CVPR 2022): short side to a fixed length, normalised, zero-padded to a multiple of
the divisor, whole, without windows; mask logits are scaled back, the padding cut off, scaled to the
output size. From there on the rules are those of `postprocess`, which are Mask2Former's too.

Where transformers' own image processors differ, theirs are not followed: they stretch an image to a
multiple of the divisor instead of padding it; their post-processing goes through 384 x 384 masks
whatever the input was, which costs detail; and their panoptic rule asks class score x mask
probability for 0.5 where Mask2Former asks the mask probability alone, and gives a segment all the
pixels it won, also those outside its mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import AutoModelForUniversalSegmentation

from lqn_seg.adapt.methods import BaselineModel
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import Size, resize_image, resize_scores
from lqn_seg.teachers.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from lqn_seg.teachers.files import find_file, first_line, read_json
from lqn_seg.teachers.preprocessing import (
    FILE_NAME,
    flag,
    interpolation_of,
    normalisation_of,
    read_preprocessor,
    size_of,
    whole,
)

KINDS = ("mask2former", "maskformer", "oneformer")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    Attributes:
        short, longest: the short side goes to `short` pixels, unless the long one got over
            `longest`; 0 leaves the image, or the long side, as it is.
        fixed: (height, width) that images are stretched to instead; None for never.
        divisor: both sides are zero-padded, after normalisation, to a multiple of it.
        mean, std: for pixels in 0..1.
        interpolation: Pillow's name of the filter that images are resized with.
    """

    short: int = 800
    longest: int = 1333
    fixed: Size | None = None
    divisor: int = 1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = FILE_NAME) -> Preprocessing:
        """From transformers' ``preprocessor_config.json``, of any age.

        Raises:
            InputError: a value is malformed; ``where``, the file, and the key are named.
        """
        size, given = size_of(content, where), isinstance(content.get("size"), dict)
        fixed = (size["height"], size["width"]) if "height" in size else None
        short, longest = size.get("shortest_edge", cls.short), size.get("longest_edge", 0)
        if not given:
            usual = 0 if size else cls.longest
            longest = whole(content, "max_size", usual, where)
        elif "longest_edge" not in content["size"]:
            longest = cls.longest
        if not flag(content, "do_resize", True, where):
            short, longest, fixed = 0, 0, None
        older = whole(content, "size_divisibility", 1, where)
        mean, std = normalisation_of(content, where)
        return cls(
            short=short,
            longest=longest,
            fixed=fixed,
            divisor=whole(content, "size_divisor", older, where) or 1,
            mean=mean,
            std=std,
            interpolation=interpolation_of(content, where),
        )

    def size(self, image_size: Size) -> Size:
        """(height, width) that an image is resized to, as Detectron2 rounds it."""
        if self.fixed is not None:
            return self.fixed
        if not self.short:
            return image_size
        scale = self.short / min(image_size)
        if self.longest:
            scale = min(scale, self.longest / max(image_size))
        height, width = (max(int(side * scale + 0.5), 1) for side in image_size)
        return height, width

    def __call__(self, image: Tensor) -> tuple[Tensor, Size]:
        """(3, h, w) uint8 to an input (1, 3, H, W), and (rows, columns) of it that are image."""
        inside = self.size((image.shape[1], image.shape[2]))
        resized = resize_image(image, inside, self.interpolation)
        pixels = normalise(resized[None].float() / 255, self.mean, self.std)
        bottom, right = (math.ceil(side / self.divisor) * self.divisor - side for side in inside)
        return F.pad(pixels, (0, right, 0, bottom)), inside


class UniversalModel:
    """A frozen universal segmentation model of transformers'.

    Args:
        model: Mask2Former, MaskFormer or OneFormer.
        preprocessing: of its input.
        task_tokens: OneFormer's text input by task, (1, length) ids; empty for the others, which
            answer all tasks alike.
    """

    def __init__(
        self, model: Any, preprocessing: Preprocessing, task_tokens: Mapping[str, Tensor]
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.preprocessing, self.task_tokens = preprocessing, dict(task_tokens)

    @torch.no_grad()
    def __call__(
        self, image: Tensor, size: Size, tasks: Sequence[str]
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Size]:
        """Mask logits (Q, *size) and class logits (Q, C + 1) by task, and the input's size.

        Args:
            image: (3, h, w) uint8 RGB.
            size: (height, width) that the masks shall have.
            tasks: some of ``semantic``, ``panoptic`` and ``instance``.
        """
        pixels, inside = self.preprocessing(image.to(self.model.device))
        shape = (pixels.shape[2], pixels.shape[3])
        answers: dict[str, tuple[Tensor, Tensor]] = {}
        for task in tasks:
            if self.task_tokens or not answers:
                masks, classes = self._forward(pixels, task)
                whole = resize_scores(masks[0].float(), shape)
                last = resize_scores(whole[:, : inside[0], : inside[1]], size), classes[0].float()
            answers[task] = last
        return answers, shape

    @torch.no_grad()
    def forward_size(self, shape: Size, task: str) -> None:
        """One pass over an empty input (height, width), for what counts operations."""
        divisor = self.preprocessing.divisor
        height, width = (math.ceil(side / divisor) * divisor for side in shape)
        self._forward(torch.zeros(1, 3, height, width, device=self.model.device), task)

    def _forward(self, pixels: Tensor, task: str) -> tuple[Tensor, Tensor]:
        text = {}
        if self.task_tokens:
            text["task_inputs"] = self.task_tokens[task].to(pixels.device)
        output = self.model(pixel_values=pixels, **text)
        return output.masks_queries_logits, output.class_queries_logits


def load_universal(
    baseline: BaselineModel,
    device: str | torch.device,
    num_classes: int | None = None,
    short: int = 0,
    longest: int = 0,
) -> UniversalModel:
    """Load a baseline, strictly.

    Args:
        num_classes: of the data set; the model must have as many, in the same order.
        short, longest: in place of what its ``preprocessor_config.json`` says, which need not be
            the size that the published score was measured at; 0 keeps it.

    Raises:
        InputError: files are missing or damaged, or the model is another kind or has other classes.
    """
    weights = baseline.weights
    key = f"MODEL.LQN.METHODS: {baseline.label}={weights}"
    path = find_file(weights, ("config.json",), key)
    if path is None:
        raise InputError(
            f"{key} could not be loaded: there is no config.json, or it is not in the model hub's "
            f"cache and could not be fetched; `hf download {weights}` gets it where there is "
            "internet"
        )
    kind = read_json(path, key).get("model_type")
    if kind not in KINDS:
        hint = "; an EoMT is a teacher: MODEL.LQN.TEACHER.WEIGHTS" if "eomt" in str(kind) else ""
        raise InputError(f"{key} is a {kind}, not one of {', '.join(KINDS)}{hint}")
    config, model = _load_model(weights, key)
    if num_classes is not None and config.num_labels != num_classes:
        raise InputError(
            f"{key} predicts {config.num_labels} classes, the data set has {num_classes}"
        )
    content, file = read_preprocessor(weights, key) or ({"size_divisor": 32}, FILE_NAME)
    preprocessing = Preprocessing.of(content, f"{key}: {file}")
    if short:
        preprocessing = replace(preprocessing, short=short, longest=longest, fixed=None)
    tokens = _task_tokens(weights, config, key) if kind == "oneformer" else {}
    return UniversalModel(model.to(device), preprocessing, tokens)


_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _load_model(weights: str, key: str) -> tuple[Any, Any]:
    """transformers' configuration and model; an InputError where they do not fit each other."""
    try:
        config = AutoConfig.from_pretrained(weights)
        model, report = AutoModelForUniversalSegmentation.from_pretrained(
            weights,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        raise InputError(f"{key} could not be loaded ({first_line(error)})") from error
    if bad := [
        f"{kind}: {sorted(map(str, report[kind]))[0]}" for kind in _PROBLEMS if report[kind]
    ]:
        raise InputError(f"{key} does not fit its config.json ({'; '.join(bad)})")
    return config, model


def _task_tokens(weights: str, config: Any, key: str) -> dict[str, Tensor]:
    """The sentence that tells OneFormer its task, as its processor writes it: padding is 0."""
    local = Path(weights).is_dir()
    files = ("vocab.json", "tokenizer.json")
    if local and not any((Path(weights) / name).is_file() for name in files):
        raise InputError(
            f"{key}: OneFormer needs its tokenizer (vocab.json and merges.txt, or tokenizer.json) "
            "beside its weights"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise InputError(f"{key}: OneFormer's tokenizer could not be loaded ({error})") from error
    tokens = {}
    for task in ("semantic", "panoptic", "instance"):
        coded = tokenizer(
            [f"the task is {task}"],
            padding="max_length",
            max_length=config.task_seq_len,
            truncation=True,
            return_tensors="pt",
        )
        tokens[task] = coded["input_ids"] * coded["attention_mask"]
    return tokens

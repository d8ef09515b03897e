"""Teachers for the benchmark: real architectures by name, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lqn_seg.adapt.baselines.zero_shot import class_probabilities, mean_direction
from lqn_seg.core.config import nearest
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.flops import ClipShape, EomtShape, clip_gmacs, eomt_gmacs
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.clip import ClipTeacher
from lqn_seg.teachers.modules import lower_weights


@dataclass(frozen=True)
class Subject:
    """A teacher and its frozen head, and what they cost.

    Attributes:
        name: one of `TEACHERS`.
        teacher: frozen, with random weights, in the precision that its head has too.
        head: last-layer tokens (B, H, W, D) and the teacher's context to an answer.
        gmacs: of "teacher" and "head", one image.
    """

    name: str
    teacher: Teacher[Any]
    head: Callable[[Tensor, Any], Any]
    gmacs: dict[str, float]

    @property
    def grid(self) -> tuple[int, int, int]:
        """(L, H, W) of its token field."""
        return (self.teacher.num_layers, *self.teacher.grid)

    def answer(self, tokens: Tensor, context: Any) -> Any:
        """What the head makes of last-layer tokens."""
        with torch.no_grad():
            return self.head(tokens, context)


@dataclass(frozen=True)
class _Eomt:
    """An EoMT's size; everything else is transformers' default, EoMT-L's."""

    width: int
    layers: int
    heads: int
    image_size: int
    patch_size: int = 16
    queries: int = 200
    labels: int = 133

    def build(self, name: str, image_size: int, classes: int, precision: str) -> Subject:
        # Here, because transformers' EoMT asks for scipy, which a CLIP does not.
        from transformers import EomtConfig

        from lqn_seg.teachers.eomt import EomtTeacher
        from lqn_seg.teachers.eomt_head import EomtHead
        from lqn_seg.teachers.eomt_model import build_eomt

        config = EomtConfig(
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=image_size or self.image_size,
            patch_size=self.patch_size,
            num_queries=self.queries,
            num_labels=classes or self.labels,
        )
        model = build_eomt(config)
        nn.init.zeros_(model.attn_mask_probs)  # masked attention off, as in evaluation
        teacher, head = EomtTeacher(model, precision), EomtHead(model, precision)
        lower_weights(model, precision)
        gmacs = eomt_gmacs(EomtShape.from_config(config))
        answer = lambda tokens, context: head(tokens, context.last_queries)  # noqa: E731
        return Subject(name, teacher, answer, gmacs)


@dataclass(frozen=True)
class _Clip:
    """A CLIP by open_clip's name."""

    model: str
    classes: int = 1000

    def build(self, name: str, image_size: int, classes: int, precision: str) -> Subject:
        size = {"force_image_size": image_size} if image_size else {}
        model = open_clip.create_model(self.model, pretrained=None, **size)
        tokenizer = open_clip.get_tokenizer(self.model)
        teacher = ClipTeacher(model, tokenizer, precision)
        lower_weights(model.visual, precision)
        generator = torch.Generator().manual_seed(0)
        count = classes or self.classes
        text = torch.randn(count, teacher.joint_width, generator=generator)
        text = F.normalize(text, dim=-1)

        def head(tokens: Tensor, _: Any) -> Tensor:
            features = mean_direction(teacher.project(tokens.flatten(1, 2)))
            return class_probabilities(features, text.to(features.device), teacher.logit_scale)

        shape = ClipShape.from_model(model)
        patches = shape.grid[0] * shape.grid[1]
        gmacs = {
            "teacher": clip_gmacs(shape)["teacher"],
            "head": shape.joint_width * (patches * shape.width + count) / 1e9,
        }
        return Subject(name, teacher, head, gmacs)


TEACHERS: dict[str, _Eomt | _Clip] = {
    "clip-b16": _Clip("ViT-B-16-quickgelu"),
    "clip-l14": _Clip("ViT-L-14-quickgelu"),
    "eomt-b": _Eomt(768, 12, 12, 224),
    "eomt-l": _Eomt(1024, 24, 16, 640),
    # Runs in milliseconds, to see that everything works.
    "eomt-tiny": _Eomt(32, 4, 2, 48, patch_size=8, queries=7, labels=5),
}


def build_subject(
    name: str,
    image_size: int = 0,
    classes: int = 0,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> Subject:
    """A teacher of `TEACHERS` with random weights, the same at every call.

    Args:
        image_size: pixels, square; 0 for its own.
        classes: of the head; 0 for its own.

    Raises:
        InputError: no teacher has that name, or it does not take images of that size.
    """
    size = TEACHERS[nearest(name, tuple(TEACHERS), "teacher")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = size.build(name, image_size, classes, precision)
    side = subject.teacher.image_size[0]
    if image_size and side != image_size:
        raise InputError(f"{name} does not take images of {image_size} pixels: it takes {side}")
    subject.teacher.model.to(device)
    return subject

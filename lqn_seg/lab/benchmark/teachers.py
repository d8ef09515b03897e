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
from lqn_seg.core.fit import Grid
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.flops import EomtShape, clip_gmacs, eomt_gmacs
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.clip import ClipTeacher
from lqn_seg.teachers.modules import lower_weights

# open_clip's names.
CLIPS = {"clip-b16": "ViT-B-16-quickgelu", "clip-l14": "ViT-L-14-quickgelu"}
_CLIP_CLASSES = 1000
# Arguments of transformers' EomtConfig, which is EoMT-L's by default.
EOMTS: dict[str, dict[str, int]] = {
    "eomt-b": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "num_labels": 133,
    },
    "eomt-l": {"image_size": 640, "num_labels": 133},
    # Runs in milliseconds, to see that everything works.
    "eomt-tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 8,
        "num_queries": 7,
        "num_labels": 5,
    },
}


@dataclass(frozen=True)
class Subject:
    """A teacher and its frozen head, and what they cost.

    Attributes:
        name: of `CLIPS` or `EOMTS`.
        teacher: frozen, with random weights, in the precision that its head has too.
        head: last-layer tokens (B, H, W, D) and the teacher's context to masks or class scores.
        gmacs: of "teacher" and "head", one image.
    """

    name: str
    teacher: Teacher[Any]
    head: Callable[[Tensor, Any], Any]
    gmacs: dict[str, float]

    @property
    def grid(self) -> Grid:
        """(L, H, W) of its token field."""
        return (self.teacher.num_layers, *self.teacher.grid)


def build_subject(
    name: str,
    image_size: int = 0,
    classes: int = 0,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> Subject:
    """A teacher with random weights, the same at every call.

    Args:
        image_size: pixels, square; 0 for its own.
        classes: of the head; 0 for its own.

    Raises:
        InputError: no teacher has that name, or it does not take images of that size.
    """
    build = _clip if nearest(name, (*CLIPS, *EOMTS), "teacher") in CLIPS else _eomt
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = build(name, image_size, classes, precision)
    side = subject.teacher.image_size[0]
    if image_size and side != image_size:
        raise InputError(f"{name} does not take images of {image_size} pixels: it takes {side}")
    subject.teacher.model.to(device)
    return subject


def _eomt(name: str, image_size: int, classes: int, precision: str) -> Subject:
    # Here, because transformers' EoMT asks for scipy, which a CLIP does not.
    from transformers import EomtConfig

    from lqn_seg.teachers.eomt import EomtTeacher
    from lqn_seg.teachers.eomt_head import EomtHead
    from lqn_seg.teachers.eomt_model import build_eomt

    config = EomtConfig(**EOMTS[name])
    config.image_size = image_size or config.image_size
    config.num_labels = classes or config.num_labels
    model = build_eomt(config)
    nn.init.zeros_(model.attn_mask_probs)  # masked attention off, as in evaluation
    teacher, head = EomtTeacher(model, precision), EomtHead(model, precision)
    lower_weights(model, precision)

    def segment(tokens: Tensor, context: Any) -> Any:
        return head(tokens, context.last_queries)

    return Subject(name, teacher, segment, eomt_gmacs(EomtShape.from_config(config)))


def _clip(name: str, image_size: int, classes: int, precision: str) -> Subject:
    size = {"force_image_size": image_size} if image_size else {}
    model = open_clip.create_model(CLIPS[name], pretrained=None, **size)
    teacher = ClipTeacher(model, open_clip.get_tokenizer(CLIPS[name]), precision)
    lower_weights(model.visual, precision)
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(classes or _CLIP_CLASSES, teacher.joint_width, generator=generator)
    text = F.normalize(text, dim=-1)

    def classify(tokens: Tensor, _: Any) -> Tensor:
        features = mean_direction(teacher.project(tokens.flatten(1, 2)))
        return class_probabilities(features, text.to(features.device), teacher.logit_scale)

    rows, columns = teacher.grid
    head = teacher.joint_width * (rows * columns * teacher.width + len(text)) / 1e9
    gmacs = {"teacher": clip_gmacs(model)["teacher"], "head": head}
    return Subject(name, teacher, classify, gmacs)

"""Teachers for the benchmark: real architectures by name, random weights, one random image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lqn_seg.adapt.baselines.zero_shot import class_probabilities, mean_direction
from lqn_seg.core.lqn import Grid
from lqn_seg.errors import InputError, nearest
from lqn_seg.lab.cost.flops import EomtShape, clip_gmacs, eomt_gmacs
from lqn_seg.teachers.base import Teacher
from lqn_seg.teachers.clip import ClipTeacher
from lqn_seg.teachers.modules import lower_weights

if TYPE_CHECKING:
    from lqn_seg.teachers.eomt import EomtTeacher
    from lqn_seg.teachers.eomt_head import EomtHead

# open_clip's names.
CLIPS = {"clip-b16": "ViT-B-16-quickgelu", "clip-l14": "ViT-L-14-quickgelu"}
_CLIP_CLASSES = 1000
# width, layers, heads, image side, and what differs from transformers' default, EoMT-L's
EOMTS: dict[str, tuple[int, int, int, int, dict[str, int]]] = {
    "eomt-s": (384, 12, 6, 512, {"num_queries": 100, "num_blocks": 3}),
    "eomt-b": (768, 12, 12, 224, {}),
    "eomt-l": (1024, 24, 16, 640, {}),
    # Runs in milliseconds, to see that everything works.
    "eomt-tiny": (32, 4, 2, 48, {"patch_size": 8, "num_queries": 7, "num_labels": 5}),
}

Head = Callable[[Tensor, Any], Any]


@dataclass(frozen=True)
class Scene:
    """A teacher with its frozen head, and what it makes of one image of random pixels."""

    name: str  # of `CLIPS` or `EOMTS`
    teacher: Teacher[Any]  # with random weights, in the precision that its head has too
    head: Head  # last-layer tokens (B, H, W, D) and the context to masks or class scores
    gmacs: dict[str, float]  # of "teacher" and "head"
    inputs: Tensor  # (1, 3, h, w)
    field: Tensor  # (1, L, H, W, D)
    context: Any

    @property
    def grid(self) -> Grid:
        return (self.teacher.num_layers, *self.teacher.grid)

    @property
    def side(self) -> int:
        return self.inputs.shape[-1]

    def encode(self) -> Any:
        return self.teacher.encode(self.inputs)

    @torch.no_grad()
    def answer(self) -> Any:
        return self.head(self.field[:, -1], self.context)


def build_scene(
    name: str,
    image_size: int = 0,
    classes: int = 0,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> Scene:
    """The same weights and image at every call; 0 for the teacher's own side or classes."""
    build = _clip if nearest(name, (*CLIPS, *EOMTS), "teacher") in CLIPS else _eomt
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, head, gmacs = build(name, image_size, classes, precision)
    side = teacher.image_size[0]
    if image_size and side != image_size:
        raise InputError(f"{name} does not take images of {image_size} pixels: it takes {side}")
    teacher.model.to(device)
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    inputs = pixels.sub(0.45).div(0.225).to(teacher.device)
    return Scene(name, teacher, head, gmacs, inputs, *teacher.encode(inputs))


def _eomt(
    name: str, image_size: int, classes: int, precision: str
) -> tuple[Teacher[Any], Head, dict[str, float]]:
    teacher = random_eomt(
        name, image_size, precision, **({"num_labels": classes} if classes else {})
    )
    head = eomt_head(teacher)

    def segment(tokens: Tensor, context: Any) -> Any:
        return head(tokens, context.last_queries)

    return teacher, segment, eomt_gmacs(EomtShape.from_config(teacher.model.config))


def random_eomt(
    name: str, image_size: int = 0, precision: str = "float32", **changes: Any
) -> EomtTeacher:
    """One of `EOMTS`, with changes to its configuration; an image side of 0 is its own."""
    # Here, because transformers' EoMT asks for scipy, which a CLIP does not.
    from transformers import EomtConfig

    from lqn_seg.teachers.eomt import EomtTeacher
    from lqn_seg.teachers.eomt_model import build_eomt

    width, layers, heads, side, own = EOMTS[name]
    shape = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image_size or side,
        "num_labels": 133,
    }
    model = build_eomt(EomtConfig(**{**shape, **own, **changes}))
    nn.init.zeros_(model.attn_mask_probs)  # masked attention off, as in evaluation
    teacher = EomtTeacher(model, precision)
    lower_weights(model, precision)
    return teacher


def eomt_head(teacher: EomtTeacher) -> EomtHead:
    from lqn_seg.teachers.eomt_head import EomtHead

    return EomtHead(teacher.model, teacher.precision)


def _clip(
    name: str, image_size: int, classes: int, precision: str
) -> tuple[Teacher[Any], Head, dict[str, float]]:
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
    return teacher, classify, {"teacher": clip_gmacs(model)["teacher"], "head": head}

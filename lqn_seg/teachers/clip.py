"""The CLIP teacher: open_clip's model, opened up so that every layer's tokens can be read.

Sequence order inside the vision tower is ``[CLS | patches]``. Layer 0 is the patch embedding with
its position, *before* ``ln_pre``, which would hide a loss of contrast from statistics alignment.
Shapes: B images, L layers, H x W patches, D features, E joint features, C texts, T tokens a text.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn

from lqn_seg.core.precision import resolve_precision
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import PrefixContext, Preprocessing, Teacher
from lqn_seg.teachers.files import named, read_json, use_cache_without_network
from lqn_seg.teachers.modules import accelerate, lower_weights
from lqn_seg.teachers.preprocessing import clip_values

_KEY = "MODEL.LQN.TEACHER"
FOLDER_CONFIG = "open_clip_config.json"
_USUAL = ["ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-H-14"]


@dataclass(frozen=True)
class ClipContext(PrefixContext):
    """`PrefixContext` whose one prefix token is the CLS token."""

    @property
    def cls(self) -> Tensor:
        """(B, D) CLS token after the last layer, before ``ln_post``."""
        return self.prefix[:, -1, 0]


class ClipTeacher(Teacher[ClipContext]):
    """A frozen CLIP: a teacher, and the space that its images share with texts.

    Args:
        model: an open_clip model whose vision tower is open_clip's own ViT, an `InputError` else.
        tokenizer: texts to (C, T) token ids.
        precision: of the matrix products, one of `DTYPES`.
        source: what says how its pixels are prepared, for messages.

    Attributes:
        joint_width: E.
        resize_mode: open_clip's: "shortest" or "longest" side to the input's, or "squash".
        fill_color: of what "longest" leaves empty, 0..255.
    """

    name = "CLIP"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        precision: str = "float32",
        source: str = "open_clip's preprocess_cfg",
    ) -> None:
        visual = image_tower(model)
        values = clip_values(getattr(visual, "preprocess_cfg", {}), source)
        short = Path(source).name if os.path.sep in source else source
        super().__init__(
            *(model, visual.transformer.resblocks, visual.transformer.width),
            *(visual.grid_size, visual.image_size, precision),
            Preprocessing(values["mean"], values["std"], values["interpolation"], source=short),
        )
        for tower in model.modules():
            if isinstance(tower, Transformer):
                tower.batch_first = True  # (B, T, D) to the attentions, which take nothing else
        accelerate(model)
        self.tokenizer = tokenizer
        self.joint_width: int = visual.output_dim
        self.resize_mode: str = values["resize_mode"]
        self.fill_color: int = values["fill_color"]

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before the softmax; 100 in the published models."""
        return float(self.model.logit_scale.exp())

    def start(self, images: Tensor) -> tuple[Tensor, ClipContext]:
        visual = self.model.visual
        with self.products():
            patches = visual.conv1(images).flatten(2).mT
        position = visual.positional_embedding.to(patches.dtype)
        cls = (visual.class_embedding.to(patches.dtype) + position[0]).expand(len(images), 1, 1, -1)
        return (patches + position[1:]).unflatten(1, self.grid), ClipContext(cls)

    def enter(self, state: Tensor) -> Tensor:
        with self.products():
            return self.model.visual.ln_pre(state)

    def project(self, tokens: Tensor) -> Tensor:
        """Last-layer tokens (..., D), CLS or patches, to the joint space (..., E), unit length."""
        visual = self.model.visual
        with self.products():
            return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)

    def pooled(self, tokens: Tensor, context: ClipContext) -> Tensor:
        """Image features (B, E), unit length, as the model itself pools (B, H, W, D) last tokens:
        the CLS token's projection, or for some models the patches' mean."""
        visual = self.model.visual
        if visual.pool_type == "tok":
            return self.project(context.cls)
        patches = tokens.flatten(1, 2)
        with torch.no_grad(), self.products():
            if visual.final_ln_after_pool:
                pooled = visual.ln_post(patches.mean(1))
            else:
                pooled = visual.ln_post(patches).mean(1)
            return F.normalize((pooled @ visual.proj).float(), dim=-1)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Image features (B, E) by open_clip's own ``encode_image``, unit length."""
        self.check_images(images)
        with self.products():
            return F.normalize(self.model.encode_image(images).float(), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(C, T) token ids on the teacher's device."""
        return self.tokenizer(list(texts)).to(self.device)

    def encode_text(self, tokens: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Text features (C, E), unit length, of (C, T) token ids; differentiable in ``embedded``,
        the (C, T, d) token embeddings to use in place of the looked-up ones."""
        with ExitStack() as hooks, self.products():
            if embedded is not None:  # the rest is open_clip's own text tower
                hook = self.token_embedding.register_forward_hook(lambda *_: embedded)
                hooks.enter_context(hook)
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The look-up of text tokens; an InputError where the text tower isn't open_clip's own."""
        tower = self.model if hasattr(self.model, "token_embedding") else self.model.text
        if not hasattr(tower, "token_embedding"):
            raise InputError("prompts can be tuned only with a text tower of open_clip's own")
        return tower.token_embedding


def image_tower(model: nn.Module) -> Any:
    """The ViT of an open_clip model; an `InputError` where it is not open_clip's own."""
    visual: Any = getattr(model, "visual", None)
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        kind = type(visual).__name__ if visual is not None else type(model).__name__
        raise InputError(
            f"a CLIP teacher needs open_clip's own ViT without attention pooling, not a {kind};"
            f" choose a model such as {', '.join(_USUAL)}"
        )
    return visual


def load_clip(
    weights: str, name: str = "", device: str | torch.device = "cpu", precision: str = "float32"
) -> ClipTeacher:
    """Load a frozen CLIP teacher; an `InputError` where a file is missing or does not fit.

    Args:
        weights, name: as of `read_clip`.
        precision: as of `ClipTeacher`, or "auto"; the image tower is lowered to it.
    """
    if not weights:
        raise InputError(f"{_KEY}.WEIGHTS is empty: a CLIP teacher needs its weights")
    model, tokenizer, source = read_clip(weights, name, device)
    resolved = resolve_precision(precision, torch.device(device))
    teacher = ClipTeacher(model, tokenizer, resolved, source)
    # Not the texts': open_clip would lower what runs between their layers too.
    lower_weights(model.visual, resolved)
    return teacher


def read_clip(
    weights: str, name: str, device: str | torch.device, key: str = f"{_KEY}.WEIGHTS"
) -> tuple[Any, Any, str]:
    """An open_clip model in float32, its tokenizer, and what says how its pixels are prepared.

    Args:
        weights: a local directory (``open_clip_config.json`` and weights; ``name`` stays empty), or
            a local weight file or one of open_clip's tags ("openai", "laion2b_s32b_b79k") for the
            architecture ``name``.
        name: open_clip's name of the architecture, such as "ViT-B-16-quickgelu", "ViT-H-14".
        key: what named the weights, for messages.
    """
    local, pretrained = Path(weights), None
    source = f"open_clip's preprocess_cfg of {name} {weights}"
    if local.is_dir():
        config = local / FOLDER_CONFIG
        _check_folder(local, config, name, key)
        architecture, source = f"local-dir:{weights}", f"{key}: {config}"
    else:
        check_quick_gelu(name, weights, key)
        use_cache_without_network()
        architecture, pretrained = name, weights
    how = "its config or weights are damaged or do not fit each other"
    if pretrained and not local.is_file():
        how = (
            "the weights are not in the cache and could not be fetched; fetch them on a "
            "machine with internet and give the local file or directory"
        )
    asked = f"{name or weights} ({pretrained or 'local'})"
    with named(f"{key}: {asked} could not be loaded: {how}"), _quiet():
        model: Any = open_clip.create_model(
            architecture, pretrained, device=device, pretrained_text=False
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    return model.float(), tokenizer, source


def _check_folder(folder: Path, config: Path, name: str, key: str) -> None:
    if not config.is_file():
        raise InputError(f"{key}: {folder} holds no {FOLDER_CONFIG}")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise InputError(f"{key}: {folder} holds no weights")
    if name:
        raise InputError(f"{_KEY}.CONFIG must be empty, not {name!r}: {folder} has its own")
    read_json(config, key)


def check_quick_gelu(name: str, weights: str, key: str = f"{_KEY}.WEIGHTS") -> None:
    """Raises InputError where an architecture or tag is unknown, or the two differ in QuickGELU:
    OpenAI's weights run without it too, some points worse, and nothing says so."""
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        near = [n for n in open_clip.list_models() if n.lower().startswith(name.lower()[:5])]
        known = ", ".join((near or _USUAL)[:5])
        raise InputError(
            f"{_KEY}.CONFIG: open_clip knows no model {name!r} (for example {known}), "
            f"and the directory {weights} does not exist"
        )
    has = bool(config.get("quick_gelu", False))
    tag = open_clip.get_pretrained_cfg(name, weights)
    if tag:
        needs = bool(tag.get("quick_gelu", False))
    elif Path(weights).is_file():
        # A file does not say how it was trained; its name does, where it keeps the tag's.
        needs = has or "openai" in os.fspath(weights).lower()
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(f"{key}: {weights} is neither a file nor a tag of {name} (tags: {tags})")
    if needs != has:
        other = name.removesuffix("-quickgelu") if has else f"{name}-quickgelu"
        raise InputError(
            f"{key}: QuickGELU mismatch: the weights {weights} were trained "
            f"{'with' if needs else 'without'} it, {name} runs {'with' if has else 'without'} it: "
            f"set {_KEY}.CONFIG {other}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)

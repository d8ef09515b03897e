"""The CLIP teacher: open_clip's model, opened up so that every layer's tokens can be read.

Sequence order inside the vision tower is ``[CLS | patches]``. Layer 0 is the patch embedding with
its position, *before* ``ln_pre``: there a loss of contrast still is one, and the gauge can see it.
``ln_post`` and the projection into the space that images share with texts are frozen and applied
after the last layer, to whatever tokens are handed in.

Shapes: B images, L layers, H x W patches, D features, E joint features, C texts, T tokens a text.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
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
from lqn_seg.teachers.base import Hook, Preprocessing, Teacher
from lqn_seg.teachers.files import first_line, read_json, use_cache_without_network
from lqn_seg.teachers.modules import accelerate, lower_weights
from lqn_seg.teachers.preprocessing import clip_values

_LOCAL = "local-dir:"
_BAD_CHECKPOINT = (
    *(OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError),
)


@dataclass(frozen=True)
class ClipContext:
    """What the frozen rest of the teacher needs beside the patch tokens.

    prefix: (B, L + 1, 1, D) the CLS token after each layer; index 0 is the embedding.
    """

    prefix: Tensor

    @property
    def cls(self) -> Tensor:
        """(B, D) CLS token after the last layer, before ``ln_post``."""
        return self.prefix[:, -1, 0]


class ClipTeacher(Teacher[ClipContext]):
    """A frozen CLIP that hands out its tokens at every layer and can resume from any of them.

    Args:
        model: an open_clip model whose vision tower is open_clip's own ViT.
        tokenizer: texts to (C, T) token ids.
        precision: of the matrix products: "float32", "bfloat16" or "float16".
        source: what says how its pixels are prepared, for messages.

    Attributes:
        resize_mode: open_clip's: "shortest" or "longest" side to the input's, or "squash".
        fill_color: of what "longest" leaves empty, 0..255.

    Raises:
        InputError: the vision tower is another kind (a ResNet, a timm model, attention pooling), or
            what its ``preprocess_cfg`` says is malformed.
    """

    name = "CLIP"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        precision: str = "float32",
        source: str = "open_clip's preprocess_cfg",
    ) -> None:
        visual = getattr(model, "visual", None)
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
            kind = type(visual).__name__ if visual is not None else type(model).__name__
            raise InputError(
                f"a CLIP teacher needs open_clip's own ViT without attention pooling, not a {kind}:"
                " choose a model such as ViT-B-16-quickgelu, ViT-L-14-quickgelu or ViT-H-14"
            )
        self.model: Any = _batch_first(model.eval().requires_grad_(False))
        accelerate(model)
        self.tokenizer = tokenizer
        self.precision = precision
        self._visual: Any = visual
        self.num_layers: int = visual.transformer.layers
        self.num_query_layers = 0
        self.width: int = visual.transformer.width
        self.joint_width: int = visual.output_dim
        self.grid: tuple[int, int] = visual.grid_size
        self.image_size: tuple[int, int] = visual.image_size
        said = clip_values(getattr(visual, "preprocess_cfg", {}), source)
        self.resize_mode: str = said["resize_mode"]
        self.fill_color: int = said["fill_color"]
        short = Path(source).name if os.path.sep in source else source
        self.preprocessing = Preprocessing(
            said["mean"], said["std"], said["interpolation"], source=short
        )
        self.pixel_mean, self.pixel_std = self.preprocessing.mean, self.preprocessing.std

    @property
    def device(self) -> torch.device:
        return self._visual.proj.device

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before the softmax; 100 in the published models."""
        return float(self.model.logit_scale.exp())

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self._visual.transformer.resblocks

    # ---- images ----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor, hook: Hook | None = None) -> tuple[Tensor, ClipContext]:
        """Token field of a batch, in one forward pass.

        Args:
            images: (B, 3, h, w) normalised with ``pixel_mean`` and ``pixel_std``.
            hook: replaces the patch tokens of the embedding and of each layer as they come.

        Returns:
            The token field (B, L, H, W, D), block outputs of layers 1..L, and its context.

        Raises:
            InputError: the image size is not the one that the position embeddings were learned at.
        """
        patches, prefix = self._embed(images)
        if hook is not None:
            patches = hook(0, patches.unflatten(1, self.grid)).flatten(1, 2)
        field, prefixes = self._run(0, patches, prefix, hook)
        return field.unflatten(2, self.grid), ClipContext(prefixes)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Layer 0 alone: (B, 3, h, w) normalised images to (B, H, W, D) patch embeddings."""
        return self._embed(images)[0].unflatten(1, self.grid)

    @torch.no_grad()
    def resume(
        self, layer: int, tokens: Tensor, context: ClipContext
    ) -> tuple[Tensor, ClipContext]:
        """Run the frozen rest of the teacher on patch tokens put in place at ``layer``.

        Args:
            layer: 0 (the embedding) to L; the tokens are what that layer gave out.
            tokens: (B, H, W, D) patch tokens.
            context: CLS tokens of the same images, from :meth:`encode`.

        Returns:
            Last-layer patch tokens (B, H, W, D) and the context as it is after the resumed layers.

        Raises:
            InputError: ``layer`` is not one of the teacher's.
        """
        self.check_layer(layer)
        field, prefixes = self._run(layer, tokens.flatten(1, 2), context.prefix[:, layer])
        last = field[:, -1].unflatten(1, self.grid) if layer < self.num_layers else tokens
        return last, ClipContext(torch.cat([context.prefix[:, : layer + 1], prefixes[:, 1:]], 1))

    def project(self, tokens: Tensor) -> Tensor:
        """Last-layer tokens (..., D), CLS or patches, to the joint space (..., E), unit length.

        Differentiable in the tokens.
        """
        with self.products():
            projected = self._visual.ln_post(tokens) @ self._visual.proj
        return F.normalize(projected.float(), dim=-1)

    def pooled(self, tokens: Tensor, context: ClipContext) -> Tensor:
        """Image features (B, E), unit length, as the model itself pools (B, H, W, D) last tokens.

        The CLS token's projection, or for a model without one in its head the patches' mean.
        """
        if self._visual.pool_type == "tok":
            return self.project(context.cls)
        with torch.no_grad(), self.products():
            patches = tokens.flatten(1, 2)
            if self._visual.final_ln_after_pool:
                pooled = self._visual.ln_post(patches.mean(1))
            else:
                pooled = self._visual.ln_post(patches).mean(1)
            return F.normalize((pooled @ self._visual.proj).float(), dim=-1)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Image features (B, E) by open_clip's own ``encode_image``, unit length."""
        self.check_images(images)
        with self.products():
            return F.normalize(self.model.encode_image(images).float(), dim=-1)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, D) and CLS (B, 1, D), with positions, before ``ln_pre``."""
        self.check_images(images)
        visual = self._visual
        with self.products():
            patches = visual.conv1(images).flatten(2).mT
        position = visual.positional_embedding.to(patches.dtype)
        cls = (visual.class_embedding.to(patches.dtype) + position[0]).expand(len(images), 1, -1)
        return patches + position[1:], cls

    def _run(
        self, layer: int, patches: Tensor, prefix: Tensor, hook: Hook | None = None
    ) -> tuple[Tensor, Tensor]:
        """Layers ``layer + 1`` to L on (B, N, D) patches and (B, 1, D) CLS.

        Returns patches of the layers run (B, layers, N, D) and CLS (B, 1 + layers, 1, D), which
        starts with what came in.
        """
        state = torch.cat([prefix, patches], 1)
        fields, prefixes = [], [prefix]
        with self.products():
            if layer == 0:
                state = self._visual.ln_pre(state)
            for index in range(layer, self.num_layers):
                state = self._visual.transformer.resblocks[index](state)
                if hook is not None:
                    changed = hook(index + 1, state[:, 1:].unflatten(1, self.grid)).flatten(1, 2)
                    state = torch.cat([state[:, :1], changed], 1)
                fields.append(state[:, 1:])
                prefixes.append(state[:, :1])
        field = torch.stack(fields, 1) if fields else patches[:, None][:, :0]
        return field, torch.stack(prefixes, 1)

    # ---- texts -----------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(C, T) token ids on the teacher's device."""
        return self.tokenizer(list(texts)).to(self.device)

    def encode_text(self, tokens: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Text features (C, E), unit length; differentiable in ``embedded``.

        Args:
            tokens: (C, T) ids: where a text ends, and what it says unless ``embedded`` says it.
            embedded: (C, T, d) token embeddings to use in place of the looked-up ones.
        """
        handle = None
        if embedded is not None:
            # The embedding's answer is exchanged, and the rest is open_clip's own text tower.
            handle = self.token_embedding.register_forward_hook(lambda *_: embedded)
        try:
            with self.products():
                return F.normalize(self.model.encode_text(tokens).float(), dim=-1)
        finally:
            if handle is not None:
                handle.remove()

    @property
    def token_embedding(self) -> nn.Embedding:
        """The look-up of text tokens.

        Raises:
            InputError: the text tower is not open_clip's own.
        """
        tower = self.model if hasattr(self.model, "token_embedding") else self.model.text
        if not hasattr(tower, "token_embedding"):
            raise InputError("prompts can be tuned only with a text tower of open_clip's own")
        return tower.token_embedding


def _batch_first(model: nn.Module) -> nn.Module:
    """Let open_clip's towers hand (B, T, D) to their attentions, which take nothing else."""
    for tower in model.modules():
        if isinstance(tower, Transformer):
            tower.batch_first = True
    return model


def load_clip(
    weights: str, name: str = "", device: str | torch.device = "cpu", precision: str = "float32"
) -> ClipTeacher:
    """Load a frozen CLIP teacher.

    Args:
        weights: a local directory (``open_clip_config.json`` and weights; ``name`` stays empty), or
            a local weight file or one of open_clip's tags ("openai", "laion2b_s32b_b79k") for the
            architecture ``name``.
        name: open_clip's name of the architecture, such as "ViT-B-16-quickgelu", "ViT-H-14".
        precision: as of :class:`ClipTeacher`, or "auto"; the image tower is lowered to it, whatever
            the weights are stored in.

    How images become its input is what ``preprocess_cfg`` in that ``open_clip_config.json`` says,
    or open_clip's for the tag.

    Raises:
        InputError: a file is missing or does not fit, the name or tag is unknown, weights trained
            with QuickGELU would run without it or the other way round, or they are not in the
            cache and cannot be fetched.
    """
    if not weights:
        raise InputError("MODEL.LQN.TEACHER.WEIGHTS is empty: a CLIP teacher needs its weights")
    local = Path(weights)
    if local.is_dir():
        if not (local / "open_clip_config.json").is_file():
            raise InputError(f"MODEL.LQN.TEACHER.WEIGHTS: {weights} holds no open_clip_config.json")
        if not any(local.glob("*.safetensors")) and not any(local.glob("*.bin")):
            raise InputError(f"MODEL.LQN.TEACHER.WEIGHTS: {weights} holds no weights")
        if name:
            raise InputError(
                f"MODEL.LQN.TEACHER.CONFIG must be empty, not {name!r}: {weights} brings its own"
            )
        read_json(local / "open_clip_config.json", "MODEL.LQN.TEACHER.WEIGHTS")
        source, pretrained = f"{_LOCAL}{weights}", None
    else:
        check_quick_gelu(name, weights)
        use_cache_without_network()
        source, pretrained = name, weights
    try:
        with _quiet():
            model = open_clip.create_model(source, pretrained, device=device, pretrained_text=False)
        model = model.float()
        tokenizer = open_clip.get_tokenizer(source)
    except _BAD_CHECKPOINT as error:
        how = "its config or weights are damaged or do not fit each other"
        if pretrained and not local.is_file():
            how = (
                "the weights are not in the cache and could not be fetched; fetch them on a "
                "machine with internet and give the local file or directory"
            )
        raise InputError(
            f"MODEL.LQN.TEACHER.WEIGHTS: {name or weights} ({pretrained or 'local'}) could not be "
            f"loaded: {how} ({first_line(error)})"
        ) from error
    named = resolve_precision(precision, torch.device(device))
    said_by = f"open_clip's preprocess_cfg of {name} {weights}"
    if local.is_dir():
        said_by = f"MODEL.LQN.TEACHER.WEIGHTS: {local / 'open_clip_config.json'}"
    teacher = ClipTeacher(model, tokenizer, named, said_by)
    # Not the texts': open_clip would lower what runs between their layers too.
    lower_weights(teacher.model.visual, teacher.precision)
    return teacher


def check_quick_gelu(name: str, weights: str) -> None:
    """Weights must run with the activation that they were trained with.

    OpenAI's (and some others') were trained with QuickGELU; without it they still run, some points
    worse, and nothing says so.

    Raises:
        InputError: the architecture or the tag is unknown, or the two disagree.
    """
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        near = [n for n in open_clip.list_models() if n.lower().startswith(name.lower()[:5])]
        known = ", ".join((near or ["ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-H-14"])[:5])
        raise InputError(
            f"MODEL.LQN.TEACHER.CONFIG: open_clip knows no model {name!r} (for example {known}), "
            f"and there is no directory {weights}"
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
        raise InputError(
            f"MODEL.LQN.TEACHER.WEIGHTS: {weights} is no file, and no tag of {name} (tags: {tags})"
        )
    if needs != has:
        other = name.removesuffix("-quickgelu") if has else f"{name}-quickgelu"
        raise InputError(
            f"MODEL.LQN.TEACHER: QuickGELU mismatch: the weights {weights} were trained "
            f"{'with' if needs else 'without'} it, {name} runs {'with' if has else 'without'} it: "
            f"set MODEL.LQN.TEACHER.CONFIG {other}"
        )


class _quiet:
    """open_clip tells its life story through the root logger; errors are raised all the same."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)

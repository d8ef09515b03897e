"""DINOv2 alone, without a mask head: timm's ViT as a frozen teacher, and as a start for an EoMT.

For feature work: every layer's tokens, layer queries on them, a Detectron2 backbone. Segmentation
needs a head, so it needs an EoMT; `start_from_dinov2` gives one its ViT to be trained from.

Shapes: B images, L layers, H x W patches, D features, P prefix tokens (CLS, then registers).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from lqn_seg.core.precision import resolve_precision
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Hook, Preprocessing, Teacher
from lqn_seg.teachers.eomt_model import Size, image_size_of
from lqn_seg.teachers.files import WEIGHT_FILES, find_file, first_line, read_json, read_weights
from lqn_seg.teachers.modules import accelerate, lower_weights
from lqn_seg.teachers.original_eomt import convert_timm, load_strictly
from lqn_seg.teachers.preprocessing import interpolation_of, timm_values

_KEY = "MODEL.LQN.TEACHER.WEIGHTS"


@dataclass(frozen=True)
class Dinov2Context:
    """What the frozen rest of the teacher needs beside the patch tokens.

    prefix: (B, L + 1, P, D) CLS and register tokens after each layer; index 0 is the embedding.
    """

    prefix: Tensor


class Dinov2Teacher(Teacher[Dinov2Context]):
    """A frozen ViT of timm's that hands out its tokens at every layer and resumes from any."""

    name = "DINOv2"

    def __init__(self, model: VisionTransformer, precision: str = "float32") -> None:
        self.model = model.eval().requires_grad_(False)
        accelerate(model)
        self.precision = precision
        self.num_layers: int = len(model.blocks)
        self.num_query_layers: int = 0  # no layer carries object queries
        self.width: int = model.embed_dim
        self.grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
        self.image_size: tuple[int, int] = tuple(model.patch_embed.img_size)
        self.preprocessing = preprocessing_of_timm(model)
        self.pixel_mean: tuple[float, ...] = self.preprocessing.mean
        self.pixel_std: tuple[float, ...] = self.preprocessing.std

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self.model.blocks

    @torch.no_grad()
    def encode(self, images: Tensor, hook: Hook | None = None) -> tuple[Tensor, Dinov2Context]:
        """(B, 3, h, w) normalised images to the token field (B, L, H, W, D), block outputs.

        Raises:
            InputError: the image size is not the teacher's.
        """
        self.check_images(images)
        patches, prefix = self._embed(images)
        if hook is not None:
            patches = hook(0, patches.unflatten(1, self.grid)).flatten(1, 2)
        return self._run(0, patches, prefix, hook)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Layer 0 alone: (B, 3, h, w) normalised images to (B, H, W, D) patch embeddings."""
        return self._embed(images)[0].unflatten(1, self.grid)

    @torch.no_grad()
    def resume(
        self, layer: int, tokens: Tensor, context: Dinov2Context
    ) -> tuple[Tensor, Dinov2Context]:
        """The frozen rest on tokens (B, H, W, D) put in place at ``layer``, 0 (embedding) to L.

        Raises:
            InputError: ``layer`` is not one of the teacher's.
        """
        self.check_layer(layer)
        if layer == self.num_layers:
            return tokens, context
        field, after = self._run(layer, tokens.flatten(1, 2), context.prefix[:, layer])
        prefix = torch.cat([context.prefix[:, :layer], after.prefix], 1)
        return field[:, -1], Dinov2Context(prefix)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.products():
            state = self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(images)))
        count = self.model.num_prefix_tokens
        return state[:, count:], state[:, :count]

    def _run(
        self, layer: int, patches: Tensor, prefix: Tensor, hook: Hook | None = None
    ) -> tuple[Tensor, Dinov2Context]:
        """Layers ``layer + 1`` to L: their patches (B, layers, H, W, D), and prefixes from before
        the first of them on."""
        count = prefix.shape[1]
        state = torch.cat([prefix, patches], 1)
        fields, prefixes = [], [prefix]
        for index in range(layer, self.num_layers):
            with self.products():
                state = self.model.blocks[index](state)
            patch_part = state[:, count:].unflatten(1, self.grid)
            if hook is not None:
                patch_part = hook(index + 1, patch_part)
                state = torch.cat([state[:, :count], patch_part.flatten(1, 2)], 1)
            fields.append(patch_part)
            prefixes.append(state[:, :count])
        return torch.stack(fields, 1), Dinov2Context(torch.stack(prefixes, 1))


def preprocessing_of_timm(model: VisionTransformer) -> Preprocessing:
    """What a timm model says of its input. Its crop is left out: token fields are of all pixels."""
    about: Any = model.pretrained_cfg
    where = "timm's pretrained_cfg"
    filter_name = interpolation_of(about, where, "interpolation")
    mean, std = tuple(about["mean"]), tuple(about["std"])
    return Preprocessing(mean, std, filter_name, source=where)


def load_dinov2(
    weights: str,
    config: str = "",
    device: str | torch.device = "cpu",
    image_size: Size | None = None,
    precision: str = "float32",
) -> Dinov2Teacher:
    """Load a frozen DINOv2 teacher.

    Args:
        weights: a directory or hub id in timm's layout (``config.json`` with the ``architecture``
            beside the weights), such as ``timm/vit_large_patch14_reg4_dinov2.lvd142m``, or a file
            (timm's or Meta's own) with such a ``config.json`` beside it; empty for random weights.
        config: path of a JSON file in timm's form in place of that ``config.json``:
            ``{"architecture": ..., "model_args": {...}}``.
        image_size: (height, width) in pixels, multiples of the patch size; default: the
            architecture's. Position embeddings are resampled as timm does it.
        precision: of the matrix products, or "auto"; the weights are lowered to it, whatever they
            are stored in.

    Mean, deviation and interpolation of its input are those of ``pretrained_cfg`` in that
    ``config.json``, else timm's for the architecture.

    Raises:
        InputError: a file is missing, is no such ViT, or does not fit.
    """
    model = build_dinov2(weights, config, image_size, None, _KEY).to(device)
    teacher = Dinov2Teacher(model, resolve_precision(precision, torch.device(device)))
    lower_weights(model, teacher.precision)
    return teacher


def build_dinov2(
    weights: str, config: str, image_size: Size | None, patch_size: int | None, key: str
) -> VisionTransformer:
    """timm's ViT with the weights of `load_dinov2`; its patches resampled to ``patch_size``."""
    path = Path(weights) if weights else None
    found: Path | None = Path(config)
    if not config:
        where = str(path.parent) if path is not None and path.is_file() else weights
        found = find_file(where, ("config.json",), key)
    if found is None:
        raise InputError(
            f"{key}: {weights} has no config.json of timm's beside it, or could not be fetched"
        )
    content = read_json(found, key)
    sizes = {"img_size": image_size, "patch_size": patch_size}
    arguments = {**content.get("model_args", {}), **{k: v for k, v in sizes.items() if v}}
    said = timm_values(content, f"{key}: {found}")
    try:
        model = timm.create_model(
            content["architecture"], num_classes=0, pretrained_cfg_overlay=said, **arguments
        )
    except (KeyError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{key}: {found} does not name a ViT of timm's that can be built ({first_line(error)})"
        ) from error
    if not isinstance(model, VisionTransformer) or model.cls_token is None:
        raise InputError(f"{key}: {content['architecture']} is no ViT with a CLS token")
    if path is not None:
        file = path if path.is_file() else find_file(weights, WEIGHT_FILES, key)
        if file is None:
            raise InputError(f"{key}: {weights} holds no {' or '.join(WEIGHT_FILES)}")
        _load(model, file, f"{key}: {file}")
    return model


def _load(model: VisionTransformer, file: Path, key: str) -> None:
    try:
        # Meta's names to timm's, and the size of patches and grid to the model's.
        state = checkpoint_filter_fn(read_weights(file, key), model)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{key} does not fit the model ({first_line(error)})") from error
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    load_strictly(model, state, key)


def start_from_dinov2(model: Any, weights: str) -> Preprocessing:
    """Give a new EoMT the ViT of a DINOv2, as the original's training starts.

    Position embeddings are resampled to the EoMT's grid, and the patch embedding to its patches.
    Queries, mask head and class head keep their random start.

    Args:
        model: transformers' EoMT (DINOv2), changed in place.
        weights: as in `load_dinov2`.

    Returns:
        What the DINOv2 says of its input.

    Raises:
        InputError: the two ViTs have not the same shape.
    """
    key, eomt = "MODEL.LQN.TRAIN.BACKBONE", model.config
    vit = build_dinov2(weights, "", image_size_of(eomt), eomt.patch_size, key)
    first: Any = vit.blocks[0]
    heads = first.attn.num_heads
    if heads != eomt.num_attention_heads:
        raise InputError(
            f"{key}: {weights} has {heads} attention heads, the EoMT {eomt.num_attention_heads}"
        )
    start = convert_timm(vit.state_dict(), key)
    own = model.state_dict()
    kept = ("query.", "class_predictor.", "mask_head.", "upscale_block.", "attn_mask_probs")
    rest = {name: value for name, value in own.items() if name.startswith(kept)}
    load_strictly(model, {**start, **rest}, f"{key}: {weights}")
    return preprocessing_of_timm(vit)

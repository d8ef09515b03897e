"""The EoMT teacher: transformers' model, opened up so that every layer's tokens can be read.

EoMT (Kerssies et al., CVPR 2025) is a plain ViT whose last ``num_blocks`` layers also carry Q
queries. Sequence order inside those layers is ``[queries | prefix | patches]``, before them
``[prefix | patches]``; the prefix is the CLS token and the register tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from lqn_seg.core.precision import resolve_precision
from lqn_seg.teachers.base import Hook, Layers, PrefixContext, Preprocessing, Size, Teacher
from lqn_seg.teachers.eomt_checkpoints import read_eomt
from lqn_seg.teachers.eomt_model import set_image_size
from lqn_seg.teachers.modules import accelerate, attend, lower_weights, products_in

_ATTENTION = "lqn_seg"


@dataclass(frozen=True)
class EomtContext(PrefixContext):
    """What the frozen rest of the teacher needs beside the patch tokens.

    prefix: (B, L + 1, P, D) CLS and register tokens after each layer; index 0 is the embedding.
    queries: (B, num_blocks + 1, Q, D) query tokens after each query layer; index 0 is as learned.
    masks: attention mask that each query layer ran under, index 0 before any; None where it is off.
        (A layer whose own mask is off keeps the one before it, as in transformers.)
    """

    queries: Tensor
    masks: tuple[Tensor | None, ...]

    @property
    def last_queries(self) -> Tensor:
        """(B, Q, D) query tokens after the last layer, before the final norm."""
        return self.queries[:, -1]

    last = last_queries

    def by_layer(self, layers: int) -> Tensor:
        """(B, L, Q, D) query tokens after each layer; as learned before they enter."""
        entered = self.queries.shape[1] - 1
        after = [max(layer - (layers - entered), 0) for layer in range(1, layers + 1)]
        return self.queries[:, after]


class EomtTeacher(Teacher[EomtContext]):
    """A frozen EoMT: transformers' ``EomtForUniversalSegmentation``, or its sister on DINOv3."""

    name = "EoMT"

    def __init__(
        self, model: Any, precision: str = "float32", preprocessing: Preprocessing | None = None
    ) -> None:
        config, (rows, columns) = model.config, model.grid_size
        size = rows * config.patch_size, columns * config.patch_size
        super().__init__(
            *(model, model.layers, config.hidden_size, (rows, columns), size),
            *(precision, preprocessing, config.num_blocks),
        )
        accelerate(model)
        AttentionInterface.register(_ATTENTION, _attention)
        config._attn_implementation = _ATTENTION
        self.num_queries: int = config.num_queries
        self.refresh()

    def refresh(self) -> None:
        """Read again which layers mask their attention: training changes it beside the weights."""
        # Not where it is used: asking a tensor for its value in the layer loop would stall a GPU.
        self._mask_probabilities: list[float] = self.model.attn_mask_probs.tolist()

    def resized(self, size: Size) -> EomtTeacher:
        shared = {id(x): x for x in (*self.model.parameters(), *self.model.buffers())}
        model = copy.deepcopy(self.model, shared)
        set_image_size(model, size)
        return EomtTeacher(model, self.precision, self.preprocessing)

    def start(self, images: Tensor) -> tuple[Tensor, EomtContext]:
        with self.products():
            embedded = self.model.embeddings(images)
        count = self.model.embeddings.num_prefix_tokens
        queries = self.model.query.weight.expand(images.shape[0], 1, -1, -1)
        context = EomtContext(embedded[:, None, :count], queries, (None,))
        return embedded[:, count:].unflatten(1, self.grid), context

    def run(
        self,
        layer: int,
        patches: Tensor,
        context: EomtContext,
        hook: Hook | None = None,
        last: bool = False,
    ) -> tuple[Tensor, EomtContext]:
        first_query_layer = self.num_layers - self.num_query_layers
        passed = max(layer - first_query_layer, 0)  # query layers
        prefixes = list(context.prefix[:, : layer + 1].unbind(1))
        queries = list(context.queries[:, : passed + 1].unbind(1))
        masks, layers = list(context.masks[: passed + 1]), Layers(self.num_layers - layer, last)
        positions = self._positions()
        state = torch.cat([prefixes[-1], patches.flatten(1, 2)], 1)
        if passed:
            state = torch.cat([queries[-1], state], 1)
        for index in range(layer, self.num_layers):
            block = index - first_query_layer
            if block == 0:
                state = torch.cat([queries[-1], state], 1)
            if block >= 0:
                masks.append(self._attention_mask(state, block, masks[-1]))
            with products_in(self.layer_precision, self.device):
                state = self.model.layers[index](state, masks[-1], **positions)
            first_patch = state.shape[1] - self.grid[0] * self.grid[1]
            patches = state[:, first_patch:].unflatten(1, self.grid)
            if hook is not None:
                patches = hook(index + 1, patches)
                state = torch.cat([state[:, :first_patch], patches.flatten(1, 2)], 1)
            layers.append(patches)
            first_prefix = self.num_queries if block >= 0 else 0
            # Copies: a part would hold all of the layer.
            prefixes.append(state[:, first_prefix:first_patch].clone())
            if block >= 0:
                queries.append(state[:, : self.num_queries].clone())
        context = EomtContext(torch.stack(prefixes, 1), torch.stack(queries, 1), tuple(masks))
        return layers.field, context

    def _positions(self) -> dict[str, Any]:
        """What layers with rotary position embeddings (DINOv3) want beside their input."""
        if self.model.config.model_type != "eomt_dinov3":
            return {}
        # Its cosines depend on the size of the image alone.
        size = torch.empty(1, 1, *self.image_size, device=self.device)
        return {"position_embeddings": self.model.rope_embeddings(size)}

    def _attention_mask(self, state: Tensor, block: int, mask: Tensor | None) -> Tensor | None:
        """Additive mask (B, heads, N, N) of a query layer: each query attends only to the patches
        that its current mask covers. The previous one where it is off, as in every published
        checkpoint."""
        if self._mask_probabilities[block] <= 0:
            return mask
        with self.products():
            mask_logits, _ = self.model.predict(self.model.layernorm(state))
        covered = F.interpolate(mask_logits, size=self.grid, mode="bilinear").flatten(2) > 0
        count, length, _ = state.shape
        added = state.new_zeros(count, 1, length, length)
        first_patch = length - covered.shape[2]
        added[:, 0, : self.num_queries, first_patch:].masked_fill_(~covered, -1e9)
        return added.expand(-1, self.model.config.num_attention_heads, -1, -1)


def _attention(
    _: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, **__: Any
) -> tuple[Tensor, None]:
    """`attend` as transformers asks for it: (B, h, T, d) to (B, T, h, d)."""
    if dropout:  # in training
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    else:
        mixed = attend(q, k, v, mask)
    return mixed.transpose(1, 2), None


def load_eomt(
    weights: str,
    config: str = "",
    device: str | torch.device = "cpu",
    image_size: Size | None = None,
    base: str = "",
    precision: str = "float32",
) -> EomtTeacher:
    """Load a frozen EoMT teacher; an `InputError` where a file is missing or does not fit.

    Args:
        weights: a local directory, a file or a hub id, in transformers' layout (``config.json`` and
            ``model.safetensors``) or in the original release's (``pytorch_model.bin``); empty for
            random weights of the shape that ``config`` gives.
        config: path of an ``EomtConfig`` JSON file; read where ``weights`` is empty, and for
            what the tensors of an original file do not say (attention heads that are not 64 wide).
        image_size: (height, width) in pixels in place of the checkpoint's; see `set_image_size`.
        base: of delta weights (every published EoMT on DINOv3), a directory, file or hub id of the
            DINOv3 weights that they are the difference to, or ``absolute``.
        precision: of the matrix products, or "auto"; the weights are lowered to it.
    """
    model, preprocessing = read_eomt(weights, config, image_size, base)
    resolved = resolve_precision(precision, torch.device(device))
    teacher = EomtTeacher(model.to(device), resolved, preprocessing)
    lower_weights(model, resolved)
    return teacher

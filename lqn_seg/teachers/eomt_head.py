"""EoMT's frozen mask head: patch tokens from the student or the teacher, and query tokens."""

from typing import Any

import torch
from torch import Tensor

from lqn_seg.teachers.modules import products_in


def class_names_of(config: Any) -> tuple[str, ...]:
    """The names in a transformers configuration's ``id2label``, in the order of their ids."""
    return tuple(str(name) for _, name in sorted(config.id2label.items()))


class EomtHead:
    """Final norm, mask head, upscaling and class predictor of a frozen EoMT.

    The paper hands the student's answer "through the teacher's mask-head" (section 3.2.1). EoMT's
    head reads query tokens as well as patch tokens, so both are arguments here. ``precision``, of
    its matrix products, is the teacher's.
    """

    def __init__(self, model: Any, precision: str = "float32") -> None:
        self.model, self.precision = model, precision
        self.num_queries: int = model.config.num_queries
        self.class_names = class_names_of(model.config)

    def __call__(self, patch_tokens: Tensor, query_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (B, Q, h, w) at the head's own resolution and class logits (B, Q, C + 1), the
        last class being "no object"; float32, differentiable in the tokens.

        Args:
            patch_tokens: (B, H, W, D) of the last block, before the final norm; of any grid.
            query_tokens: (B, Q, D) likewise.
        """
        model = self.model
        queries, patches = model.layernorm(query_tokens), model.layernorm(patch_tokens)
        # transformers' `predict`, whose grid is fixed.
        with products_in(self.precision, patches.device):
            pixels = model.upscale_block(patches.movedim(-1, 1).contiguous())
            masks = torch.einsum("bqd,bdhw->bqhw", model.mask_head(queries), pixels)
            classes = model.class_predictor(queries)
        return masks.float(), classes.float()

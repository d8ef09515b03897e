"""The EoMT teacher: transformers' model, opened up so that every layer's tokens can be read.

EoMT (Kerssies et al., CVPR 2025) is a plain ViT whose last ``num_blocks`` layers also carry object
queries. Sequence order inside those layers is ``[queries | prefix | patches]``; before them it is
``[prefix | patches]``, where the prefix is the CLS token followed by the register tokens.

Shapes: B images, L layers, H x W patches, D features, Q queries, P prefix tokens.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import EomtConfig, EomtForUniversalSegmentation

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Edit, Teacher

_BAD_CHECKPOINT = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EomtContext:
    """What the frozen rest of the teacher needs beside the patch tokens.

    prefix: (B, L + 1, P, D) CLS and register tokens after each layer; index 0 is the embedding.
    queries: (B, num_blocks + 1, Q, D) query tokens after each query layer; index 0 is as learned.
    masks: attention mask that each query layer ran under, index 0 before any; None where it is off.
        (A layer whose own mask is off keeps the one before it, as in transformers.)
    """

    prefix: Tensor
    queries: Tensor
    masks: tuple[Tensor | None, ...]

    @property
    def last_queries(self) -> Tensor:
        """(B, Q, D) query tokens after the last layer, before the final norm."""
        return self.queries[:, -1]


class EomtTeacher(Teacher[EomtContext]):
    """A frozen EoMT that hands out its tokens at every layer and can resume from any of them."""

    def __init__(self, model: EomtForUniversalSegmentation) -> None:
        self.model = model.eval().requires_grad_(False)
        config = model.config
        self.num_layers: int = config.num_hidden_layers
        self.num_query_layers: int = config.num_blocks
        self.num_queries: int = config.num_queries
        self.width: int = config.hidden_size
        self.grid: tuple[int, int] = model.grid_size
        self.image_size: tuple[int, int] = (config.image_size, config.image_size)
        self.pixel_mean: tuple[float, ...] = IMAGENET_MEAN
        self.pixel_std: tuple[float, ...] = IMAGENET_STD
        # Read once: asking a tensor for its value inside the layer loop would stall a GPU.
        self._mask_probabilities: list[float] = model.attn_mask_probs.tolist()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def encode(self, images: Tensor, edit: Edit | None = None) -> tuple[Tensor, EomtContext]:
        """Token field of a batch, in one forward pass.

        Args:
            images: (B, 3, h, w) normalised with ``pixel_mean`` and ``pixel_std``.
            edit: replaces the patch tokens of the embedding and of each layer as they come.

        Returns:
            The token field (B, L, H, W, D), block outputs of layers 1..L, and its context.

        Raises:
            InputError: the image size is not the one that the position embeddings were learned at.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            got, want = "x".join(map(str, images.shape[-2:])), "x".join(map(str, self.image_size))
            raise InputError(f"the EoMT teacher takes images of {want} pixels, not {got}")
        embedded, prefix, queries = self._embed(images)
        if edit is not None:
            embedded = edit(0, embedded.unflatten(1, self.grid)).flatten(1, 2)
        patches, prefix, queries, masks = self._run(0, embedded, prefix, queries, None, edit)
        return patches.unflatten(2, self.grid), EomtContext(prefix, queries, masks)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Layer 0 alone: (B, 3, h, w) normalised images to (B, H, W, D) patch embeddings."""
        return self._embed(images)[0].unflatten(1, self.grid)

    @torch.no_grad()
    def resume(
        self, layer: int, tokens: Tensor, context: EomtContext
    ) -> tuple[Tensor, EomtContext]:
        """Run the frozen rest of the teacher on patch tokens put in place at ``layer``.

        Args:
            layer: 0 (the embedding) to L; the tokens are what that layer gave out.
            tokens: (B, H, W, D) patch tokens.
            context: prefix and query tokens of the same images, from :meth:`encode`.

        Returns:
            Last-layer patch tokens (B, H, W, D) and the context as it is after the resumed layers.

        Raises:
            InputError: ``layer`` is not one of the teacher's.
        """
        if not 0 <= layer <= self.num_layers:
            raise InputError(f"resume layer must be in 0..{self.num_layers}, not {layer}")
        first_query_layer = self.num_layers - self.num_query_layers
        passed = max(layer - first_query_layer, 0)
        patches, prefix, queries, masks = self._run(
            layer,
            tokens.flatten(1, 2),
            context.prefix[:, layer],
            context.queries[:, passed],
            context.masks[passed],
        )
        last = patches[:, -1].unflatten(1, self.grid) if layer < self.num_layers else tokens
        return last, EomtContext(
            torch.cat([context.prefix[:, : layer + 1], prefix[:, 1:]], 1),
            torch.cat([context.queries[:, : passed + 1], queries[:, 1:]], 1),
            (*context.masks[: passed + 1], *masks[1:]),
        )

    def resized(self, side: int) -> EomtTeacher:
        """The same weights for (side, side) images, position embeddings interpolated.

        As EoMT and DINOv2 take a checkpoint to another size: bicubic, antialiased (timm's
        `resample_abs_pos_embed`). All other weights are shared.

        Raises:
            InputError: ``side`` is no multiple of the patch size.
        """
        config = copy.deepcopy(self.model.config)
        if side < 1 or side % config.patch_size:
            raise InputError(f"a teacher's input of {side} px is no multiple of its patches")
        config.image_size, grid = side, (side // config.patch_size,) * 2
        with torch.device("meta"):
            model = EomtForUniversalSegmentation(config)
        state = self.model.state_dict()
        name = "embeddings.position_embeddings.weight"
        learned = state[name].T.unflatten(1, self.grid)[None].float()
        resampled = F.interpolate(learned, grid, mode="bicubic", antialias=True)[0]
        state[name] = resampled.flatten(1).T.to(state[name].dtype).contiguous()
        model.load_state_dict(state, assign=True)
        places = torch.arange(grid[0] * grid[1], device=self.device)
        model.embeddings.position_ids = places[None]  # a buffer that no checkpoint holds
        return EomtTeacher(model)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedded = self.model.embeddings(images)
        count = self.model.embeddings.num_prefix_tokens
        queries = self.model.query.weight.expand(images.shape[0], -1, -1)
        return embedded[:, count:], embedded[:, :count], queries

    def _run(
        self,
        layer: int,
        patches: Tensor,
        prefix: Tensor,
        queries: Tensor,
        mask: Tensor | None,
        edit: Edit | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Layers ``layer + 1`` to L on (B, N, D) patches, (B, P, D) prefix and (B, Q, D) queries.

        Returns patches of the layers run (B, layers, N, D), prefix (B, 1 + layers, P, D), queries
        (B, 1 + query layers run, Q, D) and as many masks; these three start with what came in.
        """
        first_query_layer = self.num_layers - self.num_query_layers
        sizes = [prefix.shape[1], patches.shape[1]]
        state = torch.cat([prefix, patches], 1)
        if layer > first_query_layer:
            state, sizes = torch.cat([queries, state], 1), [queries.shape[1], *sizes]
        fields, prefixes, query_states, masks = [], [prefix], [queries], [mask]
        for index in range(layer, self.num_layers):
            if index == first_query_layer:
                state, sizes = torch.cat([queries, state], 1), [queries.shape[1], *sizes]
            if index >= first_query_layer:
                mask = self._attention_mask(state, index - first_query_layer, mask)
                masks.append(mask)
            state = self.model.layers[index](state, mask)
            *query_part, prefix_part, patch_part = state.split(sizes, 1)
            if edit is not None:
                patch_part = edit(index + 1, patch_part.unflatten(1, self.grid)).flatten(1, 2)
                state = torch.cat([*query_part, prefix_part, patch_part], 1)
            fields.append(patch_part)
            prefixes.append(prefix_part)
            query_states.extend(query_part)
        field = torch.stack(fields, 1) if fields else patches[:, None][:, :0]
        return field, torch.stack(prefixes, 1), torch.stack(query_states, 1), tuple(masks)

    def _attention_mask(self, state: Tensor, block: int, mask: Tensor | None) -> Tensor | None:
        """Additive mask (B, heads, N, N) of a query layer, or the previous one where it is off.

        Each query attends only to the patches that its current mask covers; off (probability 0)
        in every published checkpoint. Probabilities between 0 and 1 exist during training only.
        """
        if self._mask_probabilities[block] <= 0:
            return mask
        normed = self.model.layernorm(state)
        mask_logits, _ = self.model.predict(normed)
        covered = F.interpolate(mask_logits, size=self.grid, mode="bilinear").flatten(2) > 0
        allowed = torch.ones(
            state.shape[0], state.shape[1], state.shape[1], dtype=torch.bool, device=state.device
        )
        first_patch = self.num_queries + self.model.embeddings.num_prefix_tokens
        allowed[:, : self.num_queries, first_patch:] = covered
        heads = self.model.config.num_attention_heads
        blocked = ~allowed[:, None].expand(-1, heads, -1, -1)
        return torch.zeros(blocked.shape, dtype=state.dtype, device=state.device).masked_fill(
            blocked, -1e9
        )


def load_eomt(weights: str, config: str = "", device: str | torch.device = "cpu") -> EomtTeacher:
    """Load a frozen EoMT teacher.

    Args:
        weights: a local directory (``config.json`` and ``model.safetensors``) or a hub id; empty
            for random weights of the shape that ``config`` gives.
        config: path of an ``EomtConfig`` JSON file; only read where ``weights`` is empty.

    Raises:
        InputError: a file is missing, is no EoMT, or does not fit its config.
    """
    if not weights:
        try:
            model = EomtForUniversalSegmentation(read_eomt_config(config))
        except _BAD_CHECKPOINT as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"MODEL.LQN.TEACHER.CONFIG: no EoMT has the shape of {config} "
                f"({_first_line(error)})"
            ) from error
        nn.init.zeros_(model.attn_mask_probs)  # transformers starts it at 1: masked attention on
        return EomtTeacher(model.to(device))
    path = Path(weights)
    if not path.is_dir() and (path.is_absolute() or len(path.parts) > 2 or weights.startswith(".")):
        raise InputError(f"MODEL.LQN.TEACHER.WEIGHTS: there is no directory {weights}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"MODEL.LQN.TEACHER.WEIGHTS: {weights} holds no config.json")
    try:
        model, report = EomtForUniversalSegmentation.from_pretrained(
            weights, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except _BAD_CHECKPOINT as error:
        how = (
            "its config.json or weights are damaged or not those of an EoMT"
            if path.is_dir()
            else "it is not in the model hub's cache and could not be fetched; download it on a "
            f"machine with internet by `hf download {weights}` and give the directory"
        )
        raise InputError(
            f"MODEL.LQN.TEACHER.WEIGHTS: {weights} could not be loaded: {how} "
            f"({_first_line(error)})"
        ) from error
    bad = {
        key: sorted(map(str, report[key])) for key in report if key != "error_msgs" and report[key]
    }
    if bad:
        parts = "; ".join(f"{key}: {', '.join(names[:3])}" for key, names in bad.items())
        raise InputError(f"checkpoint {weights} does not fit its config.json ({parts})")
    return EomtTeacher(model.to(device))


def read_eomt_config(path: str) -> EomtConfig:
    """An ``EomtConfig`` from a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    if not Path(path).is_file():
        raise InputError(f"MODEL.LQN.TEACHER.CONFIG: there is no file {path or '(empty)'}")
    try:
        content = json.loads(Path(path).read_text())
        unknown = sorted(set(content) - {*EomtConfig().to_dict(), "num_labels"})
        if unknown:
            raise InputError(f"MODEL.LQN.TEACHER.CONFIG: {path} has the unknown key {unknown[0]!r}")
        return EomtConfig(**content)
    except json.JSONDecodeError as error:
        raise InputError(f"MODEL.LQN.TEACHER.CONFIG: {path} is not JSON ({error})") from error
    except (TypeError, StrictDataclassError) as error:
        raise InputError(
            f"MODEL.LQN.TEACHER.CONFIG: {path} is no EomtConfig ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
